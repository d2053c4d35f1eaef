//! Builds every long-lived object of a node, in order, until it serves.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use control::inventory::Control;
use control::snapshot::Change;
use telemetry::budget::Shares;
use telemetry::heapwatch::Reason;
use telemetry::ledger::Ledger;
use telemetry::ledger::scope::{HEALTH, INVENTORY, PROCESS};
use telemetry::metrics::Registry;
use telemetry::pressure::Pressure;
use telemetry::record;
use telemetry::service;
use telemetry::shared_counts::{Count, Counts, Key};
use telemetry::verbosity::Verbosity;
use telemetry::watchdog::{self, capture};
use telemetry::work::Board;
use tokio::sync::mpsc;
use tokio::sync::watch as state;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::background::Background;
use super::doors::{Closed, PeerDoor};
use super::observe::Observers;
use super::succession::Succession;
use super::survival::Survival;
use super::threads::Threads;
use super::view::NodeView;
use super::watch::{Subject, Watch};
use super::{
    Node, Process, StartError, carried, drain, leash, memory, observe, signals, verbosity, view,
    warm,
};
use crate::admin::status::Generation;
use crate::admin::{Admin, Hours, Visitors};
use crate::balance::node::NodeLimits;
use crate::config::Config;
use crate::drain::Drain;
use crate::edge::{Connections, Edge};
use crate::filter::Filter;
use crate::handoff::manifest::{Manifest, Step};
use crate::handoff::successor::{Inheritance, Verdict};
use crate::handoff::{Legacy, stored};
use crate::health;
use crate::http::forward::Identity;
use crate::inventory::Inventory;
use crate::listener::Stance;
use crate::metrics::{Metrics, catalogue};
use crate::nodes::Nodes;
use crate::probe;
use crate::tls::{Certificates, MeshTls, Tls};

/// Longest wait for the source at the start of a node without a catalog.
const SOURCE_PATIENCE: Duration = Duration::from_secs(5);

/// How often metrics that idle are looked for; one is evicted by so much later than it may be.
const SWEEP: Duration = Duration::from_secs(60);

impl Node {
    /// # Errors
    ///
    /// When something it needs cannot be had. Nothing was left behind.
    pub(super) async fn start(
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
            let needed = carried::learn(&edge, knowledge);
            manifest.tickets.iter().for_each(|keys| edge.tls.adopt_ticket_keys(keys));
            (manifest, needed, predecessor)
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
        let stop = background.stop.clone();
        background.spawn("drain", drain::run(edge.clone(), remote.clone(), stop));
        let upgrades = signals::upgrade(succession.clone(), upgrades, background.stop.clone());
        background.spawn("upgrades", upgrades);
        // A node that has never run knows no app until the source has answered. A successor has to know
        // at least what its predecessor knows, whatever is in the catalog.
        if restored == 0 || predecessor.is_some() {
            wait_for_source(&source).await;
        }
        if let Some((Manifest { apps: expected, drained, .. }, needed, predecessor)) = &predecessor
        {
            // Maintenance outlasts an upgrade.
            if let Some(since) = drained {
                edge.drain.begin(*since);
            }
            let (known, expected) = (edge.inventory.entries().len() as u64, *expected);
            if known < expected && !source.is_synced() {
                return Err(StartError::Behind { known, expected });
            }
            predecessor.at(Step::Loaded).await;
            // No more than half of what is left, for to be ready late is to fail.
            let left = patience.saturating_sub(started.elapsed()) / 2;
            warm::connect(&remote, needed, left.min(edge.config.timeouts.handoff_warm)).await;
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
            Some((.., predecessor)) => {
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
            Some((.., predecessor)) => {
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
