//! What all workers share: immutable after the start, or atomics.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use telemetry::pressure::Pressure;
use telemetry::record;
use telemetry::shared_counts::{Count, Counts};
use telemetry::verbosity::Verbosity;
use telemetry::work::Board;

use crate::balance::node::NodeLimits;
use crate::config::Config;
use crate::drain::Drain;
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
    /// For how long the thread that hangs longest has not come back from a poll, in milliseconds.
    pub hangs_ms: AtomicU64,
    /// What every connection and request waits for.
    pub board: Arc<Board>,
    pub metrics: Metrics,
    pub identity: Identity,
    pub nodes: Arc<Nodes>,
    /// Whether new work should come here.
    pub drain: Drain,
    pub inventory: Arc<Inventory>,
    /// What is counted together with another generation of the process, while there is one.
    pub counts: Arc<Counts>,
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
    open: Arc<Count>,
    max: u32,
}

/// One counted connection.
pub struct ConnectionGuard {
    open: Arc<Count>,
}

// === impl Connections ===

impl Connections {
    /// `open` counts them, with another generation of the process if it is shared.
    pub fn new(max: u32, open: Count) -> Self {
        Self { open: Arc::new(open), max }
    }

    /// Counts one more.
    ///
    /// # Errors
    ///
    /// [`Code::PL03`] at the bound.
    pub fn admit(&self) -> Result<ConnectionGuard, Code> {
        if !self.open.try_add(self.max) {
            return Err(Code::PL03);
        }
        Ok(ConnectionGuard { open: self.open.clone() })
    }

    /// Connections of this process.
    pub fn open(&self) -> u32 {
        self.open.own()
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.open.sub();
    }
}
