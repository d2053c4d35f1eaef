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
mod error;
mod leash;
mod memory;
mod observe;
mod report;
mod signals;
mod start;
mod stop;
mod succession;
mod survival;
mod threads;
mod verbosity;
mod view;
mod warm;
mod watch;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use telemetry::heapwatch::Heapwatch;
use telemetry::service;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;
use tokio::sync::watch as state;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::background::Background;
pub use self::doors::SteerError;
pub use self::error::StartError;
use self::observe::Observers;
use self::succession::{Ask, Succession};
use self::survival::Survival;
use self::threads::Threads;
use self::view::NodeView;
use self::watch::Watch;
use crate::admin::Visitors;
use crate::admin::upgrade::Outcome;
use crate::config::Config;
use crate::drain::Deadlines;
use crate::edge::Edge;
use crate::filter::Filter;
use crate::handoff::manifest::{Draining, Step};
use crate::handoff::predecessor::{HandoffError, Heir, Progress, Start, Will};
use crate::handoff::successor::{Claim, Predecessor};
use crate::handoff::{Held, Legacy};
use crate::listener::Stance;

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

impl Node {
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
