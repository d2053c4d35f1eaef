//! One core: its runtime, its pools, its connections.
//!
//! A connection lives and dies on its worker, and nothing a request touches there is shared with
//! another worker but atomics.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use slab::Slab;
use telemetry::heapwatch::{Subsystem, tagged};
use telemetry::ledger::scope::WORKERS;
use telemetry::pressure::Level;
use telemetry::record::Recorder;
use telemetry::work::Desk;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::alarm::Alarms;
use crate::balance::rng::Rng;
use crate::drain::{Class, Cuts};
use crate::edge::Edge;
use crate::error::Failure;
use crate::holdings::{self, Holdings};
use crate::io::cork::Buffers;
use crate::metrics::Metrics;
use crate::upstream::Upstreams;
use crate::upstream::retry::RetryBudget;

/// What the connections of one worker share.
pub struct Worker {
    this: Weak<Self>,
    pub edge: Arc<Edge>,
    pub metrics: Metrics,
    pub alarms: Alarms,
    pub buffers: Buffers,
    pub upstreams: Rc<Upstreams>,
    retries: RefCell<RetryBudget>,
    pub rng: Rng,
    /// Where requests are written down.
    pub recorder: Recorder,
    /// Where connections and requests say what they wait for.
    pub desk: Desk,
    /// Where the tasks of connections book what they allocate.
    pub holdings: Rc<holdings::Desk>,
    /// Owns every connection.
    pub connections: TaskTracker,
    /// Owns every HTTP/2 stream of those connections.
    pub streams: TaskTracker,
    /// For when a drain runs out of time, or memory does.
    aborts: RefCell<Slab<Abort>>,
    phase: Cell<Phase>,
    /// There is no way back from the drain.
    leaving: Cell<bool>,
    /// Classes whose deadline has passed.
    over: Cell<[bool; Class::ALL.len()]>,
    cuts: Cell<Cuts>,
}

/// A task that can be ended from outside.
struct Abort {
    of: Of,
    /// `None`: it carries what is on this list itself.
    class: Option<Class>,
    task: AbortHandle,
    holdings: Rc<Holdings>,
    /// It was told to end, and the runtime has not come to that yet.
    is_ending: Cell<bool>,
}

/// What a task is of.
#[derive(Clone, Copy)]
enum Of {
    Connection,
    Stream,
    /// Of another node's connection.
    PeerStream,
}

/// A task on its worker's list, by which it says what it has become.
#[derive(Clone, Copy)]
pub struct Mark(usize);

/// Retries that are allowed however few requests there are.
const RETRIES_PER_SECOND_MIN: u32 = 10;

/// Ending a connection that holds less helps nobody.
const RESET_BYTES_MIN: u64 = 64 * 1024;

/// How far the worker is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Connections are told to go, and whoever comes is served. May be taken back.
    Draining,
    /// All deadlines have passed: what is left is cut.
    Stopping,
}

// === impl Worker ===

impl Worker {
    pub fn new(
        index: usize,
        edge: Arc<Edge>,
        upstreams: impl FnOnce(&Buffers) -> Rc<Upstreams>,
    ) -> Rc<Self> {
        let buffers = Buffers::default();
        let worker = Rc::new_cyclic(|this| Self {
            this: this.clone(),
            metrics: edge.metrics.clone(),
            alarms: Alarms::new(),
            upstreams: upstreams(&buffers),
            buffers,
            retries: RefCell::new(RetryBudget::new(
                edge.config.limits.retry_budget_percent,
                RETRIES_PER_SECOND_MIN,
                Instant::now(),
            )),
            rng: Rng::new(),
            recorder: Recorder::new(&edge.records, index),
            desk: edge.board.desk(index),
            holdings: holdings::Desk::new(),
            connections: TaskTracker::new(),
            streams: TaskTracker::new(),
            aborts: RefCell::default(),
            phase: Cell::new(Phase::Serving),
            leaving: Cell::new(false),
            over: Cell::default(),
            cuts: Cell::default(),
            edge,
        });
        WORKERS.take_what_is_there();
        worker
    }

