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

mod background;
mod carried;
mod commands;
mod dial;
mod doors;
mod drain;
mod leash;
mod memory;
mod observe;
mod report;
mod signals;
mod succession;
mod survival;
mod threads;
mod watch;
mod verbosity;
mod view;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use control::inventory::{Control, OpenError};
use control::snapshot::Change;
use ebpf_filter::FilterError;
use telemetry::budget::Shares;
use telemetry::heapwatch::{Heapwatch, Reason};
use telemetry::ledger::Ledger;
use telemetry::ledger::scope::{HEALTH, INVENTORY, PROCESS};
use telemetry::metrics::Registry;
use telemetry::pressure::Pressure;
use telemetry::record;
use telemetry::service;
use telemetry::shared_counts::{Count, Counts, Key};
use telemetry::verbosity::{KeyError, Verbosity};
use telemetry::watchdog::{self, capture};
use telemetry::work::Board;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;
use tokio::sync::watch as state;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::background::Background;
pub use self::doors::SteerError;
use self::doors::{Closed, PeerDoor};
use self::observe::{ObserveError, Observers};
use self::succession::{Ask, Succession};
use self::survival::Survival;
use self::threads::{Report, Threads};
use self::view::NodeView;
use self::watch::{Subject, Watch};
use crate::admin::status::Generation;
use crate::admin::upgrade::Outcome;
use crate::admin::{self, Admin, Hours, Visitors};
use crate::balance::node::NodeLimits;
use crate::config::Config;
use crate::drain::{Class, Deadlines, Drain};
use crate::edge::{Connections, Edge};
use crate::filter::Filter;
use crate::handoff::manifest::{Draining, Manifest, Step};
use crate::handoff::predecessor::{HandoffError, Heir, Progress, Start, Will};
use crate::handoff::successor::{Claim, ClaimError, Inheritance, Predecessor, Verdict};
use crate::handoff::{Held, Legacy, stored};
use crate::health;
use crate::http::forward::Identity;
use crate::inventory::Inventory;
use crate::listener::{Stance, sockets};
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
    #[error("there is no memory for shared counts")]
    Counts(#[source] io::Error),
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
    #[error("the end of whoever started the node cannot be followed")]
    Leash(#[source] io::Error),
    #[error("nothing can be taken over")]
    Claim(#[source] ClaimError),
    #[error("of {expected} apps only {known} are known, and the source has not answered")]
    Behind { known: u64, expected: u64 },
}

/// When a node should end, and whom to tell that it serves.
pub struct Lifetime {
    /// Cancelled: drain, then stop.
    pub end: CancellationToken,
    /// Cancelled: stop now, whatever is left.
    pub hurry: CancellationToken,
    /// Called once the node is ready.
    pub ready: Box<dyn FnOnce() + Send>,
}

/// What a process of a node is, beside the node.
#[derive(Default)]
pub struct Process {
    /// How its successor is started; absent where it cannot have one.
    pub start: Option<Start>,
    /// What it takes over from its predecessor.
    pub claim: Option<Arc<Claim>>,
    /// What ends with whoever started it.
    pub leash: Option<OwnedFd>,
}

/// Runs a node until SIGTERM or Ctrl-C, or until a successor has taken over.
///
/// # Errors
///
/// When something it needs cannot be had.
pub fn run(config: Config, process: Process) -> Result<(), StartError> {
    let survival = Survival::begin(&config);
    let end = CancellationToken::new();
    let (upgrade, upgrades) = mpsc::channel(1);
    let hurry = CancellationToken::new();
    let lifetime = Lifetime { end: end.clone(), hurry: hurry.clone(), ready: Box::new(|| {}) };
    let served = block_on(async {
        tokio::select! {
            served = serve(config, process, lifetime, upgrades, &survival) => served,
            () = signals::follow(end, hurry, upgrade) => unreachable!("waits for ever"),
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
    let (_nobody, upgrades) = mpsc::channel(1);
    block_on(serve(config, Process::default(), lifetime, upgrades, &survival))
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

async fn serve(
    config: Config,
    process: Process,
    lifetime: Lifetime,
    upgrades: mpsc::Receiver<()>,
    survival: &Survival,
) -> Result<(), StartError> {
    let Lifetime { end, hurry, ready } = lifetime;
    let mut node = Node::start(config, process, upgrades, &end, survival).await?;
    ready();
    let ending = node.serve(&end).await;
    node.stop(ending, &hurry).await;
    Ok(())
}

/// A node that serves.
struct Node {
    edge: Arc<Edge>,
    succession: Arc<Succession>,
    asks: mpsc::Receiver<Ask>,
    legacy: Legacy,
    /// Whether clients, peers and operators are let in.
    stance: state::Sender<Stance>,
    /// Who is waiting for a page.
    visitors: Visitors,
    view: Arc<NodeView>,
    observers: Arc<Observers>,
    heapwatch: Heapwatch,
    background: Background,
    predecessor: Option<Rc<Predecessor>>,
    watch: Watch,
    threads: Threads,
    doors: Vec<JoinHandle<()>>,
    /// Cancelled: nobody is let in any more.
    listening: CancellationToken,
    filter: Arc<Filter>,
    _leash: Option<Held>,
}

/// Why a node ends.
enum Ending {
    /// It was told to.
    Asked,
    /// Another process is the node.
    Succeeded(Box<Heir>),
}

/// Longest wait for those who scrape while the node is handed over.
const VISITORS_PATIENCE: Duration = Duration::from_millis(500);

/// Longest wait for the source at the start of a node without a catalog.
const SOURCE_PATIENCE: Duration = Duration::from_secs(5);

impl Node {
    async fn start(
        mut config: Config,
        process: Process,
        upgrades: mpsc::Receiver<()>,
        end: &CancellationToken,
        survival: &Survival,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        let Process { start, claim, leash } = process;
        let (patience, legacy) = (config.timeouts.handoff, Legacy::default());
        // Before anything is counted, for two generations count together.
        let counts = Counts::create(config.limits.shared_counts_max).map_err(StartError::Counts)?;
        let (mut inherited, predecessor) = match claim {
            Some(claim) => {
                service::keep_silent();
                let inheritance =
                    claim.assert(&counts, patience).await.map_err(StartError::Claim)?;
                let Inheritance { manifest, knowledge, sockets, predecessor } = inheritance;
                (sockets, Some((manifest, knowledge, Rc::new(predecessor))))
            }
            None => (stored::inherited(), None),
        };
        let leash = match leash.or_else(|| inherited.leash()) {
            Some(leash) => Some(leash::follow(leash, &legacy).map_err(StartError::Leash)?),
            None => None,
        };
        let generation = predecessor.as_ref().map_or(1, |(manifest, ..)| manifest.generation + 1);
        let (succession, asks) = Succession::new(generation, start);

        let limit = survival.readings().map_or(0, |readings| readings.limit());
        config.telemetry.stay_within(Shares::of(limit));
        let (inventory, apps) = Control::open(control::inventory::Config {
            storage: config.storage.directory.clone(),
            apps: config.inventory.directory.clone(),
            shared: predecessor.is_some(),
        })
        .map_err(StartError::Inventory)?;
        let certificates =
            Certificates::open(&config.certificates.directory).map_err(StartError::Certificates)?;
        let edge = build_edge(config, counts, &certificates)?;
        survival.attach(&edge);
        let heapwatch = memory::watch(&edge, survival.readings().cloned());
        let (restored, source) = (apps.len(), inventory.status());
        // The catalog serves before the source has answered.
        {
            let _working = INVENTORY.enter();
            edge.inventory.apply_all(apps.into_iter().map(Change::Upsert));
        }
        let predecessor = predecessor.map(|(manifest, knowledge, predecessor)| {
            // Known before anybody can ask for a successor of this one.
            let other = Generation {
                pid: manifest.pid,
                generation: manifest.generation,
                state: "draining".to_owned(),
                ..Generation::default()
            };
            succession.set_other(Some(other), &edge.registry);
            carried::learn(&edge, knowledge);
            manifest.tickets.iter().for_each(|keys| edge.tls.adopt_ticket_keys(keys));
            (manifest, predecessor)
        });
        let observers = Observers::start(&edge).map(Arc::new).map_err(StartError::Observe)?;
        let admin = Admin::bind(&edge.config.admin, &mut inherited, &legacy);
        let admin = admin.map_err(StartError::Admin)?;
        if let Some(last_exit) = survival.last_exit() {
            observers.log(last_exit);
        }
        // After the socket: whoever answers there already has the pins, unless this is its successor.
        let filter =
            Filter::open(&edge.config, edge.inventory.clone(), &edge.registry, &edge.ledger);
        let filter = Arc::new(filter.map_err(StartError::Filter)?);
        let doors = Closed::prepare(&edge, &mut inherited, &legacy).map_err(StartError::Steer)?;
        let peer_door = match &edge.config.mesh {
            Some(mesh) => {
                let backlog = edge.config.listen.backlog;
                let door = PeerDoor::open(mesh.address, backlog, &mut inherited, &legacy);
                Some(door.map_err(StartError::MeshAddress)?)
            }
            None => None,
        };
        let mut threads = Threads::start(&edge).map_err(StartError::Worker)?;
        let remote = threads.remote();
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
                remote: remote.clone(),
                snapshot: {
                    let heapwatch = heapwatch.clone();
                    Box::new(move |_| heapwatch.ask_for_snapshot(Reason::Pressure))
                },
                drain: end.clone(),
            };
            Watch::start(subject).map_err(StartError::Watch)?
        };

        let background = Background::new(end.clone());
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
                succession: succession.clone(),
            },
        ));
        let (stance, _) = state::channel(Stance::Open);
        let visitors = Visitors::default();
        let open_admin = {
            let (stance, stop) = (stance.subscribe(), background.stop.clone());
            let hours = Hours { stance, stop, visitors: visitors.clone() };
            admin.run(view.clone(), view.clone(), hours)
        };
        // Until it is this process's turn, its predecessor answers for the node.
        let mut closed_admin = Some(open_admin);
        if predecessor.is_none() {
            background.spawn("admin", closed_admin.take().expect("it is still closed"));
        }
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
            let probes = probe::run(edge.nodes.clone(), mesh.clone(), background.stop.clone());
            background.spawn("probes", probes);
        }
        background.spawn("metrics", sweep(edge.registry.clone(), background.stop.clone()));
        let hangups = observe::follow_hangup(observers.clone(), background.stop.clone());
        background.spawn("hangups", hangups);
        let stopped = background.stop.clone().cancelled_owned();
        background.spawn("heapwatch", heapwatch.clone().run(stopped));
        background.spawn("snapshots", memory::keep(heapwatch.clone(), background.stop.clone()));
        background.spawn("verbosity", verbosity::run(edge.clone(), background.stop.clone()));
        background.spawn("drain", drain::run(edge.clone(), remote, background.stop.clone()));
        let upgrades = signals::upgrade(succession.clone(), upgrades, background.stop.clone());
        background.spawn("upgrades", upgrades);
        // A node that has never run knows no app until the source has answered. A successor has to know
        // at least what its predecessor knows, whatever is in the catalog.
        if restored == 0 || predecessor.is_some() {
            wait_for_source(&source).await;
        }
        if let Some((Manifest { apps: expected, drained, .. }, predecessor)) = &predecessor {
            // Maintenance outlasts an upgrade.
            if let Some(since) = drained {
                edge.drain.begin(*since);
            }
            let (known, expected) = (edge.inventory.entries().len() as u64, *expected);
            if known < expected && !source.is_synced() {
                return Err(StartError::Behind { known, expected });
            }
            predecessor.at(Step::Loaded).await;
        }
        {
            let _working = INVENTORY.enter();
            filter.start();
        }
        background.spawn("filter", INVENTORY.part(filter.clone().run(background.stop.clone())));
        let listening = CancellationToken::new();
        let mut give = threads.giver();
        let mut ready = Vec::new();
        let mut keep = |listening| ready.push(listening);
        let doors = doors.open(&edge, &mut keep, &mut inherited, &legacy);
        let doors = doors.map_err(StartError::Steer)?;
        view.set_ready(&doors);
        let (mode, status) =
            (doors.mode(), format!("listen {}, filter {}", doors.mode(), filter.mode()));
        // Nobody accepts before the node is this process's: until then its predecessor does, and what
        // this one had accepted would die with it if it did not come that far.
        let verdict = match &predecessor {
            Some((_, predecessor)) => {
                predecessor.at(Step::Ready).await;
                let verdict = predecessor.wait_for_go(&edge.registry, patience).await;
                verdict.map_err(StartError::Claim)?
            }
            None => Verdict::Go,
        };
        ready.into_iter().for_each(&mut give);
        let ports = edge.inventory.ports();
        let mut open = vec![{
            let doors = doors.run(give, ports, stance.subscribe(), listening.clone());
            background.tasks.spawn_local(doors)
        }];
        if let Some(door) = peer_door {
            let door = door.run(threads.giver(), stance.subscribe(), listening.clone());
            open.push(background.tasks.spawn_local(door));
        }
        let predecessor = match predecessor {
            Some((_, predecessor)) => {
                service::take_over(&status);
                legacy.store();
                background.spawn("admin", closed_admin.take().expect("it is opened once"));
                predecessor.at(Step::Serving).await;
                if verdict == Verdict::Gone {
                    tracing::warn!(pid = predecessor.pid, "the predecessor is gone");
                }
                Some(predecessor)
            }
            None => {
                service::ready(&status);
                None
            }
        };
        for place in inherited.close() {
            tracing::info!(%place, "an inherited socket is of no use any more and is closed");
            stored::forget(&place);
        }
        tracing::info!(
            node = %edge.config.node.id,
            region = %edge.config.node.region,
            listen = mode,
            filter = filter.mode(),
            generation,
            color = succession.color(),
            "ready"
        );
        // Whatever nobody else has booked by now is what a node consists of.
        PROCESS.take_what_is_there();
        let node = Self {
            edge,
            succession,
            asks,
            legacy,
            stance,
            visitors,
            view,
            observers,
            heapwatch,
            background,
            predecessor,
            watch,
            threads,
            doors: open,
            listening,
            filter,
            _leash: leash,
        };
        node.follow_predecessor();
        Ok(node)
    }

    /// Knows how the predecessor does, until it is gone.
    fn follow_predecessor(&self) {
        let Some(predecessor) = self.predecessor.clone() else { return };
        let (edge, succession) = (self.edge.clone(), self.succession.clone());
        let stop = self.background.stop.clone();
        self.background.spawn("predecessor", async move {
            let hear = |draining| succession.predecessor_drains(draining);
            let followed = stop.run_until_cancelled(predecessor.follow(&edge.registry, hear)).await;
            let Some(is_well) = followed else { return };
            let generation = predecessor.generation;
            if is_well {
                tracing::info!(generation, "the predecessor has ended");
            } else {
                tracing::warn!(generation, "the predecessor has ended without a word");
            }
            part(&edge);
            succession.set_other(None, &edge.registry);
            stop.cancelled().await;
        });
    }

    /// Serves until it is told to end, or another process does.
    async fn serve(&mut self, end: &CancellationToken) -> Ending {
        loop {
            let ask = tokio::select! {
                () = end.cancelled() => return Ending::Asked,
                ask = self.asks.recv() => ask.expect("the node has a sender itself"),
            };
            let reached = Cell::new(Step::Started);
            // Dropped when the node is told to end, it ends the successor.
            let handed = tokio::select! {
                () = end.cancelled() => None,
                handed = self.hand_over(&ask, &reached) => Some(handed),
            };
            match handed {
                None => {
                    ask.failed("the node was told to end".to_owned(), false);
                    return Ending::Asked;
                }
                Some(Ok(heir)) => {
                    let (pid, generation) = (heir.pid(), self.succession.generation() + 1);
                    let longest = Deadlines::new(&self.edge.config.timeouts).longest();
                    let old = self.draining(Instant::now() + longest);
                    ask.tell(Outcome::Serves { pid, generation, old });
                    return Ending::Succeeded(Box::new(heir));
                }
                Some(Err(error)) => {
                    let reason = telemetry::error::chain(&error);
                    tracing::error!(error = reason, "the node is not handed over");
                    self.take_up_again(reached.get());
                    ask.failed(reason, error.is_of_configuration());
                }
            }
        }
    }

    /// Gives everything to a successor, which is the node when this returns.
    async fn hand_over(&self, ask: &Ask, reached: &Cell<Step>) -> Result<Heir, HandoffError> {
        let timeouts = &self.edge.config.timeouts;
        let (patience, probation) = (timeouts.handoff, timeouts.handoff_probation);
        ask.tell(Outcome::Begins { seconds_max: (patience + probation).as_secs() + 1 });
        self.stance.send_replace(Stance::Fixed);
        let will = Will {
            counts: self.edge.counts.clone(),
            tickets: self.edge.tls.ticket_keys(),
            generation: self.succession.generation(),
            apps: self.edge.inventory.entries().len() as u64,
            knowledge: carried::gather(&self.edge),
            drained: self.edge.drain.state().since(),
            legacy: self.legacy.clone(),
        };
        let mut tell = |progress| {
            if let Progress::Successor { step } = progress {
                reached.set(step);
            }
            ask.tell(progress);
        };
        let heir = Heir::raise(&ask.start, will, patience, &mut tell).await?;
        self.stance.send_replace(Stance::Paused);
        service::hand_over();
        // Who scrapes now may get newer numbers than the successor will show at first: a counter that
        // goes back. So whoever is in gets them before they are handed over.
        drop(timeout(VISITORS_PATIENCE, self.visitors.gone()).await);
        heir.commit(probation, &self.edge.registry, &mut tell).await
    }

    /// As if nothing had been. What a successor that came so far may have touched is put back.
    fn take_up_again(&self, reached: Step) {
        part(&self.edge);
        let mode = self.view.listen_mode();
        let was_paused = *self.stance.borrow() == Stance::Paused;
        self.stance.send_replace(Stance::Open);
        if was_paused {
            service::take_over(&format!("listen {mode}, filter {}", self.filter.mode()));
            self.legacy.store();
        }
        if let Some(black_box) = telemetry::black_box::installed() {
            black_box.reclaim();
        }
        if reached < Step::Adopted {
            return;
        }
        if mode == "bind" {
            doors::stop_steering(&self.edge);
        }
        if let Err(error) = self.filter.take_back(&self.edge.config) {
            let error = telemetry::error::chain(&error);
            tracing::error!(error, "the filter is as the successor left it");
        }
    }

    fn draining(&self, deadline: Instant) -> Draining {
        draining(&self.edge, deadline)
    }

    /// In reverse.
    async fn stop(self, ending: Ending, hurry: &CancellationToken) {
        let Self {
            edge,
            succession,
            asks: _,
            legacy: _,
            stance,
            visitors: _,
            view,
            observers,
            heapwatch,
            background,
            predecessor,
            watch,
            threads,
            doors,
            listening,
            filter,
            _leash,
        } = self;
        let deadlines = Deadlines::new(&edge.config.timeouts);
        let (longest, generation) = (deadlines.longest(), succession.generation());
        tracing::info!(generation, deadline_seconds = longest.as_secs_f64(), "draining");
        succession.end();
        // What leaked is gone with the process, so it is written down while everything is still held.
        report::leaving(&edge, &heapwatch, &background.tasks);
        heapwatch.write_down(Reason::Drain);
        // What goes wrong in a drain is rarely seen otherwise.
        edge.records.note_anomaly();
        view.set_draining();
        if let Some(predecessor) = &predecessor {
            predecessor.farewell().await;
        }
        match &ending {
            Ending::Asked => {
                service::stopping();
                drain::leave(&edge, hurry).await;
            }
            Ending::Succeeded(_) => {
                stance.send_replace(Stance::Given);
                filter.give_away();
                edge.drain.fall_silent();
            }
        }
        listening.cancel();
        for door in doors {
            if door.await.is_err() {
                tracing::error!("the task of the listening sockets has failed");
            }
        }
        let report = match &ending {
            Ending::Asked => threads.drain(deadlines, hurry.clone()).await,
            Ending::Succeeded(heir) => {
                let deadline = Instant::now() + longest;
                tokio::select! {
                    report = threads.drain(deadlines, hurry.clone()) => report,
                    never = inform(heir, &edge, deadline) => match never {},
                }
            }
        };
        let left = background.end().await;
        drop(watch);
        say_goodbye(&report, &left, &edge, generation);
        observers.end(); // last, so that the drain is reported
        if let Ending::Succeeded(heir) = &ending {
            heir.farewell(&edge.registry).await;
        }
    }
}

