//! Builds every long-lived object of a node, in order, and takes it down again in reverse.
//!
//! | thread | runs |
//! |---|---|
//! | the caller's (control) | inventory, certificates, health checks, probes, sockets, admin |
//! | `worker-N` | a core's connections ([`crate::worker`]) |
//! | `ferrule-catalog` | SQLite's one writer |
//! | `ferrule-source` | reading the folder of apps |
//! | `sampler`, `gauges` | how full memory is, every 10 ms and every second |
//! | `watch` | memory pressure, and whether every thread comes back from its polls |
//! | `join` | joining the workers at the end, so that admin answers meanwhile |

mod dial;
mod doors;
mod memory;
mod observe;
mod survival;
mod threads;
mod watch;
mod verbosity;
mod view;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control::inventory::{Control, OpenError};
use control::snapshot::Change;
use ebpf_filter::FilterError;
use telemetry::budget::Shares;
use telemetry::heapwatch::{Reason, tagged};
use telemetry::ledger::Ledger;
use telemetry::ledger::scope::{HEALTH, INVENTORY, PROCESS};
use telemetry::metrics::Registry;
use telemetry::pressure::Pressure;
use telemetry::record;
use telemetry::service;
use telemetry::verbosity::{KeyError, Verbosity};
use telemetry::watchdog::{self, capture};
use telemetry::work::Board;
use tokio::runtime::LocalOptions;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::doors::Closed;
pub use self::doors::SteerError;
use self::observe::{ObserveError, Observers};
use self::survival::Survival;
use self::threads::{Report, Threads};
use self::view::NodeView;
use self::watch::{Subject, Watch};
use crate::admin::{self, Admin};
use crate::balance::node::NodeLimits;
use crate::config::Config;
use crate::edge::{Connections, Edge};
use crate::filter::Filter;
use crate::health;
use crate::http::forward::Identity;
use crate::inventory::Inventory;
use crate::listener::{Listening, sockets};
use crate::metrics::{Metrics, catalogue};
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
    #[error("requests cannot be recorded")]
    Records(#[source] record::ConfigError),
    #[error("the keys of verbosity tokens cannot be had")]
    Keys(#[source] KeyError),
    #[error("nobody can watch the workers")]
    Watch(#[source] io::Error),
    #[error("telemetry cannot be read")]
    Observe(#[source] ObserveError),
    #[error("the kernel's filter cannot be had as configured")]
    Filter(#[source] FilterError),
    #[error("connections cannot be steered")]
    Steer(#[source] SteerError),
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
    let survival = Survival::begin(&config);
    let end = CancellationToken::new();
    let signalled = end.clone();
    let lifetime = Lifetime { end, ready: Box::new(|| {}) };
    let served = block_on(async {
        let signals = async {
            wait_for_signal().await;
            signalled.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            served = serve(config, lifetime, &survival) => served,
            () = signals => unreachable!("waits for ever"),
        }
    });
    match &served {
        Ok(()) => survival.end(),
        Err(_) => survival.withdraw(),
    }
    served
}

/// Runs a node on this thread until its lifetime ends.
///
/// # Errors
///
/// As [`run`].
pub fn run_until(config: Config, lifetime: Lifetime) -> Result<(), StartError> {
    let survival = Survival::without_black_box(&config);
    block_on(serve(config, lifetime, &survival))
}

fn block_on(serve: impl Future<Output = Result<(), StartError>>) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(StartError::Runtime)?;
    let served = runtime.block_on(serve);
    // What may still be on a blocking thread is a child that looks up names; nobody waits for it.
    runtime.shutdown_background();
    served
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

async fn serve(
    mut config: Config,
    lifetime: Lifetime,
    survival: &Survival,
) -> Result<(), StartError> {
    let started = Instant::now();
    let drain = config.timeouts.drain;

    // === start ===
    let limit = survival.readings().map_or(0, |readings| readings.limit());
    config.telemetry.stay_within(Shares::of(limit));
    let (inventory, apps) = Control::open(control::inventory::Config {
        storage: config.storage.directory.clone(),
        apps: config.inventory.directory.clone(),
    })
    .map_err(StartError::Inventory)?;
    let certificates =
        Certificates::open(&config.certificates.directory).map_err(StartError::Certificates)?;
    let edge = build_edge(config, &certificates)?;
    survival.attach(&edge);
    let heapwatch = memory::watch(&edge, survival.readings().cloned());
    let (restored, source) = (apps.len(), inventory.status());
    // The catalog serves before the source has answered.
    {
        let _working = INVENTORY.enter();
        edge.inventory.apply_all(apps.into_iter().map(Change::Upsert));
    }
    let observers = Observers::start(&edge).map(Arc::new).map_err(StartError::Observe)?;
    let admin = Admin::bind(&edge.config.admin).map_err(StartError::Admin)?;
    if let Some(last_exit) = survival.last_exit() {
        observers.log(last_exit);
    }
    // After the socket: whoever answers there already has the pins.
    let filter = Filter::open(&edge.config, edge.inventory.clone(), &edge.registry, &edge.ledger);
    let filter = Arc::new(filter.map_err(StartError::Filter)?);
    let doors = Closed::prepare(&edge).map_err(StartError::Steer)?;
    let mut threads = Threads::start(&edge).map_err(StartError::Worker)?;
    let watch = {
        let control = watchdog::Thread {
            name: "control".to_owned(),
            runtime: tokio::runtime::Handle::current().metrics(),
            thread: capture::Thread::current(),
        };
        let subject = Subject {
            edge: edge.clone(),
            readings: survival.readings().cloned(),
            threads: threads.watched().into_iter().chain([control]).collect(),
            remote: threads.remote(),
            snapshot: {
                let heapwatch = heapwatch.clone();
                Box::new(move |_| heapwatch.ask_for_snapshot(Reason::Pressure))
            },
            drain: lifetime.end.clone(),
        };
        Watch::start(subject).map_err(StartError::Watch)?
    };
    let mesh_stop = CancellationToken::new();
    if let Some(mesh) = &edge.config.mesh {
        let socket = sockets::bind(mesh.address, edge.config.listen.backlog)
            .map_err(StartError::MeshAddress)?;
        threads.listen(Listening::peers(socket, mesh_stop.clone()));
    }

    let background = Background::new(lifetime.end.clone());
    background.export(&edge.registry);
    let view = Arc::new(NodeView::new(
        &edge,
        view::Parts {
            observers: observers.clone(),
            source: source.clone(),
            certificates: certificates.clone(),
            filter: filter.clone(),
            heapwatch: heapwatch.clone(),
            last_exit: survival.last(),
            readings: survival.readings().cloned(),
            started,
        },
    ));
    {
        let (inventory_of, filter) = (edge.inventory.clone(), filter.clone());
        let apply = move |change: Change| {
            let app = change.app().clone();
            inventory_of.apply(change);
            filter.changed(&app);
        };
        background
            .spawn("inventory", INVENTORY.part(inventory.run(apply, background.stop.clone())));
    }
    background.spawn("certificates", certificates.watch(background.stop.clone()));
    let health = health::run(edge.inventory.clone(), background.stop.clone());
    background.spawn("health checks", HEALTH.part(health));
    if let Some(mesh) = &edge.mesh {
        background.spawn("mesh certificates", mesh.clone().watch(background.stop.clone()));
        background
            .spawn("probes", probe::run(edge.nodes.clone(), mesh.clone(), background.stop.clone()));
    }
    background.spawn("metrics", sweep(edge.registry.clone(), background.stop.clone()));
    background.spawn("hangups", observe::follow_hangup(observers.clone(), background.stop.clone()));
    background.spawn("heapwatch", heapwatch.clone().run(background.stop.clone().cancelled_owned()));
    background.spawn("snapshots", memory::keep(heapwatch.clone(), background.stop.clone()));
    background.spawn("verbosity", verbosity::run(edge.clone(), background.stop.clone()));
    background.spawn("admin", admin.run(view.clone(), view.clone(), background.stop.clone()));
    // A node that has never run knows no app until the source has answered.
    if restored == 0 {
        wait_for_source(&source).await;
    }
    {
        let _working = INVENTORY.enter();
        filter.start();
    }
    background.spawn("filter", INVENTORY.part(filter.clone().run(background.stop.clone())));
    let listening = CancellationToken::new();
    let mut give = threads.giver();
    let doors = doors.open(&mut give).map_err(StartError::Steer)?;
    view.set_ready(&doors);
    tracing::info!(
        node = %edge.config.node.id,
        region = %edge.config.node.region,
        listen = doors.mode(),
        filter = filter.mode(),
        "ready"
    );
    let accepting = doors.run(give, edge.inventory.ports(), listening.clone());
    let accepting = background.tasks.spawn_local(accepting);
    // Whatever nobody else has booked by now is what a node consists of.
    PROCESS.take_what_is_there();
    service::ready(&format!("listen {}, filter {}", view.listen_mode(), filter.mode()));
    (lifetime.ready)();
    lifetime.end.cancelled().await;

    // === stop, in reverse ===
    tracing::info!(deadline_seconds = drain.as_secs_f64(), "draining");
    view.set_draining();
    service::stopping();
    // What goes wrong in a drain is rarely seen otherwise.
    edge.records.note_anomaly();
    // What leaked is gone with the process, so it is written down while everything is still held.
    heapwatch.write_down(Reason::Drain);
    listening.cancel();
    mesh_stop.cancel();
    if accepting.await.is_err() {
        tracing::error!("the task of the listening sockets has failed");
    }
    let report = threads.drain(drain).await;
    let left = background.end().await;
    drop(watch);
    say_goodbye(&report, &left, &edge);
    observers.end(); // last, so that the drain is reported
    Ok(())
}

/// The control thread's tasks. All are needed: when one ends before it is asked to, the node drains
/// rather than go on with what it cannot know to be stale.
struct Background {
    tasks: TaskTracker,
    /// Names of those that have not ended.
    alive: Rc<RefCell<Vec<&'static str>>>,
    stop: CancellationToken,
    end_of_node: CancellationToken,
}

/// Longest wait for background tasks to end.
const BACKGROUND_END: Duration = Duration::from_secs(5);

impl Background {
    fn new(end_of_node: CancellationToken) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { tasks, alive: Rc::default(), stop, end_of_node }
    }

    fn export(&self, registry: &Registry) {
        let tasks = self.tasks.clone();
        catalogue::TASKS.gauge_read_in(registry, &["background"], move || tasks.len() as f64);
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let (stop, end_of_node) = (self.stop.clone(), self.end_of_node.clone());
        let task = self.tasks.spawn_local(tagged(memory::charge(name), 0, task));
        self.alive.borrow_mut().push(name);
        let alive = self.alive.clone();
        self.tasks.spawn_local(async move {
            let ended = task.await;
            alive.borrow_mut().retain(|alive| *alive != name);
            if ended.is_err() || !stop.is_cancelled() {
                tracing::error!(task = name, panicked = ended.is_err(), "a task ended unasked");
                end_of_node.cancel();
            }
        });
    }

    /// Asks every task to end, and names those that do not.
    async fn end(self) -> Vec<&'static str> {
        self.stop.cancel();
        self.tasks.close();
        drop(tokio::time::timeout(BACKGROUND_END, self.tasks.wait()).await);
        self.alive.take()
    }
}

/// How often metrics that idle are looked for; one is evicted by so much later than it may be.
const SWEEP: Duration = Duration::from_secs(60);

/// Evicts metrics of apps that idle.
async fn sweep(registry: Registry, stop: CancellationToken) {
    while tokio::time::timeout(SWEEP, stop.cancelled()).await.is_err() {
        registry.sweep(Instant::now().into_std());
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
    let metrics = telemetry::metrics::Config {
        labels_max: config.limits.metric_labels_max,
        series_max: config.limits.metric_series_max,
        idle: config.timeouts.metric_idle,
    };
    let registry = Registry::open(config.node.workers, metrics, catalogue::ALL);
    telemetry::memory::export(&registry);
    let ledger = Ledger::of_process(registry.clone());
    let tls = Tls::new(certificates.clone(), &config.limits, &config.timeouts, &registry)
        .map_err(StartError::Tls)?;
    let mesh = match &config.mesh {
        Some(mesh) => {
            Some(Arc::new(MeshTls::load(mesh, &config.node.id).map_err(StartError::Mesh)?))
        }
        None => None,
    };
    let verbosity = Verbosity::open(&config.telemetry.verbosity, &registry, &ledger);
    let verbosity = Arc::new(verbosity.map_err(StartError::Keys)?);
    verbosity::export(&verbosity, &registry);
    let records = record::Shared::new(
        config.telemetry.records.clone(),
        config.node.workers,
        &registry,
        &ledger,
    )
    .map_err(StartError::Records)?;
    let nodes = Arc::new(Nodes::new(config.mesh.as_ref()));
    let lines_max =
        config.limits.connections_max.saturating_add(config.limits.requests_in_flight_max);
    let (node, listen, limits) = (&config.node, &config.listen, &config.limits);
    let inventory = Arc::new(Inventory::new(node, listen, nodes.clone(), limits, &registry));
    Ok(Arc::new(Edge {
        metrics: Metrics::new(&registry),
        identity: Identity::new(&config.node.region),
        requests: NodeLimits::new(&config.limits, &registry),
        connections: Connections::new(config.limits.connections_max),
        mesh_handshakes: Connections::new(config.limits.handshakes_in_flight_max / 4 + 1),
        nodes,
        records,
        verbosity,
        pressure: Pressure::default(),
        board: Board::new(config.node.workers, lines_max),
        inventory,
        tls,
        mesh,
        ledger,
        registry,
        config,
    }))
}

/// The closing lines: what was left, by name, which must be nothing.
fn say_goodbye(report: &Report, background: &[&'static str], edge: &Edge) {
    let Report { tasks: of_workers, connections, cut } = report;
    let permits = edge.inventory.permits_in_use();
    let tasks = of_workers.values().sum::<usize>() + background.len();
    let lines = edge.board.lines(usize::MAX).len();
    let sockets = telemetry::process::sockets();
    tracing::info!(tasks, connections, permits, cut, lines, sockets, "stopped");
    for (name, count) in of_workers {
        tracing::error!(name, count, "tasks of workers did not end");
    }
    for name in background {
        tracing::error!(name, "a task of control did not end");
    }
}
