//! What all workers share: immutable after the start, or atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use telemetry::pressure::Pressure;
use telemetry::record;
use telemetry::verbosity::Verbosity;
use telemetry::work::Board;

use crate::balance::node::NodeLimits;
use crate::config::Config;
use crate::error::Code;
use crate::http::forward::Identity;
use crate::inventory::Inventory;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::tls::{MeshTls, Tls};

/// One node's shared state.
pub struct Edge {
    pub config: Config,
    pub registry: Registry,
    pub ledger: Ledger,
    /// What the workers' recorders share.
    pub records: Arc<record::Shared>,
    /// Which requests are written down in full detail.
    pub verbosity: Arc<Verbosity>,
    /// How short memory is.
    pub pressure: Pressure,
    /// What every connection and request waits for.
    pub board: Arc<Board>,
    pub metrics: Metrics,
    pub identity: Identity,
    pub nodes: Arc<Nodes>,
    pub inventory: Arc<Inventory>,
    pub requests: NodeLimits,
    pub connections: Connections,
    /// Handshakes with whoever knocks at the mesh's port.
    pub mesh_handshakes: Connections,
    pub tls: Tls,
    pub mesh: Option<Arc<MeshTls>>,
}

/// Counts the client connections of this node against its bound. Cloning shares the count.
#[derive(Clone)]
pub struct Connections {
    open: Arc<AtomicU32>,
    max: u32,
}

/// One counted connection.
pub struct ConnectionGuard {
    open: Arc<AtomicU32>,
}

// === impl Connections ===

impl Connections {
    pub fn new(max: u32) -> Self {
        Self { open: Arc::default(), max }
    }

    /// Counts one more.
    ///
    /// # Errors
    ///
    /// [`Code::PL03`] at the bound.
    pub fn admit(&self) -> Result<ConnectionGuard, Code> {
        if self.open.fetch_add(1, Relaxed) >= self.max {
            self.open.fetch_sub(1, Relaxed);
            return Err(Code::PL03);
        }
        Ok(ConnectionGuard { open: self.open.clone() })
    }

    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
    }
}