fn draining(edge: &Edge, deadline: Instant) -> Draining {
    Draining {
        connections: u64::from(edge.connections.open()),
        requests: u64::from(edge.requests.in_flight()),
        seconds_left: (deadline - Instant::now()).as_secs(),
    }
}

/// The other process of the node is gone, and what it held is free.
fn part(edge: &Edge) {
    edge.counts.leave();
    edge.inventory.look_again_everywhere();
}

/// Tells the successor how this process drains.
async fn inform(heir: &Heir, edge: &Edge, deadline: Instant) -> std::convert::Infallible {
    heir.inform(&edge.registry, || draining(edge, deadline)).await;
    part(edge);
    std::future::pending().await
}

/// How often metrics that idle are looked for; one is evicted by so much later than it may be.
const SWEEP: Duration = Duration::from_secs(60);

/// Evicts metrics of apps that idle.
async fn sweep(registry: Registry, stop: CancellationToken) {
    while timeout(SWEEP, stop.cancelled()).await.is_err() {
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

fn build_edge(
    config: Config,
    counts: Arc<Counts>,
    certificates: &Arc<Certificates>,
) -> Result<Arc<Edge>, StartError> {
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
    counts.export(&registry, &ledger);
    let counted = |what: &str| counts.count(Key::of(&[what.as_bytes()]));
    let nodes = Arc::new(Nodes::new(config.mesh.as_ref()));
    let lines_max =
        config.limits.connections_max.saturating_add(config.limits.requests_in_flight_max);
    let (node, listen, limits) = (&config.node, &config.listen, &config.limits);
    let inventory = Inventory::new(node, listen, nodes.clone(), limits, counts.clone(), &registry);
    Ok(Arc::new(Edge {
        metrics: Metrics::new(&registry),
        identity: Identity::new(&config.node.region),
        requests: NodeLimits::new(&config.limits, counted("requests in flight"), &registry),
        connections: Connections::new(config.limits.connections_max, counted("connections")),
        mesh_handshakes: Connections::new(
            config.limits.handshakes_in_flight_max / 4 + 1,
            Count::private(),
        ),
        nodes,
        drain: Drain::default(),
        records,
        verbosity,
        pressure: Pressure::default(),
        hangs_ms: AtomicU64::default(),
        board: Board::new(config.node.workers, lines_max),
        inventory: Arc::new(inventory),
        counts,
        tls,
        mesh,
        ledger,
        registry,
        config,
    }))
}

/// The closing lines: what was left, by name, which must be nothing.
fn say_goodbye(report: &Report, background: &[&'static str], edge: &Edge, generation: u64) {
    let Report { tasks: of_workers, connections, cuts } = report;
    let permits = edge.inventory.permits_in_use();
    let tasks = of_workers.values().sum::<usize>() + background.len();
    let lines = edge.board.lines(usize::MAX).len();
    let sockets = telemetry::process::sockets();
    tracing::info!(
        tasks,
        connections,
        permits,
        cut = cuts.total(),
        cut_requests = cuts.of(Class::Request),
        cut_websockets = cuts.of(Class::WebSocket),
        cut_tcp = cuts.of(Class::Tcp),
        lines,
        sockets,
        generation,
        "stopped"
    );
    for (name, count) in of_workers {
        tracing::error!(name, count, "tasks of workers did not end");
    }
    for name in background {
        tracing::error!(name, "a task of control did not end");
    }
}
