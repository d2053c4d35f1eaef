//! One core: its runtime, its pools, its connections.
//!
//! A connection lives and dies on its worker, and nothing a request touches there is shared with
//! another worker but atomics.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use slab::Slab;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::alarm::Alarms;
use crate::balance::rng::Rng;
use crate::edge::Edge;
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
    /// Owns every connection.
    pub connections: TaskTracker,
    /// Owns every HTTP/2 stream of those connections.
    pub streams: TaskTracker,
    /// For when a drain runs out of time.
    aborts: RefCell<Slab<AbortHandle>>,
    phase: Cell<Phase>,
}

/// Retries that are allowed however few requests there are.
const RETRIES_PER_SECOND_MIN: u32 = 10;

/// How far the worker is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Finish what began, start nothing new.
    Draining,
    /// The deadline has passed: what is left is cut.
    Stopping,
}

// === impl Worker ===

impl Worker {
    pub fn new(edge: Arc<Edge>, upstreams: impl FnOnce(&Buffers) -> Rc<Upstreams>) -> Rc<Self> {
        let buffers = Buffers::default();
        Rc::new_cyclic(|this| Self {
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
            connections: TaskTracker::new(),
            streams: TaskTracker::new(),
            aborts: RefCell::default(),
            phase: Cell::new(Phase::Serving),
            edge,
        })
    }

    /// This worker, for what outlives the borrow.
    pub fn this(&self) -> Rc<Self> {
        self.this.upgrade().expect("a worker is only reached through its Rc")
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

    pub fn is_stopping(&self) -> bool {
        self.phase.get() == Phase::Stopping
    }

    /// Spawns a connection that this worker owns.
    pub fn spawn_connection(&self, connection: impl Future<Output = ()> + 'static) {
        let entry = Rc::new(Cell::new(usize::MAX));
        let (worker, own) = (self.this(), entry.clone());
        self.metrics.connection_tasks.add(1);
        let task = self.connections.spawn_local(async move {
            let forget = Forget { worker, own };
            connection.await;
            drop(forget);
        });
        // The task has not run yet: it runs on this thread.
        entry.set(self.aborts.borrow_mut().insert(task.abort_handle()));
    }

    /// Ends every connection where it is.
    pub fn abort_connections(&self) {
        for (_, task) in &*self.aborts.borrow() {
            task.abort();
        }
    }

    /// Moves on, and lets every connection look.
    pub fn enter(&self, phase: Phase) {
        if phase > self.phase.get() {
            self.phase.set(phase);
            self.alarms.wake_all();
        }
    }
}

/// Takes a connection off the list of what could be aborted.
struct Forget {
    worker: Rc<Worker>,
    own: Rc<Cell<usize>>,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.worker.metrics.connection_tasks.add(-1);
        // An abort drops the task later, from the runtime, so the list is not borrowed here.
        if let Ok(mut aborts) = self.worker.aborts.try_borrow_mut() {
            aborts.try_remove(self.own.get());
        }
    }
}