    /// This worker, for what outlives the borrow.
    pub fn this(&self) -> Rc<Self> {
        self.this.upgrade().expect("a worker is only reached through its Rc")
    }

    /// Counts one failure. One that is this node's own is rare and tells of more than itself, so what
    /// ends near it is recorded too.
    pub fn count(&self, failure: &Failure) {
        self.metrics.count(failure);
        if failure.code.is_anomaly() {
            self.edge.records.note_anomaly();
        }
    }

    /// A request came: the budget for retries grows with them.
    pub fn count_request(&self, now: Instant) {
        self.retries.borrow_mut().deposit(now);
    }

    /// Takes the right to one retry, if there is one left.
    pub fn may_retry(&self, now: Instant) -> bool {
        self.retries.borrow_mut().withdraw(now)
    }

    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Whether connections that have nothing to do should go soon.
    pub fn is_short_of_memory(&self) -> bool {
        self.edge.pressure.is_at(Level::Close)
    }

    /// Whether the task that is being polled should read nothing more for its client: memory is nearly
    /// gone, and its app holds more than its share. What grows by 5 % of the limit between two resets
    /// would not be stopped by them.
    pub fn withholds(&self) -> bool {
        self.edge.pressure.is_at(Level::Reset) && holdings::current().is_fair_game()
    }

    /// Does what entering `level` asks of this worker.
    pub fn give_way(&self, level: Level) {
        match level {
            Level::Trim => self.upstreams.halve_idle(),
            Level::Close => {
                self.upstreams.close_idle();
                self.alarms.wake_all(); // who is idle looks, and goes
            }
            // Requests and acceptors read the level themselves; the largest are named one by one.
            Level::Calm | Level::Shed | Level::Refuse | Level::Reset => {}
        }
    }

    /// Spawns a connection that this worker owns.
    pub fn spawn_connection<C>(&self, connection: impl FnOnce(Mark) -> C)
    where
        C: Future<Output = ()> + 'static,
    {
        self.metrics.connection_tasks.add(1);
        let holdings = Rc::default();
        self.spawn_listed(&self.connections, Of::Connection, holdings, connection);
    }

    /// Spawns a stream of the client's connection whose task is running: what it holds, the
    /// connection holds.
    pub fn spawn_stream<S>(&self, stream: impl FnOnce(Mark) -> S)
    where
        S: Future<Output = ()> + 'static,
    {
        let holdings = holdings::current();
        let stream = |mark| tagged(Subsystem::Http2, stream(mark));
        let spawn = || self.spawn_listed(&self.streams, Of::Stream, holdings, stream);
        self.holdings.unbooked(spawn);
    }

    /// Spawns a stream of another node's connection, which answers for itself: the connection is
    /// everybody's.
    pub fn spawn_peer_stream<S>(&self, stream: impl FnOnce(Mark) -> S)
    where
        S: Future<Output = ()> + 'static,
    {
        let holdings = Rc::default();
        let spawn = || self.spawn_listed(&self.streams, Of::PeerStream, holdings, stream);
        self.holdings.unbooked(spawn);
    }

    fn spawn_listed<T>(
        &self,
        tracker: &TaskTracker,
        of: Of,
        holdings: Rc<Holdings>,
        task: impl FnOnce(Mark) -> T,
    ) where
        T: Future<Output = ()> + 'static,
    {
        let mut aborts = self.aborts.borrow_mut();
        let place = aborts.vacant_entry();
        let mark = Mark(place.key());
        let listed = Listed { worker: self.this(), of, mark };
        let task = task(mark);
        let task = async move {
            task.await;
            drop(listed);
        };
        // The task does not run before this returns: it runs on this thread.
        let task = tracker.spawn_local(self.holdings.book(holdings.clone(), task)).abort_handle();
        let class = Some(Class::Request);
        place.insert(Abort { of, class, task, holdings, is_ending: Cell::new(false) });
    }

