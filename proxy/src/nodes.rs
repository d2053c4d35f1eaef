//! The other nodes of the edge as this one sees them: where they are, how far, whether they answer.
//!
//! The control thread measures ([`crate::probe`]) and stores; requests only load atomics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use control::snapshot::{NodeId, Region};

use crate::config;

/// Every node this one may send to.
#[derive(Debug, Default)]
pub struct Nodes {
    by_id: HashMap<NodeId, Arc<Node>>,
}

/// One other node.
#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub region: Region,
    /// Where its mesh listener is.
    pub address: SocketAddr,
    rtt_microseconds: AtomicU32,
    reachable: AtomicBool,
    draining: AtomicBool,
    /// Connections of this process's workers to it.
    connections: AtomicU32,
}

/// One connection to a node, counted until dropped.
#[derive(Debug)]
pub struct Connected(Arc<Node>);

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Serving,
    /// New requests should go elsewhere, if anybody else can take them.
    Draining,
}

// === impl Nodes ===

impl Nodes {
    pub fn new(mesh: Option<&config::Mesh>) -> Self {
        let nodes = mesh.iter().flat_map(|mesh| &mesh.peers).map(|peer| {
            let config::Peer { id, region, address } = peer.clone();
            let node = Node {
                id: id.clone(),
                region,
                address,
                rtt_microseconds: AtomicU32::new(u32::MAX),
                reachable: AtomicBool::new(true), // until a probe says otherwise
                draining: AtomicBool::new(false),
                connections: AtomicU32::new(0),
            };
            (id, Arc::new(node))
        });
        Self { by_id: nodes.collect() }
    }

    pub fn get(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.by_id.get(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.by_id.values()
    }
}

// === impl Node ===

impl Node {
    /// Smoothed round trip; unknown counts as very far.
    pub fn rtt(&self) -> Duration {
        Duration::from_micros(u64::from(self.rtt_microseconds.load(Relaxed)))
    }

    /// Smoothed round trip, once there is one.
    pub fn measured_rtt(&self) -> Option<Duration> {
        Some(self.rtt()).filter(|rtt| rtt.as_micros() < u128::from(u32::MAX))
    }

    /// A round trip was measured; it is smoothed (EWMA, 1/8) so that one late PING moves nothing.
    pub fn observe_rtt(&self, sample: Duration) {
        let sample = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX - 1);
        let old = self.rtt_microseconds.load(Relaxed);
        let new = if old == u32::MAX { sample } else { old - old / 8 + sample / 8 };
        self.rtt_microseconds.store(new, Relaxed);
    }

    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Relaxed)
    }

    pub fn set_reachable(&self, reachable: bool) {
        self.reachable.store(reachable, Relaxed);
    }

    /// Whether it wants requests only where nobody else can take them.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Whether a worker has a connection to it, so that it was used a short while ago.
    pub fn is_connected(&self) -> bool {
        self.connections.load(Relaxed) > 0
    }

    /// Counts a connection that a worker has made.
    pub fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Relaxed);
        Connected(self.clone())
    }

    /// It has said so itself.
    pub fn hear(&self, word: Word) {
        let is_draining = word == Word::Draining;
        if self.draining.load(Relaxed) == is_draining {
            return; // nearly always
        }
        if self.draining.swap(is_draining, Relaxed) != is_draining {
            match word {
                Word::Draining => tracing::info!(node = %self.id, "node drains"),
                Word::Serving => tracing::info!(node = %self.id, "node serves again"),
            }
        }
    }
}

// === impl Connected ===

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
