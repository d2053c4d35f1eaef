//! The worker threads: started together, told to listen, drained together.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use telemetry::pressure::Level;
use telemetry::record::Recorder;
use telemetry::watchdog::{self, capture};
use telemetry::work::{Kind, Line, State};
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::Dialer;
use crate::drain::{Class, Cuts, Deadlines};
use crate::edge::Edge;
use crate::listener::{self, Listening, PLACED_MAX, Peer, Placed, Placement};
use crate::nodes::Node;
use crate::upstream::{MeshConnect, Upstreams};
use crate::worker::{Phase, Worker};

/// Every worker thread of a node.
pub(super) struct Threads {
    threads: Vec<Thread>,
    watched: Vec<watchdog::Thread>,
    next: Arc<AtomicUsize>,
}

/// A way to all workers for when memory is short; it outlives none of them.
#[derive(Clone)]
pub(super) struct Remote {
    commands: Arc<[mpsc::UnboundedSender<Command>]>,
}

struct Thread {
    commands: mpsc::UnboundedSender<Command>,
    handle: JoinHandle<Option<Report>>,
}

/// What control tells a worker. Unbounded, for only control and the watch send: one for each socket,
/// a few while memory is short, one for each word of an operator.
enum Command {
    Listen(Listening),
    /// Connect to nodes that will be needed.
    Warm(Warm),
    /// Drain, or serve again.
    Enter(Phase),
    /// Memory is short.
    GiveWay(Level),
    /// Memory is nearly gone: end the connection that holds most.
    ResetLargest,
    /// Drain and end.
    Leave(Leave),
}

/// Nodes to connect to, and whom to tell of each connection.
#[derive(Clone)]
struct Warm {
    nodes: Arc<[Arc<Node>]>,
    made: mpsc::Sender<()>,
}

/// How a worker drains for good.
#[derive(Clone)]
struct Leave {
    deadlines: Deadlines,
    /// Cancelled: what is left is cut at once.
    hurry: CancellationToken,
}

/// What was left when a worker, or all of them, ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// Tasks that did not end, by what they are of.
    pub(super) tasks: BTreeMap<&'static str, usize>,
    pub(super) connections: usize,
    /// What the deadlines ended.
    pub(super) cuts: Cuts,
}

/// Lines in the log about what one worker cuts.
const CUT_LINES_MAX: usize = 20;

/// After the deadline, how long what was cut may take to let go.
const LET_GO: Duration = Duration::from_secs(2);

// === impl Threads ===

impl Threads {
    pub(super) fn start(edge: &Arc<Edge>) -> io::Result<Self> {
        let count = edge.config.node.workers;
        let (peers, placed): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(PLACED_MAX);
                (Peer { placed: sender, load: Arc::new(AtomicU32::new(0)) }, receiver)
            })
            .unzip();
        let workers: Arc<[Peer]> = peers.into();
        let mut threads = Vec::with_capacity(count);
        let (shows, shown) = std::sync::mpsc::channel();
        for (own, placed) in placed.into_iter().enumerate() {
            let (commands, receiver) = mpsc::unbounded_channel();
            let placement = Placement { own, workers: workers.clone() };
            let edge = edge.clone();
            let shows = shows.clone();
            let run = move || run(own, edge, receiver, placed, placement, &shows);
            let handle = thread::Builder::new().name(format!("worker-{own}")).spawn(run)?;
            threads.push(Thread { commands, handle });
        }
        drop(shows);
        // One that cannot start shows nothing; the others' order is theirs.
        let mut watched: Vec<(usize, watchdog::Thread)> = shown.into_iter().take(count).collect();
        if watched.len() < count {
            return Err(io::Error::other("it has no runtime"));
        }
        watched.sort_by_key(|(own, _)| *own);
        let watched = watched.into_iter().map(|(_, watched)| watched).collect();
        Ok(Self { threads, watched, next: Arc::default() })
    }

    /// What each worker shows, in order; once.
    pub(super) fn watched(&mut self) -> Vec<watchdog::Thread> {
        std::mem::take(&mut self.watched)
    }

    pub(super) fn remote(&self) -> Remote {
        Remote { commands: self.threads.iter().map(|thread| thread.commands.clone()).collect() }
    }

    /// Gives each socket to the next worker in turn.
    pub(super) fn giver(&self) -> impl FnMut(Listening) + use<> {
        let commands: Vec<_> = self.threads.iter().map(|thread| thread.commands.clone()).collect();
        let next = self.next.clone();
        move |listening| {
            let index = next.fetch_add(1, Relaxed) % commands.len();
            if commands[index].send(Command::Listen(listening)).is_err() {
                tracing::error!(worker = index, "the worker is gone");
            }
        }
    }

    /// Lets every worker finish what began, and ends it; at once when `hurry` is cancelled.
    pub(super) async fn drain(self, deadlines: Deadlines, hurry: CancellationToken) -> Report {
        let (sender, receiver) = oneshot::channel();
        let leave = Leave { deadlines, hurry };
        for thread in &self.threads {
            // One that is gone is found out when it is joined.
            drop(thread.commands.send(Command::Leave(leave.clone())));
        }
        // Joining blocks, and control has to go on: admin answers while the node drains.
        let join = thread::Builder::new().name("join".to_owned()).spawn(move || {
            let report = self.threads.into_iter().fold(Report::default(), |sum, thread| {
                let report = thread.handle.join().ok().flatten().unwrap_or_else(|| {
                    tracing::error!("a worker ended by a panic");
                    Report::of_task("worker")
                });
                sum.and(report)
            });
            sender.send(report).ok(); // nobody waits if the runtime is gone
        });
        match (join, receiver.await) {
            (Ok(_), Ok(report)) => report,
            _ => Report::of_task("join"),
        }
    }
}

