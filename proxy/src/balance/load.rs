//! Live numbers of one instance and service as this node sees them: carried across versions of
//! the app, shared by all workers, and pure in that `now` is an argument.
//!
//! Limits belong to the service, so what is counted is counted per (instance, service). Estimates
//! are single words updated without a loop or lock where losing one sample does no harm.

mod latency;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use telemetry::shared_counts::Count;
use tokio::time::Instant;

use super::permit::Permit;
use super::queue::Queue;
use latency::Latency;

/// How busy one instance is for one service, and how it has been doing.
///
/// One cache line, as all of it is read or written by the same request.
#[repr(align(64))]
pub struct Load {
    /// Of an instance of this node, where its limit is kept: shared with another generation of the
    /// process. Boxed, because most instances are elsewhere.
    local: Option<Box<Count>>,
    /// Of an instance elsewhere: what this process has sent there.
    in_flight: AtomicU32,
    flags: AtomicU8,
    /// Consecutive failures, saturating.
    failures: AtomicU8,
    /// Ejections in a row, each longer than the one before.
    ejections: AtomicU8,
    latency: Latency,
    ejected_until: AtomicU64,
    full_until: AtomicU64,
    absent_until: AtomicU64,
    queue: Arc<Queue>,
}

/// The three values of load (fly-proxy's "concurrency guidelines").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    UnderSoft,
    UnderHard,
    AtHard,
}

/// Milliseconds on the process's own clock; what deadlines in [`Load`] are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(u64);

/// Failures in a row that an answer has ended, and how often the instance had been left alone for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streak {
    failures: u8,
    ejections: u8,
}

const CORDONED: u8 = 1;
/// Not in the newest version of its app any more.
const GONE: u8 = 2;
/// An active check fails.
const UNHEALTHY: u8 = 4;

/// Failures in a row after which an instance is left alone for a while.
pub(super) const FAILURES_MAX: u8 = 3;

/// The first ejection; the n-th in a row lasts n times as long (Envoy's outlier detection).
const EJECTION: Duration = Duration::from_secs(5);

const EJECTION_MAX: Duration = Duration::from_secs(60);

/// How long a peer's "at its limit" is believed: about as long as a request takes, because every
/// node that forgets it asks again.
const FULL: Duration = Duration::from_millis(250);

/// How long a peer's "not here" is believed; the inventory should say the same by then.
const ABSENT: Duration = Duration::from_secs(2);

// === impl Load ===

impl Load {
    /// `local` counts at an instance of this node; without it, it is elsewhere.
    pub fn new(queue: Arc<Queue>, local: Option<Count>, now: Instant) -> Self {
        Self {
            local: local.map(Box::new),
            in_flight: AtomicU32::new(0),
            flags: AtomicU8::new(0),
            failures: AtomicU8::new(0),
            ejections: AtomicU8::new(0),
            latency: Latency::guess(Millis::at(now)),
            ejected_until: AtomicU64::new(0),
            full_until: AtomicU64::new(0),
            absent_until: AtomicU64::new(0),
            queue,
        }
    }

    /// Requests or connections of this process that hold a permit now.
    pub fn in_flight(&self) -> u32 {
        match &self.local {
            Some(count) => count.own(),
            None => self.in_flight.load(Relaxed),
        }
    }

    pub fn level(&self, now: Millis) -> Level {
        let in_flight = self.total(); // see `Permit`: the waiter's half
        let limits = self.queue.limits();
        if in_flight >= limits.hard() || self.full_until.load(Relaxed) > now.0 {
            Level::AtHard
        } else if in_flight >= limits.soft() {
            Level::UnderHard
        } else {
            Level::UnderSoft
        }
    }

    /// Whether the inventory and the active checks allow new work, and its node has not just said
    /// that it is not there.
    pub fn is_routable(&self, now: Millis) -> bool {
        self.flags.load(Relaxed) == 0 && self.absent_until.load(Relaxed) <= now.0
    }

    /// Whether it failed so often that it is left alone.
    pub fn is_ejected(&self, now: Millis) -> bool {
        self.ejected_until.load(Relaxed) > now.0
    }

    /// Whether its active checks succeed, or have not said otherwise yet.
    pub fn is_healthy(&self) -> bool {
        self.flags.load(Relaxed) & UNHEALTHY == 0
    }

    /// Lower is better: peak-EWMA latency × (pending + 1) × penalty for failures.
    pub fn cost(&self, now: Millis) -> f64 {
        f64::from(self.latency.estimate(now)) * (f64::from(self.total()) + 1.0)
    }

