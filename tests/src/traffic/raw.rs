//! Raw bytes: connections of one exchange and of many.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;

use super::Loss;
use super::client::{Client, bounded};
use super::link::{Dialer, Link};
use super::pattern;

/// Bytes of a short connection, larger than what a socket takes at once.
const SHORT_BYTES: usize = 20_000;

/// One connection after the other: says everything, ends its half, and hears everything again.
pub(super) async fn short(client: Client, every: Duration) {
    let dialer = Dialer::raw(&client);
    while !client.is_stopping() {
        let begun = client.begin();
        let said = pattern::piece(Client::id(), SHORT_BYTES);
        let one = bounded(async {
            let mut link = dialer.connect(&client).await?;
            link.send(&said).await?;
            finish(&mut link).await?;
            if link.exactly(SHORT_BYTES).await? != said {
                return Err(Loss::Failed("something else came back".to_owned()));
            }
            ended(&mut link).await
        });
        match one.await {
            Ok(()) => client.ok(begun),
            Err(loss) => client.lost(begun, loss).await,
        }
        client.pause(every).await;
    }
}

/// How a long connection ended too early.
enum End {
    /// While nothing was on its way: how a node ends what it cannot tell to end.
    Idle,
    Lost(Loss),
}

/// One connection after the other, each of exchanges for so long.
pub(super) async fn long(client: Client, for_so_long: Duration, every: Duration) {
    let dialer = Dialer::raw(&client);
    // They do not all end in the same moment.
    client.pause(every * u32::try_from(client.index).unwrap_or_default() * 5).await;
    while !client.is_stopping() {
        let begun = client.begin();
        match conversation(&client, &dialer, for_so_long, every).await {
            Ok(()) => client.ok_streamed(begun),
            Err(End::Idle) => client.cut(begun, "ended between two exchanges"),
            Err(End::Lost(loss)) => client.lost(begun, loss).await,
        }
    }
}

async fn conversation(
    client: &Client,
    dialer: &Dialer,
    for_so_long: Duration,
    every: Duration,
) -> Result<(), End> {
    let mut link = dialer.connect(client).await?;
    let start = Instant::now();
    while start.elapsed() < for_so_long {
        let said = pattern::piece(Client::id(), 100);
        let asked = Instant::now();
        link.send(&said).await?;
        if bounded(link.exactly(said.len())).await? != said {
            return Err(End::Lost(Loss::Failed("something else came back".to_owned())));
        }
        client.silence(asked.elapsed());
        tokio::select! {
            read = link.more() => return Err(match read {
                Ok(0) => End::Idle,
                Ok(_) => End::Lost(Loss::Failed("bytes that nobody sent".to_owned())),
                Err(error) => End::Lost(Loss::of(&error).during("resting")),
            }),
            () = tokio::time::sleep(every) => {}
        }
    }
    finish(&mut link).await?;
    Ok(bounded(ended(&mut link)).await?)
}

async fn finish(link: &mut Link) -> Result<(), Loss> {
    link.stream.shutdown().await.map_err(|error| Loss::of(&error).during("ending this half"))
}

/// Nothing more comes but the end.
async fn ended(link: &mut Link) -> Result<(), Loss> {
    match link.more().await {
        Ok(0) if link.buffer.is_empty() => Ok(()),
        Ok(_) => Err(Loss::Failed("more than was sent".to_owned())),
        Err(error) => Err(Loss::of(&error).during("waiting for the end")),
    }
}

impl From<Loss> for End {
    fn from(loss: Loss) -> Self {
        Self::Lost(loss)
    }
}