// === impl Report ===

impl Report {
    fn of_task(name: &'static str) -> Self {
        Self { tasks: BTreeMap::from([(name, 1)]), ..Self::default() }
    }

    fn and(mut self, other: Self) -> Self {
        for (name, count) in other.tasks {
            *self.tasks.entry(name).or_default() += count;
        }
        self.connections += other.connections;
        self.cuts = self.cuts.and(other.cuts);
        self
    }
}

// === impl Remote ===

impl Remote {
    /// Tells every worker that `level` was entered.
    pub(super) fn give_way(&self, level: Level) {
        self.tell(|| Command::GiveWay(level));
    }

    /// Has every worker connect to all of `nodes`: how many connections that makes, and who hears of
    /// each that is made, until none is under way.
    pub(super) fn warm(&self, nodes: &Arc<[Arc<Node>]>) -> (usize, mpsc::Receiver<()>) {
        let wanted = self.commands.len() * nodes.len();
        let (made, receiver) = mpsc::channel(wanted.max(1));
        let warm = Warm { nodes: nodes.clone(), made };
        self.tell(|| Command::Warm(warm.clone()));
        (wanted, receiver)
    }

    /// Asks every worker to end the connection that holds most of its memory.
    pub(super) fn reset_largest(&self) {
        self.tell(|| Command::ResetLargest);
    }

    /// Has every worker drain, or serve again.
    pub(super) fn enter(&self, phase: Phase) {
        self.tell(|| Command::Enter(phase));
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for commands in &*self.commands {
            drop(commands.send(command())); // one that has ended holds nothing
        }
    }
}

/// The life of one worker thread.
fn run(
    index: usize,
    edge: Arc<Edge>,
    commands: mpsc::UnboundedReceiver<Command>,
    placed: mpsc::Receiver<Placed>,
    placement: Placement,
    shows: &std::sync::mpsc::Sender<(usize, watchdog::Thread)>,
) -> Option<Report> {
    telemetry::shard::claim(index);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .inspect_err(|error| tracing::error!("a worker has no runtime: {error}"))
        .ok()?;
    let thread = capture::Thread::current();
    let name = format!("worker-{index}");
    let watched = watchdog::Thread { name, runtime: runtime.metrics(), thread };
    drop(shows.send((index, watched)));
    Some(runtime.block_on(serve(index, edge, commands, placed, placement)))
}

async fn serve(
    index: usize,
    edge: Arc<Edge>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    placed: mpsc::Receiver<Placed>,
    placement: Placement,
) -> Report {
    // Tasks of the upstream side end by themselves once the requests are over.
    let upstream_tasks = TaskTracker::new();
    let mesh = edge.mesh.clone().map(|mesh| {
        let timeout = edge.config.timeouts.connect;
        Arc::new(Dialer { mesh, timeout }) as Arc<dyn MeshConnect>
    });
    let worker = Worker::new(index, edge.clone(), |buffers| {
        Upstreams::new(
            &edge.config.limits,
            &edge.config.timeouts,
            upstream_tasks.clone(),
            buffers.clone(),
            mesh,
            &edge.registry,
            &edge.ledger,
        )
    });
    let stop = CancellationToken::new();
    let acceptors = TaskTracker::new();
    let keepers = TaskTracker::new();
    let load = placement.workers[placement.own].load.clone();
    keepers.spawn_local(until(stop.clone(), worker.alarms.clone().run()));
    // Ends when no worker accepts any more.
    let receiver = TaskTracker::new();
    receiver.spawn_local(listener::receive(placed, worker.clone(), load));
    {
        let (upstreams, stop) = (worker.upstreams.clone(), stop.clone());
        keepers.spawn_local(async move { upstreams.sweep(stop).await });
    }
    keepers.spawn_local(until(stop.clone(), sweep_records(worker.recorder.clone())));

    let listen = |listening| {
        acceptors.spawn_local(listener::accept(listening, worker.clone(), placement.clone()));
    };
    // Without control there is nothing to wait for.
    let leave = obey(&mut commands, &worker, listen)
        .await
        .unwrap_or_else(|| Leave { deadlines: Deadlines::none(), hurry: CancellationToken::new() });

    {
        let drained = async {
            acceptors.close();
            acceptors.wait().await;
            drop(placement);
            drain(index, &worker, &receiver, leave).await;
        };
        // Memory can run out in a drain as well.
        let obeying = async {
            while obey(&mut commands, &worker, drop).await.is_some() {}
            std::future::pending().await
        };
        tokio::select! {
            () = drained => {}
            () = obeying => {}
        }
    }
    worker.upstreams.close_idle();
    stop.cancel();
    for tracker in [&worker.streams, &keepers, &receiver, &upstream_tasks] {
        tracker.close();
        // What does not end is in the report.
        drop(timeout(LET_GO, tracker.wait()).await);
    }
    let tasks = [
        ("acceptor", &acceptors),
        ("keeper", &keepers),
        ("receiver", &receiver),
        ("stream", &worker.streams),
        ("upstream", &upstream_tasks),
    ];
    let left = tasks.into_iter().filter(|(_, tasks)| !tasks.is_empty());
    let tasks = left.map(|(name, tasks)| (name, tasks.len())).collect();
    Report { tasks, connections: worker.connections.len(), cuts: worker.cuts() }
}

