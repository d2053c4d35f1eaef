//! Builds every long-lived object of a node, in order, and takes it down again in reverse.
//!
//! | thread | runs |
//! |---|---|
//! | the caller's (control) | inventory, certificates, health checks, probes, sockets, admin |
//! | `worker-N` | a core's connections ([`crate::worker`]) |
//! | `ferrule-catalog` | SQLite's one writer |
//! | `ferrule-source` | reading the folder of apps |
//! | `join` | joining the workers at the end, so that admin answers meanwhile |

mod dial;
mod threads;
mod view;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use control::inventory::{Control, OpenError};
use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use tokio::runtime::LocalOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::threads::{Report, Threads};
use self::view::NodeView;
use crate::admin::{self, Admin};
use crate::balance::node::NodeLimits;
use crate::config::Config;
use crate::edge::{Connections, Edge};
use crate::health;
use crate::http::forward::Identity;
use crate::inventory::Inventory;
use crate::listener::sockets::{self, Sockets};
use crate::listener::{Kind, Listening};
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::probe;
use crate::tls::{Certificates, CertificatesError, MeshTls, Tls, TlsError};

/// Why a node did not start. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the runtime cannot start")]
    Runtime(#[source] io::Error),
    #[error("a worker thread cannot start")]
    Worker(#[source] io::Error),
    #[error("the inventory cannot be opened")]
    Inventory(#[source] OpenError),
    #[error("the certificates cannot be read")]
    Certificates(#[source] CertificatesError),
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsError),
    #[error("the mesh cannot be set up")]
    Mesh(#[source] TlsError),
    #[error("the mesh has no address")]
    MeshAddress(#[source] sockets::BindError),
    #[error("the node cannot be asked about itself")]
    Admin(#[source] admin::BindError),
}

/// When a node should end, and whom to tell that it serves.
pub struct Lifetime {
    /// Cancelled: drain, then stop.
    pub end: CancellationToken,
    /// Called once the node is ready.
    pub ready: Box<dyn FnOnce() + Send>,
}

/// Runs a node until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// When something it needs cannot be had.
pub fn run(config: Config) -> Result<(), StartError> {
    let end = CancellationToken::new();
    let signalled = end.clone();
    let lifetime = Lifetime { end, ready: Box::new(|| {}) };
    block_on(async move {
        let signals = async {
            wait_for_signal().await;
            signalled.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            served = serve(config, lifetime) => served,
            () = signals => unreachable!("waits for ever"),
        }
    })
}

/// Runs a node on this thread until its lifetime ends.
///
/// # Errors
///
/// As [`run`].
pub fn run_until(config: Config, lifetime: Lifetime) -> Result<(), StartError> {
    block_on(serve(config, lifetime))
}

fn block_on(serve: impl Future<Output = Result<(), StartError>>) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(StartError::Runtime)?;
    runtime.block_on(serve)
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => {
            // Without a handler the default of SIGTERM, to end at once, is what is left.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Longest wait for the source at the start of a node without a catalog.
const SOURCE_PATIENCE: Duration = Duration::from_secs(5);

async fn serve(config: Config, lifetime: Lifetime) -> Result<(), StartError> {
    let started = Instant::now();
    let drain = config.timeouts.drain;

    // === start ===
    let (inventory, apps) = Control::open(control::inventory::Config {
        storage: config.storage.directory.clone(),
        apps: config.inventory.directory.clone(),
    })
    .map_err(StartError::Inventory)?;
    let certificates =
        Certificates::open(&config.certificates.directory).map_err(StartError::Certificates)?;
    let edge = build_edge(config, &certificates)?;
    let (restored, source) = (apps.len(), inventory.status());
    // The catalog serves before the source has answered.
    edge.inventory.apply_all(apps.into_iter().map(control::snapshot::Change::Upsert));
    let admin = Admin::bind(&edge.config.admin).map_err(StartError::Admin)?;
    let threads = Threads::start(&edge).map_err(StartError::Worker)?;
    let mesh_stop = CancellationToken::new();
    if let Some(mesh) = &edge.config.mesh {
        let socket = sockets::bind(mesh.address, edge.config.listen.backlog)
            .map_err(StartError::MeshAddress)?;
        threads.listen(Listening { socket, kind: Kind::Peers, stop: mesh_stop.clone() });
    }

    let background = Background::new(lifetime.end.clone());
    background.export(&edge.registry);
    let view = Arc::new(NodeView::new(&edge, source.clone(), certificates.clone(), started));
    {
        let inventory_of = edge.inventory.clone();
        let apply = move |change| inventory_of.apply(change);
        background.spawn("inventory", inventory.run(apply, background.stop.clone()));
    }
    background.spawn("certificates", certificates.watch(background.stop.clone()));
    background.spawn("health checks", health::run(edge.inventory.clone(), background.stop.clone()));
    if let Some(mesh) = &edge.mesh {
        background.spawn("mesh certificates", mesh.clone().watch(background.stop.clone()));
        background
            .spawn("probes", probe::run(edge.nodes.clone(), mesh.clone(), background.stop.clone()));
    }
    background.spawn("admin", admin.run(view.clone(), background.stop.clone()));
    // A node that has never run knows no app until the source has answered.
    if restored == 0 {
        wait_for_source(&source).await;
    }
    let listening = CancellationToken::new();
    let mut sockets = Sockets::new(&edge.config.listen, edge.inventory.ports());
    sockets.follow(&mut |listening| threads.listen(listening));
    let give = threads.giver();
    let accepting = background.tasks.spawn_local(sockets.run(give, listening.clone()));

    view.set_ready();
    tracing::info!(node = %edge.config.node.id, region = %edge.config.node.region, "ready");
    (lifetime.ready)();
    lifetime.end.cancelled().await;

    // === stop, in reverse ===
    tracing::info!(deadline_seconds = drain.as_secs_f64(), "draining");
    view.set_draining();
    listening.cancel();
    mesh_stop.cancel();
    if accepting.await.is_err() {
        tracing::error!("the task of the listening sockets has failed");
    }
    let report = threads.drain(drain).await;
    let left = background.end().await;
    say_goodbye(&report, left, &edge);
    Ok(())
}

/// The control thread's tasks. All are needed: when one ends before it is asked to, the node drains
/// rather than go on with what it cannot know to be stale.
struct Background {
    tasks: TaskTracker,
    stop: CancellationToken,
    end_of_node: CancellationToken,
}

/// Longest wait for background tasks to end.
const BACKGROUND_END: Duration = Duration::from_secs(5);

impl Background {
    fn new(end_of_node: CancellationToken) -> Self {
        Self { tasks: TaskTracker::new(), stop: CancellationToken::new(), end_of_node }
    }

    fn export(&self, registry: &Registry) {
        let (tasks, help) = (self.tasks.clone(), "Tasks that have not ended, by kind.");
        registry.gauge_read("ferrule_tasks", help, &[("kind", "background")], move || {
            tasks.len() as f64
        });
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let (stop, end_of_node) = (self.stop.clone(), self.end_of_node.clone());
        let task = self.tasks.spawn_local(task);
        self.tasks.spawn_local(async move {
            let ended = task.await;
            if ended.is_err() || !stop.is_cancelled() {
                tracing::error!(task = name, panicked = ended.is_err(), "a task ended unasked");
                end_of_node.cancel();
            }
        });
    }

    /// Asks every task to end, and says how many did not.
    async fn end(self) -> usize {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(BACKGROUND_END, self.tasks.wait()).await.is_err() {
            tracing::error!(left = self.tasks.len(), "background tasks do not end");
        }
        self.tasks.len()
    }
}

/// Waits until the source has been read once; a source that is silent is no reason not to serve.
async fn wait_for_source(source: &control::inventory::Status) {
    let deadline = Instant::now() + SOURCE_PATIENCE;
    while !source.is_synced() {
        if Instant::now() >= deadline {
            tracing::warn!("the source of the inventory has not answered; serving without it");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn build_edge(config: Config, certificates: &Arc<Certificates>) -> Result<Arc<Edge>, StartError> {
    let registry = Registry::new(config.node.workers, config.limits.metric_labels_max);
    telemetry::memory::export(&registry);
    let ledger = Ledger::new(registry.clone());
    let tls = Tls::new(certificates.clone(), &config.limits, &config.timeouts, &registry)
        .map_err(StartError::Tls)?;
    let mesh = match &config.mesh {
        Some(mesh) => {
            Some(Arc::new(MeshTls::load(mesh, &config.node.id).map_err(StartError::Mesh)?))
        }
        None => None,
    };
    let nodes = Arc::new(Nodes::new(config.mesh.as_ref()));
    let inventory =
        Arc::new(Inventory::new(&config.node, nodes.clone(), &config.limits, &registry));
    Ok(Arc::new(Edge {
        metrics: Metrics::new(&registry),
        identity: Identity::new(&config.node.region),
        requests: NodeLimits::new(&config.limits, &registry),
        connections: Connections::new(config.limits.connections_max),
        mesh_handshakes: Connections::new(config.limits.handshakes_in_flight_max / 4 + 1),
        nodes,
        inventory,
        tls,
        mesh,
        ledger,
        registry,
        config,
    }))
}

/// The closing line: what was left, which must be nothing.
fn say_goodbye(report: &Report, background: usize, edge: &Edge) {
    let Report { tasks, connections, cut } = report;
    let permits = edge.inventory.permits_in_use();
    let tasks = tasks + background;
    tracing::info!(tasks, connections, permits, cut, "stopped");
}