    /// What the task has become.
    pub fn classify(&self, Mark(mark): Mark, class: Class) {
        self.aborts.borrow_mut()[mark].class = Some(class);
    }

    /// The task is a connection of which every stream is on the list.
    pub fn carries_streams(&self, Mark(mark): Mark) {
        self.aborts.borrow_mut()[mark].class = None;
    }

    /// Ends the connection that holds most, or the stream of a node's, if that is worth it. One whose
    /// app holds no more than its share is spared, however large.
    pub fn reset_largest(&self) {
        let aborts = self.aborts.borrow();
        let largest = aborts
            .iter()
            .map(|(_, abort)| abort)
            .filter(|abort| abort.holdings.bytes() >= RESET_BYTES_MIN)
            // What a client's stream holds is its connection's.
            .filter(|abort| !matches!(abort.of, Of::Stream))
            .filter(|abort| !abort.is_ending.get() && abort.holdings.is_fair_game())
            .max_by_key(|abort| abort.holdings.bytes());
        if let Some(Abort { of, class: _, task, holdings, is_ending }) = largest {
            is_ending.set(true);
            let what = match of {
                Of::Connection => "connection",
                Of::Stream | Of::PeerStream => "stream of a node",
            };
            tracing::warn!(bytes = holdings.bytes(), what, "memory is nearly gone: reset");
            self.metrics.pressure.reset.increment();
            task.abort();
        }
    }

    /// Moves on or back, and lets every connection look. A worker that leaves does not come back.
    pub fn enter(&self, phase: Phase) {
        if self.phase.get() != phase && !self.leaving.get() {
            self.phase.set(phase);
            self.alarms.wake_all();
        }
    }

    /// Drains for good.
    pub fn leave(&self) {
        self.phase.set(Phase::Draining);
        self.leaving.set(true);
        self.alarms.wake_all();
    }

    /// Whether the drain ends with the worker.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// Whether the deadline of `class` has passed: what is of it ends where it is.
    pub fn is_over(&self, class: Class) -> bool {
        self.over.get()[class as usize]
    }

    /// The deadline of `class` has passed. Tunnels see that by themselves, so that no side takes what it
    /// has for the whole.
    pub fn cut(&self, class: Class) {
        let mut over = self.over.get();
        over[class as usize] = true;
        self.over.set(over);
        if class == Class::Request {
            self.abort(|abort| abort.class == Some(Class::Request));
        }
        self.alarms.wake_all();
    }

    /// All deadlines have passed, and whoever could has ended by itself: ends the rest where it is.
    pub fn cut_rest(&self) {
        self.phase.set(Phase::Stopping);
        self.abort(|_| true);
    }

    fn abort(&self, is_meant: impl Fn(&Abort) -> bool) {
        for (_, abort) in &*self.aborts.borrow() {
            if is_meant(abort) && !abort.is_ending.replace(true) {
                abort.class.inspect(|class| self.count_cut(*class));
                abort.task.abort();
            }
        }
    }

    /// Something was cut at the deadline of `class`.
    pub fn count_cut(&self, class: Class) {
        let mut cuts = self.cuts.get();
        cuts.count(class);
        self.cuts.set(cuts);
        self.metrics.cut(class);
    }

    /// What was cut so far.
    pub fn cuts(&self) -> Cuts {
        self.cuts.get()
    }
}

/// Something on the list of what could be aborted, until dropped.
struct Listed {
    worker: Rc<Worker>,
    of: Of,
    mark: Mark,
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Of::Connection = self.of {
            self.worker.metrics.connection_tasks.add(-1);
        }
        // An abort drops the task later, from the runtime, so the list is not borrowed here.
        if let Ok(mut aborts) = self.worker.aborts.try_borrow_mut() {
            aborts.try_remove(self.mark.0);
        }
    }
}
