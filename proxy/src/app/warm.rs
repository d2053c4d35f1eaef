//! Connections to other nodes that are there before the first request needs one.
//!
//! TCP, TLS 1.3 and SETTINGS are three round trips, half a second across the world, which the first
//! requests to a successor would wait for: its predecessor had those connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::threads::Remote;
use crate::nodes::Node;

/// Nodes that each worker connects to at most, the nearest: most requests go there, and a handshake
/// costs either side about a millisecond of a core.
const NODES_MAX: usize = 32;

/// Has each worker connect to `nodes` and waits for that, for at most `patience`. What takes longer
/// goes on, and what fails is tried again when somebody needs it.
pub(super) async fn connect(remote: &Remote, nodes: &[Arc<Node>], patience: Duration) {
    if nodes.is_empty() || patience.is_zero() {
        return;
    }
    let nodes: Arc<[_]> = nodes.iter().take(NODES_MAX).cloned().collect();
    let began = Instant::now();
    let (wanted, mut made) = remote.warm(&nodes);
    let mut connections = 0;
    let connecting = async {
        while made.recv().await.is_some() {
            connections += 1;
        }
    };
    let ended = timeout(patience, connecting).await;
    tracing::info!(
        nodes = nodes.len(),
        connections,
        wanted,
        late = ended.is_err(),
        seconds = began.elapsed().as_secs_f64(),
        "connected to the nodes that the predecessor was connected to"
    );
}
