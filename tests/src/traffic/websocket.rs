//! WebSockets: numbered messages, each of which an echo repeats.

use std::time::Duration;

use tokio::time::timeout;

use super::client::{Client, bounded};
use super::link::{Dialer, Link};
use super::stage::CHAT;
use super::{Loss, Over};
use crate::client::websocket::{accept_key, base64, frame};

const TEXT: u8 = 1;
const CLOSE: u8 = 8;

/// The server goes away (RFC 6455, section 7.4.1).
const GOING_AWAY: u16 = 1001;

/// How long the server may take to end a connection whose closing was agreed.
const END_MAX: Duration = Duration::from_secs(5);

/// What came.
enum Came {
    Text(Vec<u8>),
    Close(Option<u16>),
}

/// One message after the other, on another connection when the server goes away.
pub(super) async fn echo(client: Client, every: Duration) {
    let over = if client.index.is_multiple_of(2) { Over::Clear } else { Over::Tls };
    let dialer = Dialer::http1(&client, over, CHAT);
    let mut kept = None;
    while !client.is_stopping() {
        let begun = client.begin();
        match said(&client, &dialer, kept.take()).await {
            Ok(link) => {
                client.ok(begun);
                kept = Some(link);
            }
            Err(loss) => client.lost(begun, loss).await,
        }
        kept = rest(&client, kept, every).await;
    }
    if let Some(link) = kept
        && let Err(loss) = bounded(leave(link)).await
    {
        client.count().lose(&loss);
    }
}

/// Says something and hears it again. A message that the server's 1001 crossed is said again: after
/// its close nothing may come from it, so nothing says that it was heard.
async fn said(client: &Client, dialer: &Dialer, kept: Option<Link>) -> Result<Link, Loss> {
    let text = Client::id().to_string().into_bytes();
    let mut kept = kept;
    loop {
        let mut link = match kept.take() {
            Some(link) => link,
            None => bounded(upgraded(client, dialer)).await?,
        };
        link.send(frame(TEXT, &text, Some([1, 2, 3, 4]))).await?;
        match bounded(receive(&mut link)).await? {
            Came::Text(heard) if heard == text => return Ok(link),
            Came::Text(_) => return Err(Loss::Failed("another message's echo".to_owned())),
            Came::Close(Some(GOING_AWAY)) => {
                client.count().again += 1;
                goodbye(link).await?;
            }
            Came::Close(code) => return Err(closed(code)),
        }
    }
}

async fn upgraded(client: &Client, dialer: &Dialer) -> Result<Link, Loss> {
    let mut link = dialer.connect(client).await?;
    let key = base64(b"sixteen bytes !!");
    link.send(format!(
        "GET / HTTP/1.1\r\nhost: {CHAT}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
    ))
    .await?;
    let head = link.head().await?;
    if head.status != 101 {
        return Err(head.unexpected());
    }
    if head.field("sec-websocket-accept") != Some(&accept_key(&key)) {
        return Err(Loss::Failed("a key that nobody sent is accepted".to_owned()));
    }
    Ok(link)
}

/// Lets time pass; a connection whose server goes away meanwhile is left as it should be.
async fn rest(client: &Client, kept: Option<Link>, every: Duration) -> Option<Link> {
    let Some(mut link) = kept else {
        client.pause(every).await;
        return None;
    };
    // What came along with the last frame is there already.
    let read = if link.buffer.is_empty() {
        tokio::select! {
            read = link.more() => read,
            () = client.pause(every) => return Some(link),
        }
    } else {
        Ok(link.buffer.len())
    };
    let came = match read {
        Ok(0) => Err(Loss::Failed("ended without a close".to_owned())),
        Ok(_) => bounded(receive(&mut link)).await,
        Err(error) => Err(Loss::of(&error).during("resting")),
    };
    let left = match came {
        Ok(Came::Close(Some(GOING_AWAY))) => goodbye(link).await,
        Ok(Came::Close(code)) => Err(closed(code)),
        Ok(Came::Text(_)) => Err(Loss::Failed("a message that nobody sent".to_owned())),
        Err(loss) => Err(loss),
    };
    if let Err(loss) = left {
        client.count().lose(&loss);
    }
    client.pause(every).await;
    None
}

fn closed(code: Option<u16>) -> Loss {
    Loss::Failed(format!("closed with {code:?}"))
}

/// Answers the server's close; then the connection has to end.
async fn goodbye(mut link: Link) -> Result<(), Loss> {
    link.send(frame(CLOSE, &GOING_AWAY.to_be_bytes(), Some([1, 2, 3, 4]))).await?;
    match timeout(END_MAX, link.more()).await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(_)) => Err(Loss::Failed("something after the close".to_owned())),
        Ok(Err(error)) => Err(Loss::of(&error).during("ending")),
        Err(_) => Err(Loss::Failed("open after the close".to_owned())),
    }
}

/// Closes as a client does that has nothing more to say.
async fn leave(mut link: Link) -> Result<(), Loss> {
    link.send(frame(CLOSE, &1000_u16.to_be_bytes(), Some([1, 2, 3, 4]))).await?;
    match receive(&mut link).await? {
        Came::Close(_) => Ok(()),
        Came::Text(_) => Err(Loss::Failed("a message instead of a close".to_owned())),
    }
}

/// Reads a frame.
async fn receive(link: &mut Link) -> Result<Came, Loss> {
    let head = link.exactly(2).await.map_err(|loss| loss.during("waiting for a frame"))?;
    let length = match head[1] {
        126 => {
            let bytes = link.exactly(2).await?;
            usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
        }
        127.. => return Err(Loss::Failed("a frame that is masked or large".to_owned())),
        small => usize::from(small),
    };
    let payload = link.exactly(length).await?.to_vec();
    match head[0] {
        0x81 => Ok(Came::Text(payload)),
        0x88 => Ok(Came::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code)))),
        first => Err(Loss::Failed(format!("a frame that begins with {first:#x}"))),
    }
}
