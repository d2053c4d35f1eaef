//! What of an app outlives its versions: its connections, who waits, its metrics.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use control::snapshot::AppName;
use http::StatusCode;
use parking_lot::Mutex;
use telemetry::metrics::{Counter, Gauge, Histogram, Registry};
use telemetry::pressure;
use telemetry::record::TraceId;
use telemetry::shared_counts::{Count, Counts, Key};

use super::Entry;
use super::table::Slot;
use crate::balance::queue::Waits;
use crate::error::{Code, Failure};
use crate::metrics::catalogue;

/// Live state of one app on this node.
pub struct AppLive {
    /// Names the app where there is no room for its name; never 0, never used again in this process.
    id: u32,
    app: AppName,
    /// Where the newest version is; dead once the app was removed.
    slot: OnceLock<Weak<Slot>>,
    counts: Arc<Counts>,
    /// Shared with another generation of the process from the first connection on: a node knows
    /// more apps than it serves, and rows are limited.
    connections: OnceLock<Count>,
    connections_max: u32,
    /// Bytes that its connections hold, as far as they have told.
    held: AtomicI64,
    waits: Waits,
    waits_max: u32,
    metrics: Arc<Metrics>,
    /// Registered with the first request of each class: a node knows more apps than it serves,
    /// and the label sets of a metric are limited.
    requests: [OnceLock<Counter>; CLASSES.len()],
    /// What this app has added to `ferrule_instances`; control thread only.
    states: Mutex<[i64; State::ALL.len()]>,
    removed: AtomicBool,
}

/// One connection of a client to the app, until dropped.
pub struct ConnectionGuard {
    live: Arc<AppLive>,
}

/// Of an instance, as far as the inventory and the active checks know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Routable,
    Cordoned,
    Unhealthy,
}

/// Metrics of all apps.
pub(super) struct Metrics {
    registry: Registry,
    seconds: Histogram,
    instances: [Gauge; State::ALL.len()],
    tenants: Tenants,
}

/// What the connections of all apps hold together, and how many apps hold something.
#[derive(Default)]
struct Tenants {
    held: AtomicI64,
    active: AtomicU32,
}

/// What an app may hold however short memory is.
const LEAST_BYTES: u64 = 256 * 1024;

/// The last is for requests that ended without an answer.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

// === impl AppLive ===