    /// A permit, if the hard limit allows one more.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let hard = self.queue.limits().hard();
        let taken = match &self.local {
            Some(count) => count.try_add_exactly(hard),
            None => {
                let one_more = |in_flight| (in_flight < hard).then(|| in_flight + 1);
                self.in_flight.fetch_update(SeqCst, SeqCst, one_more).is_ok()
            }
        };
        taken.then(|| {
            self.queue.permits().add(1);
            Permit::new(self.clone())
        })
    }

    /// The head of an answer came after `took`; says what that has ended, for [`Self::broken_off`].
    pub fn answered(&self, took: Duration, now: Instant) -> Streak {
        self.latency.observe(took, Millis::at(now));
        let failures = self.failures.load(Relaxed);
        if failures == 0 {
            return Streak::default();
        }
        let ejections = self.ejections.load(Relaxed);
        self.failures.store(0, Relaxed);
        self.ejections.store(ejections.saturating_sub(1), Relaxed);
        Streak { failures, ejections }
    }

    /// The answer that ended `streak` was broken off: it was none, and the streak goes on with it.
    ///
    /// Its head counted as a success when it came, because a body may take hours; an instance that
    /// breaks off each would otherwise never fail twice in a row.
    pub fn broken_off(&self, streak: Streak, now: Instant) {
        let Streak { failures, ejections } = streak;
        // Others may have gone on counting since.
        self.failures.fetch_max(failures, Relaxed);
        self.ejections.fetch_max(ejections, Relaxed);
        self.failed(now);
    }

    /// It answered, but with an error of its own (5xx). That costs it preference, not its place: a
    /// stranger who knows a URL that fails must not be able to eject a tenant's instances.
    pub fn answered_with_error(&self, took: Duration, now: Instant) -> Streak {
        let streak = self.answered(took, now);
        self.latency.penalise(Millis::at(now));
        streak
    }

    /// Somebody stopped waiting after `waited`: known to be no faster than that.
    pub fn abandoned(&self, waited: Duration, now: Instant) {
        self.latency.observe_at_least(waited, Millis::at(now));
    }

    /// An attempt failed for a reason that is the instance's.
    pub fn failed(&self, now: Instant) {
        let now = Millis::at(now);
        self.latency.penalise(now);
        let failures = self.failures.load(Relaxed).saturating_add(1);
        self.failures.store(failures, Relaxed);
        let until = self.ejected_until.load(Relaxed);
        // What was in flight when it was ejected says nothing new.
        if failures < FAILURES_MAX || until > now.0 {
            return;
        }
        let ejections = self.ejections.load(Relaxed).saturating_add(1);
        let ejection = (EJECTION * u32::from(ejections)).min(EJECTION_MAX);
        // Of several failures at once one ejects.
        if self
            .ejected_until
            .compare_exchange(until, now.after(ejection).0, Relaxed, Relaxed)
            .is_ok()
        {
            self.ejections.store(ejections, Relaxed);
        }
    }

    /// The instance's node said that it is at its hard limit.
    pub fn full(&self, now: Instant) {
        self.full_until.store(Millis::at(now).after(FULL).0, Relaxed);
    }

    /// The instance's node said that it does not have it, or not for us.
    pub fn absent(&self, now: Instant) {
        self.absent_until.store(Millis::at(now).after(ABSENT).0, Relaxed);
    }

    /// The active checks' verdict; says whether it is a new one.
    pub fn set_healthy(&self, healthy: bool) -> bool {
        let changed = self.set(UNHEALTHY, !healthy);
        if changed {
            self.queue.look_again();
        }
        changed
    }

    pub(crate) fn set_cordoned(&self, cordoned: bool) {
        self.set(CORDONED, cordoned);
    }

    /// Not part of the app any more; permits that are out come back as usual.
    pub(crate) fn set_gone(&self) {
        self.set(GONE, true);
    }

    /// Whether the instance is one of this node.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    pub(super) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Whether the permit of one that is about to end may go to somebody else.
    pub(super) fn may_pass_on(&self, now: Millis) -> bool {
        self.is_routable(now)
            && !self.is_ejected(now)
            && self.full_until.load(Relaxed) <= now.0
            && self.total() <= self.queue.limits().hard()
    }

    pub(super) fn give_back(&self) {
        match &self.local {
            Some(count) => count.sub(),
            None => {
                let before = self.in_flight.fetch_sub(1, SeqCst);
                debug_assert!(before > 0, "a permit was given back twice");
            }
        }
        self.queue.permits().add(-1);
    }

    /// In flight of this process and of another generation while there is one: what limits are
    /// held against.
    fn total(&self) -> u32 {
        match &self.local {
            Some(count) => count.total(),
            None => self.in_flight.load(SeqCst),
        }
    }

    fn set(&self, flag: u8, on: bool) -> bool {
        let before = if on {
            self.flags.fetch_or(flag, Relaxed)
        } else {
            self.flags.fetch_and(!flag, Relaxed)
        };
        (before & flag != 0) != on
    }
}

// === impl Millis ===

impl Millis {
    pub fn at(now: Instant) -> Self {
        // An hour before first use: a deadline of 0 is in the past for every clock, also for that
        // of a test which was stopped before another test began.
        static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
            let now = Instant::now();
            now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
        });
        let since = now.saturating_duration_since(*ORIGIN).as_millis();
        Self(u64::try_from(since).unwrap_or(u64::MAX))
    }

    fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The low half, enough for differences of up to 49 days.
    fn low(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests;
