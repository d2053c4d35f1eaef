//! What the sampler publishes: plain atomics that anybody may load at any time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::meter::{Meter, Sample};
use crate::cgroup::{Cgroup, Events};
use crate::memory;
use crate::metrics::{Metric, Registry, Source, catalogue};
use crate::process::Counts;

/// The last tick's figures, in bytes. Each is true by itself; two of them may be a tick apart.
pub struct Readings {
    meter: Arc<Meter>,
    resident: AtomicU64,
    used: AtomicU64,
    limit: AtomicU64,
    pressure: AtomicU64,
    heartbeat: AtomicU64,
    since_tick: AtomicU64,
    highest: Highest,
    cpu: AtomicU64,
    traffic: OnceLock<Box<dyn Fn() -> Traffic + Send + Sync>>,
}

/// What the node does at the moment, for the black box.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub connections: u64,
    pub requests: u64,
}

// === impl Readings ===

impl Readings {
    pub(super) fn new(meter: Arc<Meter>) -> Self {
        Self {
            meter,
            resident: AtomicU64::new(0),
            used: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            pressure: AtomicU64::new(0),
            heartbeat: AtomicU64::new(0),
            since_tick: AtomicU64::new(0),
            highest: Highest::default(),
            cpu: AtomicU64::new(0),
            traffic: OnceLock::new(),
        }
    }

    /// Resident memory of this process.
    pub fn resident(&self) -> u64 {
        self.resident.load(Relaxed)
    }

    /// What counts against [`Self::limit`]; see [`Sample::used`].
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// 0 when there is no limit.
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// How full memory is or will be in 100 ms, whichever is more, as a share of the limit. Can be
    /// above 1. What the steps of the pressure ladder are compared with.
    pub fn pressure(&self) -> f64 {
        self.pressure_thousandths() as f64 / 1000.0
    }

    /// The same, in thousandths of the limit.
    pub fn pressure_thousandths(&self) -> u64 {
        self.pressure.load(Relaxed)
    }

    /// When the last tick was, in nanoseconds since 1970: the sampler lives if this moves.
    pub fn heartbeat(&self) -> u64 {
        self.heartbeat.load(Relaxed)
    }

    /// Highest resident memory of any tick since the scrape before the last, to be called once per
    /// scrape.
    ///
    /// It reaches back over two scrapes, not one, so that two scrapers that take turns both see
    /// every spike: what one takes, the next still finds. With one scraper a spike shows twice.
    pub fn take_resident_max(&self) -> u64 {
        self.highest.take(self.resident())
    }

    /// Who knows what the node does at the moment. The first to say so stays.
    pub fn watch_traffic(&self, traffic: impl Fn() -> Traffic + Send + Sync + 'static) {
        drop(self.traffic.set(Box::new(traffic)));
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic.get().map(|traffic| traffic()).unwrap_or_default()
    }

    /// Pages of the allocator with at least one allocation, without the lock its totals take.
    pub fn active(&self) -> u64 {
        memory::approximate_active() as u64
    }

    /// Memory now rather than at the last tick, for whoever cannot wait 10 ms: two `pread`s.
    pub fn look_now(&self) -> Option<Sample> {
        self.meter.read()
    }

    pub(super) fn refresh_cache(&self) -> bool {
        self.meter.refresh()
    }

    /// Counts `bytes` and says what was counted since the last tick.
    pub(crate) fn allocated_since_tick(&self, bytes: u64) -> u64 {
        self.since_tick.fetch_add(bytes, Relaxed).saturating_add(bytes)
    }

    pub(super) fn publish(&self, now: u64, sample: &Sample, projected: u64) {
        let Sample { resident, used, limit } = *sample;
        self.since_tick.store(0, Relaxed);
        self.resident.store(resident, Relaxed);
        self.used.store(used, Relaxed);
        self.limit.store(limit, Relaxed);
        self.highest.see(resident);
        let pressure = used.max(projected).saturating_mul(1000).checked_div(limit).unwrap_or(0);
        self.pressure.store(pressure, Relaxed);
        self.heartbeat.store(now, Relaxed);
    }

    pub(super) fn set_cpu(&self, nanoseconds: u64) {
        self.cpu.store(nanoseconds, Relaxed);
    }

    /// Exports what is read here and what the kernel says beside it.
    pub fn export(self: &Arc<Self>, registry: &Registry) {
        let gauge = |metric: &Metric, values: &[&str], read: fn(&Self) -> f64| {
            let readings = self.clone();
            metric.gauge_read_in(registry, values, move || read(&readings));
        };
        gauge(&catalogue::RESIDENT_MAX, &[], |of| of.take_resident_max() as f64);
        gauge(&catalogue::MEMORY_USED, &[], |of| of.used() as f64);
        gauge(&catalogue::MEMORY_LIMIT, &[], |of| of.limit() as f64);
        gauge(&catalogue::MEMORY_PRESSURE, &[], Self::pressure);
        gauge(&catalogue::SAMPLER_CPU, &[], |of| of.cpu.load(Relaxed) as f64 / 1e9);
        let readings = self.clone();
        export_counts(registry, move || readings.meter.process().counts());
        if self.meter.cgroup().is_some() {
            self.export_cgroup(registry);
        }
    }

