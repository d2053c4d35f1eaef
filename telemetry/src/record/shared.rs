//! What the recorders of all workers share: configuration, budgets, caps, counters and outboxes.
//!
//! A request that is not kept touches none of it but with plain loads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use quanta::Clock;

use super::model::Keep;
use super::pool::Budget;
use super::typical::slot;
use super::{Config, ConfigError, Outboxes};
use crate::ledger::{Account, Ledger, Unit};
use crate::metrics::{Counter, Gauge, Registry, catalogue};
use crate::outbox::{Bytes, Outbox, Wakes};

/// One per node.
pub struct Shared {
    pub(super) config: Config,
    pub(super) clock: Clock,
    /// The clock's raw value when this was made; times shared by workers count from it.
    start: u64,
    exports: AtomicBool,
    access_log: AtomicBool,
    /// Nanoseconds since `start` until which everything is near an anomaly.
    anomaly_until: AtomicU64,
    node_window: AtomicU64,
    app_windows: Box<[AtomicU64]>,
    pub(super) buffers: Arc<Budget>,
    pub(super) verbose_buffers: Arc<Budget>,
    pub(super) slots: Account,
    pub(super) counters: Counters,
    outboxes: Box<[Outbox]>,
    wakes: Arc<Wakes>,
}

pub(super) struct Counters {
    pub(super) live: Gauge,
    kept: [Counter; Keep::ALL.len()],
    pub(super) no_buffer: Counter,
    pub(super) no_verbose_buffer: Counter,
    node_cap: Counter,
    app_cap: Counter,
}

/// By how much the end of the anomaly window moves at least, in nanoseconds.
const ANOMALY_STEP: u64 = 1_000_000_000;

/// Apps whose exports are capped apart from each other. Two on one slot share a cap.
const APP_WINDOWS: usize = 1024;

// === impl Shared ===

impl Shared {
    /// For `workers` workers, each of which makes its own [`super::Recorder`].
    ///
    /// Takes some 10 ms once per process, in which the time stamp counter is measured.
    ///
    /// # Errors
    ///
    /// The first of [`Config::problems`].
    pub fn new(
        config: Config,
        workers: usize,
        registry: &Registry,
        ledger: &Ledger,
    ) -> Result<Arc<Self>, ConfigError> {
        // A request of 4 spans and 4 events reads the clock 14 times, which is most of what its record
        // costs: 9 ns by the time stamp counter, 24 by `Instant` (measured). Where the processor does
        // not promise a counter of constant rate, this clock asks the system as `Instant` does. What
        // the counter drifts within a request is harmless; the time of day is set anew by every sweep.
        Self::with_clock(config, workers, registry, ledger, Clock::new())
    }

    pub(super) fn with_clock(
        config: Config,
        workers: usize,
        registry: &Registry,
        ledger: &Ledger,
        clock: Clock,
    ) -> Result<Arc<Self>, ConfigError> {
        if let Some(problem) = config.problems().first() {
            return Err(*problem);
        }
        let workers = workers.max(1);
        let budget =
            |name, each, cap| Budget::new(each, cap, ledger.open(name, Unit::Bytes, cap as u64));
        let dropped = |reason| catalogue::TELEMETRY_DROPPED.counter_in(registry, &[reason]);
        let wakes = Wakes::new();
        let wides = config.access_log_waiting_max * size_of::<super::Wide>();
        let outboxes_cap = config.outboxes_cap() + workers * wides;
        let outbox = ledger.open("record_outboxes", Unit::Bytes, outboxes_cap as u64);
        let bytes = Bytes::new(config.outboxes_cap());
        let outboxes = (0..workers).map(|_| {
            Outbox::new(
                Arc::clone(&bytes),
                config.access_log_waiting_max,
                outbox.clone(),
                dropped("outbox"),
                dropped("access_log"),
                Arc::clone(&wakes),
            )
        });
        let shared = Self {
            start: clock.raw(),
            clock,
            exports: AtomicBool::new(false),
            access_log: AtomicBool::new(false),
            anomaly_until: AtomicU64::new(0),
            node_window: AtomicU64::new(0),
            app_windows: (0..APP_WINDOWS).map(|_| AtomicU64::new(0)).collect(),
            buffers: budget("record_buffers", config.buffer_bytes, config.buffers_cap()),
            verbose_buffers: budget(
                "record_verbose_buffers",
                config.verbose_buffer_bytes,
                config.verbose_buffers_cap(),
            ),
            // As many as there are requests; what bounds those bounds these.
            slots: ledger.open("record_slots", Unit::Bytes, 0),
            counters: Counters::new(registry, dropped),
            outboxes: outboxes.collect(),
            wakes,
            config,
        };
        Ok(Arc::new(shared))
    }

