//! Calls as gRPC makes them: both directions at once, and a status in the trailers.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use h2::RecvStream;
use http::Request;

use super::Loss;
use super::client::{Client, bounded};
use super::http2::{Connections, Fate};
use super::stage::GRPC;

/// How long a call goes on, however many messages that are on a busy machine.
const CALL: Duration = Duration::from_millis(1_200);

/// So many calls in flight on one connection, each a message and its echo every now and then.
pub(super) async fn calls(client: Client, count: u32, every: Duration) {
    let connections = Connections::new(&client, GRPC);
    join_all((0..count).map(|lane| lane_of_calls(&client, &connections, every, lane))).await;
}

async fn lane_of_calls(client: &Client, connections: &Connections<'_>, every: Duration, lane: u32) {
    // They do not all end in the same moment.
    client.pause(every * lane).await;
    while !client.is_stopping() {
        let begun = client.begin();
        match connections.retried(async || call(client, connections, every).await).await {
            Ok(()) => client.ok_streamed(begun),
            Err(loss) => client.lost(begun, loss).await,
        }
    }
}

async fn call(client: &Client, connections: &Connections<'_>, every: Duration) -> Result<(), Fate> {
    let request = Request::post(format!("https://{GRPC}/echo"));
    let request = request.header("te", "trailers").header("content-type", "application/grpc");
    let request = request.body(()).expect("a sound request");
    let (response, mut up) = connections.start(request, false).await?;
    up.send_data(message(0), false)?;
    let asked = Instant::now();
    let response = in_time(async { Ok(response.await?) }).await?;
    if response.status() != 200 {
        return Err(failed(format!("status {}", response.status())));
    }
    let mut down = response.into_body();
    let (mut number, mut last) = (0, asked);
    loop {
        if in_time(read(&mut down, 8)).await? != message(number) {
            return Err(failed(format!("message {number} came back as another")));
        }
        client.silence(last.elapsed());
        if asked.elapsed() > CALL {
            break;
        }
        tokio::time::sleep(every).await;
        number += 1;
        last = Instant::now();
        up.send_data(message(number), false)?;
    }
    up.send_data(Bytes::new(), true)?;
    let rest = in_time(async { Ok(down.data().await.transpose()?) }).await?;
    if rest.is_some_and(|data| !data.is_empty()) {
        return Err(failed("more than was sent".to_owned()));
    }
    let trailers = in_time(async { Ok(down.trailers().await?) }).await?;
    match trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")) {
        Some(status) if status == "0" => Ok(()),
        _ => Err(failed("no status in the trailers".to_owned())),
    }
}

/// No step of a call takes longer than anything may.
async fn in_time<T>(step: impl Future<Output = Result<T, Fate>>) -> Result<T, Fate> {
    let bounded = bounded(async { Ok(step.await) }).await;
    bounded.map_err(Fate::Lost)?
}

fn message(number: u32) -> Bytes {
    Bytes::from(format!("{number:08}"))
}

fn failed(why: String) -> Fate {
    Fate::Lost(Loss::Failed(why))
}

async fn read(down: &mut RecvStream, count: usize) -> Result<BytesMut, Fate> {
    let mut bytes = BytesMut::new();
    while bytes.len() < count {
        let Some(data) = down.data().await else {
            return Err(Fate::Lost(Loss::Reset("the end within a call".to_owned())));
        };
        let data = data?;
        down.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