    fn export_cgroup(self: &Arc<Self>, registry: &Registry) {
        type Read = fn(&Cgroup) -> Option<u64>;
        let gauge = |metric: &Metric, value: &str, read: Read| {
            let readings = self.clone();
            metric.gauge_read_in(registry, &[value], move || {
                readings.meter.cgroup().and_then(read).map_or(f64::NAN, |value| value as f64)
            });
        };
        gauge(&catalogue::CGROUP_MEMORY, "usage", |cgroup| cgroup.usage());
        gauge(&catalogue::CGROUP_MEMORY, "cache", |cgroup| cgroup.cache());
        gauge(&catalogue::CGROUP_MEMORY, "peak", |cgroup| cgroup.peak());
        gauge(&catalogue::CGROUP_MEMORY, "limit", |cgroup| cgroup.limit());
        let readings = self.clone();
        let events = Source::new(move || readings.meter.cgroup().and_then(Cgroup::events));
        let event = |value: &str, read: fn(&Events) -> u64| {
            catalogue::CGROUP_EVENTS.gauge_read_of(registry, &[value], &events, move |events| {
                events.as_ref().map_or(f64::NAN, |events| read(events) as f64)
            });
        };
        event("max", |events| events.max);
        event("oom", |events| events.oom);
        event("oom_kill", |events| events.oom_kill);
    }
}

/// The kernel counts all of it at once, so it is asked once for each scrape.
fn export_counts(registry: &Registry, counts: impl Fn() -> Counts + Send + Sync + 'static) {
    let counts = Source::new(counts);
    let gauge = |metric: &Metric, values: &[&str], read: fn(&Counts) -> u64| {
        metric.gauge_read_of(registry, values, &counts, move |counts| read(counts) as f64);
    };
    gauge(&catalogue::DESCRIPTORS, &[], |counts| counts.descriptors);
    gauge(&catalogue::THREADS, &[], |counts| counts.threads);
    gauge(&catalogue::SOCKETS, &["used"], |counts| counts.sockets);
    gauge(&catalogue::SOCKETS, &["time_wait"], |counts| counts.time_wait);
    gauge(&catalogue::TCP_MEMORY, &[], |counts| counts.tcp_bytes);
}

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident, used, limit, pressure, heartbeat, .. } = self;
        f.debug_struct("Readings")
            .field("resident", resident)
            .field("used", used)
            .field("limit", limit)
            .field("pressure", pressure)
            .field("heartbeat", heartbeat)
            .finish_non_exhaustive()
    }
}

/// A maximum that two readers can take turns in reading.
#[derive(Default)]
struct Highest {
    /// Since the last scrape.
    current: AtomicU64,
    /// Between the last two scrapes.
    previous: AtomicU64,
}

impl Highest {
    fn see(&self, value: u64) {
        self.current.fetch_max(value, Relaxed);
    }

    fn take(&self, now: u64) -> u64 {
        let current = self.current.swap(now, Relaxed);
        self.previous.swap(current, Relaxed).max(current).max(now)
    }
}

/// How fast memory grows, smoothed over some five ticks.
#[derive(Debug, Default)]
pub(super) struct Slope {
    last: Option<(u64, u64)>,
    /// Bytes per nanosecond.
    growth: f64,
}

/// How far ahead growth is carried on: time enough to act, too short for a false alarm.
const AHEAD_NANOSECONDS: f64 = 100e6;

/// Weight of the newest tick.
const NEWEST: f64 = 0.3;

impl Slope {
    /// What `used` will be in 100 ms if it goes on growing; itself, if it does not grow.
    pub(super) fn project(&mut self, now: u64, used: u64) -> u64 {
        if let Some((then, before)) = self.last
            && now > then
        {
            let growth = (used as f64 - before as f64) / (now - then) as f64;
            self.growth += NEWEST * (growth - self.growth);
        }
        self.last = Some((now, used));
        used.saturating_add((self.growth * AHEAD_NANOSECONDS).max(0.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_scrapers_that_take_turns_both_see_a_spike() {
        let highest = Highest::default();
        highest.see(10);
        assert_eq!(highest.take(10), 10);
        highest.see(200);
        highest.see(10);
        assert_eq!(highest.take(10), 200, "the one");
        assert_eq!(highest.take(10), 200, "the other");
        assert_eq!(highest.take(10), 10, "and then it is over");
    }

    #[test]
    fn all_counts_of_a_scrape_come_from_one_reading() {
        let registry = Registry::new(1, 10);
        let readings = Arc::<AtomicU64>::default();
        let counted = readings.clone();
        export_counts(&registry, move || {
            let n = counted.fetch_add(1, Relaxed) + 1;
            Counts { descriptors: n, threads: n, sockets: n, time_wait: n, tcp_bytes: n }
        });
        for scrape in 1..=3 {
            let text = registry.render();
            let values = text.lines().filter(|line| !line.starts_with('#'));
            let values: Vec<_> = values.filter_map(|line| line.rsplit(' ').next()).collect();
            assert_eq!(values, [scrape.to_string().as_str(); 5], "{text}");
            assert_eq!(readings.load(Relaxed), scrape);
        }
    }

    #[test]
    fn growth_is_carried_on_for_100_ms_and_shrinking_is_not() {
        let mut slope = Slope::default();
        let tick = |n: u64| n * 10_000_000;
        assert_eq!(slope.project(tick(0), 1_000), 1_000);
        let mut projected = 0;
        for n in 1..50 {
            projected = slope.project(tick(n), 1_000 + n * 100);
        }
        let used = 1_000 + 49 * 100;
        assert!(
            (projected - used).abs_diff(1_000) <= 1,
            "100 per tick is 1,000 in ten: {projected}"
        );
        for n in 50..100 {
            projected = slope.project(tick(n), used - (n - 49) * 50);
        }
        assert_eq!(projected, used - 50 * 50);
        // A clock that stands still or jumps back is no growth.
        assert_eq!(slope.project(tick(10), 1), 1);
    }
}
