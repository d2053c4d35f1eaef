//! How far the other nodes are: one HTTP/2 PING a second over a connection of its own.
//!
//! Apart from the connections that carry requests, because behind a bulk transfer a PING measures
//! the queue and not the path (305 ms for 20, measured). A node that does not answer is not chosen.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use telemetry::error::chain;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::{BoxError, Code, Failure};
use crate::nodes::{Node, Nodes};
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
        let Err(failure) = measure(&node, &mesh).await;
        if node.is_reachable() {
            tracing::warn!(node = %node.id, "node does not answer: {}", chain(&failure));
            pause = PAUSE_MIN;
        }
        node.set_reachable(false);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(INTERVAL);
    }
}

/// Measures until the connection breaks.
async fn measure(node: &Node, mesh: &MeshTls) -> Result<std::convert::Infallible, Failure> {
    let broken = |error: BoxError| Failure::new(Code::PU03).because(error);
    let deadline = Instant::now() + PATIENCE;
    let connect = tokio::time::timeout_at(deadline, TcpStream::connect(node.address)).await;
    let stream =
        connect.map_err(|late| broken(late.into()))?.map_err(|error| broken(error.into()))?;
    stream.set_nodelay(true).map_err(|error| broken(error.into()))?;
    let stream = mesh.connect(stream, &node.id, deadline).await?;
    // Nothing is ever asked on this connection; the type of a body has to be named all the same.
    let (_requests, mut connection) = h2::client::Builder::new()
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|error| broken(error.into()))?;
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
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        failed = measure => failed,
        closed = connection => Err(match closed {
            Ok(()) => Code::PU03.into(),
            Err(error) => broken(error.into()),
        }),
    }
}
