//! Who waits for a permit of one app and service: bounded, first come first served.
//!
//! Permits are handed to waiters, not fought for: whoever gives one back offers it here
//! (`Queue::offer`). While nobody waits the queue costs one relaxed load.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use control::snapshot::Concurrency;
use telemetry::lock::Mutex;
use telemetry::metrics::{Gauge, Registry};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::sync::oneshot;

use super::Tried;
use super::permit::Permit;
use crate::error::{Code, Failure};
use crate::inventory::AppLive;
use crate::metrics::catalogue;

/// The queue of one app and service, shared by all workers.
pub struct Queue {
    live: Arc<AppLive>,
    metrics: Metrics,
    limits: Limits,
    /// Length of `waiters`, to be read without the lock.
    waiting: AtomicU32,
    waiters: Mutex<Waiters>,
    /// Something changed that no permit tells: instances came, or one is healthy again.
    changed: Notify,
}

/// What each instance may have of the service, as the newest version of the app says: a request
/// that holds an older one keeps to them too.
pub(super) struct Limits {
    soft: AtomicU32,
    hard: AtomicU32,
}

#[derive(Default)]
struct Waiters {
    /// In order of arrival, so also of `ticket`.
    queue: VecDeque<Waiter>,
    next_ticket: u64,
}

struct Waiter {
    ticket: u64,
    /// Instances that are of no use to it.
    tried: Tried,
    grant: oneshot::Sender<Permit>,
}

/// A place in a queue, given up when dropped; a permit that came too late goes to the next.
pub(super) struct Place {
    queue: Arc<Queue>,
    ticket: u64,
    // Dropped after the place was left, see `drop`.
    pub(super) grant: oneshot::Receiver<Permit>,
}

/// Gauges of all queues and permits of the node.
#[derive(Clone)]
pub struct Metrics {
    permits: Gauge,
    waiting: Gauge,
}

/// How often whoever waits looks by itself. It is what ends a wait when a peer's "full", an ejection
/// or an unreachable node end, which nobody announces.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The same for the first in line while another generation of the process gives permits back
/// without a word; the second looks half as often, and so on.
const LOOK_WHILE_JOINED: Duration = Duration::from_millis(5);

// === impl Queue ===

impl Queue {
    pub(crate) fn new(live: Arc<AppLive>, metrics: Metrics) -> Self {
        Self {
            live,
            metrics,
            limits: Limits { soft: AtomicU32::new(0), hard: AtomicU32::new(u32::MAX) },
            waiting: AtomicU32::new(0),
            waiters: Mutex::new("queue", Waiters::default()),
            changed: Notify::new(),
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    /// The app it belongs to.
    pub(super) fn live(&self) -> &AppLive {
        &self.live
    }

    pub(crate) fn set_limits(&self, concurrency: &Concurrency) {
        self.limits.soft.store(concurrency.soft_limit, Relaxed);
        self.limits.hard.store(concurrency.hard_limit.unwrap_or(u32::MAX), Relaxed);
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn permits(&self) -> &Gauge {
        &self.metrics.permits
    }

    /// Takes the last place, for a permit of any instance that was not tried.
    ///
    /// # Errors
    /// PR04 when as many requests of the app wait as may.
    pub(super) fn enter(self: &Arc<Self>, tried: &Tried) -> Result<Place, Failure> {
        if !self.live.may_wait() {
            return Err(Failure::new(Code::PR04));
        }
        let (sender, grant) = oneshot::channel();
        let mut waiters = self.waiters.lock();
        let ticket = waiters.next_ticket;
        waiters.next_ticket += 1;
        waiters.queue.push_back(Waiter { ticket, tried: tried.clone(), grant: sender });
        self.waiting.fetch_add(1, SeqCst);
        drop(waiters);
        self.metrics.waiting.add(1);
        Ok(Place { queue: self.clone(), ticket, grant })
    }

    /// Gives `permit` to the first who can use it.
    ///
    /// # Errors
    /// The permit, when nobody can.
    pub(super) fn offer(&self, mut permit: Permit) -> Result<(), Permit> {
        loop {
            let mut waiters = self.waiters.lock();
            let first =
                waiters.queue.iter().position(|waiter| !waiter.tried.contains(permit.load()));
            let Some(waiter) = first.and_then(|index| waiters.queue.remove(index)) else {
                return Err(permit);
            };
            drop(waiters);
            self.left();
            // It may have gone in this moment: then it is the next one's turn.
            match waiter.grant.send(permit) {
                Ok(()) => return Ok(()),
                Err(back) => permit = back,
            }
        }
    }

    /// Lets everybody who waits look for an instance themselves.
    pub(crate) fn look_again(&self) {
        if self.waiting() != 0 {
            self.changed.notify_waiters();
        }
    }

    /// Ends when somebody calls [`Self::look_again`] after this call.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn left(&self) {
        self.waiting.fetch_sub(1, SeqCst);
        self.live.waits_no_more();
        self.metrics.waiting.add(-1);
    }
}

// === impl Place ===

impl Place {
    /// Whether nobody came before.
    pub(super) fn is_first(&self) -> bool {
        self.queue.waiters.lock().queue.front().is_some_and(|first| first.ticket == self.ticket)
    }

    /// How long to wait for a word before looking. While another generation is joined it depends on
    /// the place, so that a long line costs little more than its first few.
    pub(super) fn look_in(&self) -> Duration {
        if !self.queue.live.is_joined() {
            return LOOK_AGAIN;
        }
        let waiters = self.queue.waiters.lock();
        let before = waiters.queue.partition_point(|waiter| waiter.ticket < self.ticket);
        drop(waiters);
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        LOOK_WHILE_JOINED.saturating_mul(before.saturating_add(1)).min(LOOK_AGAIN)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiters = self.queue.waiters.lock();
        let index = waiters.queue.binary_search_by_key(&self.ticket, |waiter| waiter.ticket);
        // Not there: it was granted a permit, which ends with the receiver, after the lock.
        let waiter = index.ok().and_then(|index| waiters.queue.remove(index));
        if waiters.queue.is_empty() {
            waiters.queue.shrink_to(0); // an app that was busy once holds nothing for it
        }
        drop(waiters);
        if waiter.is_some() {
            self.queue.left();
        }
    }
}

// === impl Limits ===

impl Limits {
    pub(super) fn soft(&self) -> u32 {
        self.soft.load(Relaxed)
    }

    pub(super) fn hard(&self) -> u32 {
        self.hard.load(Relaxed)
    }
}

// === impl Metrics ===

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let permits = catalogue::PERMITS.gauge_in(registry, &[]);
        let waiting = catalogue::QUEUE.gauge_in(registry, &[]);
        Self { permits, waiting }
    }

    /// How many wait, in all queues.
    pub(crate) fn waiting(&self) -> i64 {
        self.waiting.value()
    }
}

/// Requests of one app that wait, over all its services.
#[derive(Default)]
pub(crate) struct Waits(AtomicU32);

impl Waits {
    /// One more, unless there are `max`.
    pub(crate) fn enter(&self, max: u32) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |n| (n < max).then(|| n + 1)).is_ok()
    }

    pub(crate) fn leave(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