    /// Whether anybody reads what is kept: an exporter with an endpoint. While nobody does, only
    /// requests that are made verbose have a buffer.
    pub fn want_exports(&self, wanted: bool) {
        self.exports.store(wanted, Relaxed);
    }

    /// Records of requests and connections that have not ended.
    pub fn live(&self) -> i64 {
        self.counters.live.value()
    }

    /// Whether anybody reads what is kept.
    pub fn exports_wanted(&self) -> bool {
        self.exports.load(Relaxed)
    }

    /// Whether the wide event of every request goes to [`Outboxes::pop_wide`].
    pub fn want_access_log(&self, wanted: bool) {
        self.access_log.store(wanted, Relaxed);
    }

    pub(super) fn access_log_wanted(&self) -> bool {
        self.access_log.load(Relaxed)
    }

    /// Something unusual happened on this node: requests that end within the anomaly window are kept,
    /// within the caps. From any thread.
    pub fn note_anomaly(&self) {
        let now = self.since_start();
        let window = nanos(self.config.anomaly_window);
        // A storm of them moves the end of the window once a second, and only reads it in between.
        let moved = self.anomaly_until.load(Relaxed).saturating_add(ANOMALY_STEP.min(window));
        let until = now.saturating_add(window);
        if until >= moved {
            self.anomaly_until.fetch_max(until, Relaxed);
        }
    }

    pub(super) fn is_near_anomaly(&self) -> bool {
        let until = self.anomaly_until.load(Relaxed);
        until != 0 && self.since_start() < until
    }

    /// The reading end of what the workers keep; it waits for kept records. For one reader.
    pub fn outboxes(self: &Arc<Self>) -> Outboxes {
        Outboxes::new(Arc::clone(self), |wakes| &wakes.finished)
    }

    /// The reading end that waits for wide events instead: the access log's. For one reader.
    pub fn ended(self: &Arc<Self>) -> Outboxes {
        Outboxes::new(Arc::clone(self), |wakes| &wakes.wides)
    }

    pub(crate) fn worker_outboxes(&self) -> &[Outbox] {
        &self.outboxes
    }

    pub(crate) fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    pub(super) fn outbox(&self, worker: usize) -> &Outbox {
        &self.outboxes[worker.min(self.outboxes.len() - 1)]
    }

    /// Whether one more record may be kept this second; counts those that may not.
    pub(super) fn admit(&self, app: Option<usize>) -> bool {
        let second = self.since_start() / 1_000_000_000;
        let Config { exports_per_second_max, app_exports_per_second_max, .. } = self.config;
        if let Some(app) = app {
            let window = &self.app_windows[slot(app, APP_WINDOWS)];
            if !one_more(window, second, app_exports_per_second_max) {
                self.counters.app_cap.increment();
                return false;
            }
        }
        let admitted = one_more(&self.node_window, second, exports_per_second_max);
        if !admitted {
            self.counters.node_cap.increment();
        }
        admitted
    }

    fn since_start(&self) -> u64 {
        self.clock.delta_as_nanos(self.start, self.clock.raw())
    }
}

/// Counts in a window of one second; the second and the count share a word. Once it is full it is
/// only read, so a storm of errors does not make the workers fight for the line.
fn one_more(window: &AtomicU64, second: u64, max: u32) -> bool {
    let second = second & u64::from(u32::MAX);
    let more = |packed: u64| {
        let count = if packed >> 32 == second { packed as u32 } else { 0 };
        (count < max).then(|| second << 32 | u64::from(count + 1))
    };
    window.fetch_update(Relaxed, Relaxed, more).is_ok()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Counters ===

impl Counters {
    fn new(registry: &Registry, dropped: impl Fn(&'static str) -> Counter) -> Self {
        Self {
            live: catalogue::RECORDS_LIVE.gauge_in(registry, &[]),
            kept: Keep::ALL
                .map(|keep| catalogue::RECORDS_KEPT.counter_in(registry, &[keep.as_str()])),
            no_buffer: dropped("pool"),
            no_verbose_buffer: dropped("verbose_pool"),
            node_cap: dropped("cap"),
            app_cap: dropped("app_cap"),
        }
    }

    pub(super) fn kept(&self, reason: Keep) -> &Counter {
        &self.kept[reason as usize]
    }
}
