//! The worker threads: started together, told to listen, drained together.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::Dialer;
use crate::edge::Edge;
use crate::listener::{self, Listening, PLACED_MAX, Peer, Placed, Placement};
use crate::upstream::{MeshConnect, Upstreams};
use crate::worker::{Phase, Worker};

/// Every worker thread of a node.
pub(super) struct Threads {
    threads: Vec<Thread>,
    next: Arc<AtomicUsize>,
}

struct Thread {
    commands: mpsc::UnboundedSender<Command>,
    handle: JoinHandle<Option<Report>>,
}

/// What control tells a worker. Unbounded, for only control sends: one for each socket, one drain.
enum Command {
    Listen(Listening),
    Drain { timeout: Duration },
}

/// What was left when a worker, or all of them, ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) tasks: usize,
    pub(super) connections: usize,
    /// Connections that the deadline ended.
    pub(super) cut: usize,
}

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
        for (own, placed) in placed.into_iter().enumerate() {
            let (commands, receiver) = mpsc::unbounded_channel();
            let placement = Placement { own, workers: workers.clone() };
            let edge = edge.clone();
            let run = move || run(own, edge, receiver, placed, placement);
            let handle = thread::Builder::new().name(format!("worker-{own}")).spawn(run)?;
            threads.push(Thread { commands, handle });
        }
        Ok(Self { threads, next: Arc::default() })
    }

    /// Gives a socket to the next worker in turn.
    pub(super) fn listen(&self, listening: Listening) {
        self.giver()(listening);
    }

    /// As [`Self::listen`], for a task.
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

    /// Lets every worker finish what began, and ends it.
    pub(super) async fn drain(self, timeout: Duration) -> Report {
        let (sender, receiver) = oneshot::channel();
        for thread in &self.threads {
            // One that is gone is found out when it is joined.
            drop(thread.commands.send(Command::Drain { timeout }));
        }
        // Joining blocks, and control has to go on: admin answers while the node drains.
        let join = thread::Builder::new().name("join".to_owned()).spawn(move || {
            let report = self.threads.into_iter().fold(Report::default(), |sum, thread| {
                let report = thread.handle.join().ok().flatten().unwrap_or_else(|| {
                    tracing::error!("a worker ended by a panic");
                    Report { tasks: 1, ..Report::default() }
                });
                Report {
                    tasks: sum.tasks + report.tasks,
                    connections: sum.connections + report.connections,
                    cut: sum.cut + report.cut,
                }
            });
            sender.send(report).ok(); // nobody waits if the runtime is gone
        });
        match (join, receiver.await) {
            (Ok(_), Ok(report)) => report,
            _ => Report { tasks: 1, ..Report::default() },
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
) -> Option<Report> {
    telemetry::shard::claim(index);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .inspect_err(|error| tracing::error!("a worker has no runtime: {error}"))
        .ok()?;
    Some(runtime.block_on(serve(edge, commands, placed, placement)))
}

async fn serve(
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
    let worker = Worker::new(edge.clone(), |buffers| {
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
    keepers.spawn_local(until(stop.clone(), listener::receive(placed, worker.clone(), load)));
    {
        let (upstreams, stop) = (worker.upstreams.clone(), stop.clone());
        keepers.spawn_local(async move { upstreams.sweep(stop).await });
    }

    let timeout = loop {
        match commands.recv().await {
            Some(Command::Listen(listening)) => {
                acceptors.spawn_local(listener::accept(
                    listening,
                    worker.clone(),
                    placement.clone(),
                ));
            }
            Some(Command::Drain { timeout }) => break timeout,
            None => break Duration::ZERO, // control is gone
        }
    };

    acceptors.close();
    acceptors.wait().await;
    let cut = drain(&worker, timeout).await;
    worker.upstreams.close_idle();
    stop.cancel();
    for tracker in [&worker.streams, &keepers, &upstream_tasks] {
        tracker.close();
        // What does not end is in the report.
        drop(tokio::time::timeout(LET_GO, tracker.wait()).await);
    }
    let tasks = acceptors.len() + keepers.len() + worker.streams.len() + upstream_tasks.len();
    Report { tasks, connections: worker.connections.len(), cut }
}

/// Finishes what began; at the deadline, what is left is cut. Says how many that were.
async fn drain(worker: &Rc<Worker>, timeout: Duration) -> usize {
    worker.enter(Phase::Draining);
    worker.upstreams.drain();
    worker.connections.close();
    if tokio::time::timeout(timeout, worker.connections.wait()).await.is_ok() {
        return 0;
    }
    let cut = worker.connections.len();
    worker.enter(Phase::Stopping);
    worker.abort_connections();
    drop(tokio::time::timeout(LET_GO, worker.connections.wait()).await);
    cut
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}
