//! How far the other nodes are: one HTTP/2 PING a second over a connection of its own.
//!
//! Apart from the connections that carry requests, because behind a bulk transfer a PING measures
//! the queue and not the path (305 ms for 20, measured). A node that does not answer is not chosen. On
//! the same connection the node says whether it drains (`http/h2/word.rs`).

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use telemetry::error::chain;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::{BoxError, Code, Failure};
use crate::identify::mesh;
use crate::nodes::{Node, Nodes, Word};
use crate::tls::MeshTls;

/// Time between PINGs.
const INTERVAL: Duration = Duration::from_secs(1);

/// First pause after a failure; it doubles up to the interval.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// A PING that takes longer means that the node cannot be reached.
const PATIENCE: Duration = Duration::from_secs(3);

/// Probes every node until `stop`.
pub async fn run(nodes: Arc<Nodes>, mesh: Arc<MeshTls>, stop: CancellationToken) {
    let probes = nodes.iter().map(|node| probe(node.clone(), mesh.clone()));
    tokio::select! {
        () = stop.cancelled() => {}
        _ = futures_util::future::join_all(probes) => {}
    }
}

async fn probe(node: Arc<Node>, mesh: Arc<MeshTls>) {
    // Nodes that start together find each other at the second look, not a second later.
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        let failure = match measure(&node, &mesh).await {
            // It ends its connections in order, and may have a successor: whether there is one is asked
            // before anybody is told otherwise.
            Ok(Farewell) => {
                if began.elapsed() < INTERVAL {
                    tokio::time::sleep(PAUSE_MIN).await;
                }
                continue;
            }
            Err(failure) => failure,
        };
        if node.is_reachable() {
            tracing::warn!(node = %node.id, "node does not answer: {}", chain(&failure));
            pause = PAUSE_MIN;
        }
        node.set_reachable(false);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(INTERVAL);
    }
}

/// The node has ended the connection in order.
struct Farewell;

/// Measures until the connection ends.
async fn measure(node: &Node, mesh: &MeshTls) -> Result<Farewell, Failure> {
    let broken = |error: BoxError| Failure::new(Code::PU03).because(error);
    let deadline = Instant::now() + PATIENCE;
    let connect = tokio::time::timeout_at(deadline, TcpStream::connect(node.address)).await;
    let stream =
        connect.map_err(|late| broken(late.into()))?.map_err(|error| broken(error.into()))?;
    stream.set_nodelay(true).map_err(|error| broken(error.into()))?;
    let stream = mesh.connect(stream, &node.id, deadline).await?;
    let (requests, mut connection) = h2::client::Builder::new()
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|error| broken(error.into()))?;
    let word = Cell::new(None);
    let Some(mut pings) = connection.ping_pong() else { return Err(Code::PX01.into()) };
    let measure = async {
        loop {
            let sent = Instant::now();
            let pong = timeout(PATIENCE, pings.ping(h2::Ping::opaque())).await;
            pong.map_err(|late| broken(late.into()))?.map_err(|error| broken(error.into()))?;
            node.observe_rtt(sent.elapsed());
            if !node.is_reachable() {
                tracing::info!(node = %node.id, "node answers");
            }
            node.set_reachable(true);
            // An answer that was overtaken by a newer word may have said otherwise.
            if let Some(word) = word.get() {
                node.hear(word);
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let listen = async {
        // A stream that breaks while its connection lives is opened again.
        while !matches!(listen(requests.clone(), node, &word).await, Ok(Heard::NotUnderstood)) {
            tokio::time::sleep(INTERVAL).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        closed = connection => match closed {
            Ok(()) => Ok(Farewell),
            Err(error) if error.reason() == Some(h2::Reason::NO_ERROR) => Ok(Farewell),
            Err(error) => Err(broken(error.into())),
        },
        failed = measure => failed,
        () = listen => unreachable!("waits for ever"),
    }
}

/// How the node stopped saying whether to send there.
enum Heard {
    /// It has said all it will on this stream.
    End,
    /// Its version knows of no drains.
    NotUnderstood,
}

/// Asks the node whether to send there, and listens.
async fn listen(
    requests: SendRequest<Bytes>,
    node: &Node,
    word: &Cell<Option<Word>>,
) -> Result<Heard, h2::Error> {
    let hear = |said| {
        word.set(Some(said));
        node.hear(said);
    };
    let request = Request::get("https://mesh/").header(mesh::STATE, "1").body(());
    let request = request.expect("its parts are sound");
    let (response, _) = requests.ready().await?.send_request(request, true)?;
    let response = response.await?;
    if !response.status().is_success() {
        hear(Word::Serving);
        return Ok(Heard::NotUnderstood);
    }
    let mut words = response.into_body();
    while let Some(bytes) = words.data().await {
        let bytes = bytes?;
        words.flow_control().release_capacity(bytes.len())?;
        match bytes.last() {
            Some(&mesh::STATE_DRAINING) => hear(Word::Draining),
            Some(&mesh::STATE_SERVING) => hear(Word::Serving),
            _ => {}
        }
    }
    Ok(Heard::End)
}