/// Does what control and the watch ask for, until that is to leave; `None` when control is gone.
async fn obey(
    commands: &mut mpsc::UnboundedReceiver<Command>,
    worker: &Worker,
    mut listen: impl FnMut(Listening),
) -> Option<Leave> {
    loop {
        match commands.recv().await? {
            Command::Listen(listening) => listen(listening),
            Command::Warm(Warm { nodes, made }) => {
                let nodes = nodes.iter().cloned();
                nodes.for_each(|node| worker.upstreams.warm(node, made.clone()));
            }
            Command::GiveWay(level) => worker.give_way(level),
            Command::ResetLargest => worker.reset_largest(),
            Command::Enter(phase) => worker.enter(phase),
            Command::Leave(leave) => return Some(leave),
        }
    }
}

/// Finishes what began; what is left of a class at its deadline is cut.
async fn drain(index: usize, worker: &Rc<Worker>, receiver: &TaskTracker, leave: Leave) {
    let Leave { deadlines, hurry } = leave;
    let began = Instant::now();
    worker.leave();
    worker.upstreams.drain();
    // Another worker may still be about to place a connection here: without one of its own this worker
    // would be gone before it comes, and the client would meet a reset.
    receiver.close();
    drop(timeout(LET_GO, receiver.wait()).await);
    worker.connections.close();
    for (class, after) in deadlines.in_order() {
        tokio::select! {
            () = worker.connections.wait() => return,
            () = hurry.cancelled() => {}
            () = sleep_until(began + after) => {}
        }
        tell_who_is_cut(index, &worker.edge, class);
        worker.cut(class);
    }
    if timeout(LET_GO, worker.connections.wait()).await.is_err() {
        worker.cut_rest();
        drop(timeout(LET_GO, worker.connections.wait()).await);
    }
}

/// Names what the deadline of `class` ends: who waits for what, and for how long; the longest wait
/// first.
fn tell_who_is_cut(index: usize, edge: &Edge, class: Class) {
    let lines = edge.board.lines(usize::MAX);
    let mut lines =
        lines.iter().filter(|line| line.worker == index && class_of(line) == Some(class));
    for line in lines.by_ref().take(CUT_LINES_MAX) {
        let app = line.app.and_then(|id| edge.inventory.name_of(id));
        tracing::warn!(
            kind = line.kind.as_str(),
            app = app.as_deref().unwrap_or("-"),
            state = line.state.as_str(),
            waiting_seconds = line.waiting.as_secs_f64(),
            age_seconds = line.age.as_secs_f64(),
            trace = %format_args!("{:032x}", line.trace),
            class = class.as_str(),
            "cut at the deadline"
        );
    }
    let more = lines.count();
    if more > 0 {
        tracing::warn!(more, class = class.as_str(), "cut at the deadline as well");
    }
}

/// Which deadline ends what is on this line; none, where its requests have lines of their own.
fn class_of(line: &Line) -> Option<Class> {
    match (line.kind, line.state) {
        (Kind::Connection, State::Tunnel) => Some(Class::Tcp),
        (Kind::Request, State::Tunnel) => Some(Class::WebSocket),
        (Kind::Connection, State::Serving) => None,
        (Kind::Connection | Kind::Request, _) => Some(Class::Request),
    }
}

/// Cuts the records of what has been open for long.
async fn sweep_records(recorder: Recorder) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        recorder.sweep(recorder.now());
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}
