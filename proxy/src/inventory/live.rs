//! What of an app outlives its versions: its connections, who waits, its metrics.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use control::snapshot::AppName;
use http::StatusCode;
use parking_lot::Mutex;
use telemetry::metrics::{Counter, Gauge, Histogram, Registry, SECONDS};

use super::Entry;
use super::table::Slot;
use crate::balance::queue::Waits;
use crate::error::{Code, Failure};

/// Live state of one app on this node.
pub struct AppLive {
    app: AppName,
    /// Where the newest version is; dead once the app was removed.
    slot: OnceLock<Weak<Slot>>,
    /// On no cache line of its own: it moves with connections, not with requests.
    connections: AtomicU32,
    connections_max: u32,
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
}

/// The last is for requests that ended without an answer.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

// === impl AppLive ===

impl AppLive {
    pub(super) fn new(
        app: AppName,
        connections_max: u32,
        waits_max: u32,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            app,
            slot: OnceLock::new(),
            connections: AtomicU32::new(0),
            connections_max,
            waits: Waits::default(),
            waits_max,
            metrics,
            requests: Default::default(),
            states: Mutex::default(),
            removed: AtomicBool::new(false),
        })
    }

    /// Counts one connection.
    ///
    /// # Errors
    /// PL04 when the app has as many on this node as it may.
    pub fn connect(self: &Arc<Self>) -> Result<ConnectionGuard, Failure> {
        let before = self.connections.fetch_add(1, Relaxed);
        let guard = ConnectionGuard { live: self.clone() }; // takes it back, also below
        if before >= self.connections_max {
            return Err(Failure::new(Code::PL04));
        }
        Ok(guard)
    }

    /// Connections of clients to the app on this node.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Records a request that has ended, with the status it was answered with if it was.
    pub fn request_ended(&self, status: Option<StatusCode>, took: Duration) {
        let class = match status.map(|status| usize::from(status.as_u16() / 100)) {
            Some(hundreds @ 1..=5) => hundreds - 1,
            _ => CLASSES.len() - 1,
        };
        self.metrics.seconds.record(took);
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
        if self.requests.iter().any(|class| class.get().is_some()) {
            self.metrics.registry.forget("app", self.app.as_str());
        }
    }

    #[cold]
    fn first_request(&self, class: usize) {
        // The last requests of an app that went must not bring its labels back.
        if self.removed.load(Relaxed) {
            return;
        }
        let labels = [("app", self.app.as_str()), ("class", CLASSES[class])];
        let help = "Requests that ended, by app and class of status.";
        self.requests[class]
            .get_or_init(|| self.metrics.registry.counter("ferrule_requests_total", help, &labels))
            .increment();
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.live.connections.fetch_sub(1, Relaxed);
    }
}

// === impl Metrics ===

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let help = "From the head of a request to the last byte of its answer.";
        let seconds = registry.histogram("ferrule_request_duration_seconds", help, &[], SECONDS);
        let instances = State::ALL.map(|state| {
            let help = "Instances in the inventory, by whether new work may go to them.";
            registry.gauge("ferrule_instances", help, &[("state", state.as_str())])
        });
        Self { registry: registry.clone(), seconds, instances }
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