impl AppLive {
    pub(super) fn new(
        app: AppName,
        connections_max: u32,
        waits_max: u32,
        counts: Arc<Counts>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Relaxed),
            app,
            slot: OnceLock::new(),
            counts,
            connections: OnceLock::new(),
            connections_max,
            held: AtomicI64::new(0),
            waits: Waits::default(),
            waits_max,
            metrics,
            requests: Default::default(),
            states: Mutex::default(),
            removed: AtomicBool::new(false),
        })
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// Counts one connection.
    ///
    /// # Errors
    /// PL04 when the app has as many on this node as it may.
    pub fn connect(self: &Arc<Self>) -> Result<ConnectionGuard, Failure> {
        let key = || Key::of(&[b"connections of an app", self.app.as_str().as_bytes()]);
        let connections = self.connections.get_or_init(|| self.counts.count(key()));
        if !connections.try_add(self.connections_max) {
            return Err(Failure::new(Code::PL04));
        }
        Ok(ConnectionGuard { live: self.clone() })
    }

    /// Books what its connections hold more, or less.
    pub fn holds(&self, more: i64) {
        let before = self.held.fetch_add(more, Relaxed);
        self.metrics.tenants.change(before, more);
    }

    /// Whether it may have more while memory is short: not while it holds more than its share.
    pub fn may_have_more(&self) -> bool {
        let Tenants { held, active } = &self.metrics.tenants;
        let bytes = |held: &AtomicI64| held.load(Relaxed).max(0) as u64;
        let tenants = u64::from(active.load(Relaxed));
        pressure::may_have_more(bytes(&self.held), bytes(held), tenants, LEAST_BYTES)
    }

    /// Connections of clients to the app that this process has.
    pub fn connections(&self) -> u32 {
        self.connections.get().map_or(0, Count::own)
    }

    /// Whether another generation of the process counts as well.
    pub(crate) fn is_joined(&self) -> bool {
        self.counts.is_joined()
    }

    /// Records a request that has ended, with the status it was answered with if it was.
    pub fn request_ended(
        &self,
        status: Option<StatusCode>,
        took: Duration,
        traced: Option<TraceId>,
    ) {
        let class = match status.map(|status| usize::from(status.as_u16() / 100)) {
            Some(hundreds @ 1..=5) => hundreds - 1,
            _ => CLASSES.len() - 1,
        };
        match traced {
            None => self.metrics.seconds.record(took),
            Some(trace) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.metrics.seconds.record_traced(took, trace, now);
            }
        }
        match self.requests[class].get() {
            Some(counter) => counter.increment(),
            None => self.first_request(class),
        }
    }

    /// The newest version of the app; `None` once it was removed.
    pub(crate) fn newest(&self) -> Option<Arc<Entry>> {
        Some(self.slot.get()?.upgrade()?.entry.load_full()).filter(|_| !self.removed.load(Relaxed))
    }

    /// Takes a place among those that wait, if there is one.
    pub(crate) fn may_wait(&self) -> bool {
        self.waits.enter(self.waits_max)
    }

    pub(crate) fn waits_no_more(&self) {
        self.waits.leave();
    }

    /// The slot of an app whose first version is `entry`.
    pub(super) fn new_slot(&self, entry: Arc<Entry>) -> Arc<Slot> {
        let slot = Arc::new(Slot { entry: ArcSwap::new(entry) });
        // Weak, because the slot holds the entry, which holds this.
        let set = self.slot.set(Arc::downgrade(&slot));
        debug_assert!(set.is_ok(), "an app gets one slot");
        slot
    }

    /// Replaces what this app contributes to `ferrule_instances`.
    pub(super) fn count_states(&self, new: [i64; State::ALL.len()]) {
        let mut states = self.states.lock();
        for (gauge, (old, new)) in self.metrics.instances.iter().zip(states.iter().zip(new)) {
            gauge.add(new - old);
        }
        *states = new;
    }

    /// The app was removed.
    pub(super) fn forget(&self) {
        self.removed.store(true, Relaxed);
        self.count_states(Default::default());
        // Or a process before this one has counted some.
        let counted = self.requests.iter().any(|class| class.get().is_some());
        if counted || self.metrics.registry.carries() {
            self.metrics.registry.forget("app", self.app.as_str());
        }
    }

    #[cold]
    fn first_request(&self, class: usize) {
        // The last requests of an app that went must not bring its labels back.
        if self.removed.load(Relaxed) {
            return;
        }
        let (registry, labels) = (&self.metrics.registry, [self.app.as_str(), CLASSES[class]]);
        self.requests[class]
            .get_or_init(|| catalogue::REQUESTS.counter_in(registry, &labels))
            .increment();
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if let Some(connections) = self.live.connections.get() {
            connections.sub();
        }
    }
}

// === impl Metrics ===

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let seconds = catalogue::REQUEST_DURATION.histogram_in(registry, &[]);
        let instances =
            State::ALL.map(|state| catalogue::INSTANCES.gauge_in(registry, &[state.as_str()]));
        Self { registry: registry.clone(), seconds, instances, tenants: Tenants::default() }
    }
}

// === impl Tenants ===

impl Tenants {
    fn change(&self, before: i64, more: i64) {
        self.held.fetch_add(more, Relaxed);
        match (before > 0, before + more > 0) {
            (false, true) => _ = self.active.fetch_add(1, Relaxed),
            (true, false) => _ = self.active.fetch_sub(1, Relaxed),
            _ => {}
        }
    }
}

// === impl State ===

impl State {
    pub const ALL: [Self; 3] = [Self::Routable, Self::Cordoned, Self::Unhealthy];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Routable => "routable",
            Self::Cordoned => "cordoned",
            Self::Unhealthy => "unhealthy",
        }
    }
}
