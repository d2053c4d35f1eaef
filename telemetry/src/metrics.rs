//! Counters, gauges and fixed-bucket histograms: sharded by worker, capped in cardinality.
//!
//! What exists is decided when it is registered; a record is one add to a cell of the current
//! shard. Nothing here grows with traffic, with uptime, or when nobody scrapes. A family that is
//! labelled by something strangers can multiply (an app) keeps at most `labels_max` label sets and
//! counts the rest under `__other__`.

mod cells;
mod exposition;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use cells::Cells;

/// The value of every label of a family's overflow set.
pub const OTHER: &str = "__other__";

/// All metrics of the process.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    shards: usize,
    labels_max: usize,
    families: Mutex<BTreeMap<&'static str, Family>>,
}

struct Family {
    help: &'static str,
    kind: Kind,
    series: BTreeMap<Labels, Series>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

type Labels = Vec<(&'static str, String)>;

enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Read(Box<dyn Fn() -> f64 + Send + Sync>),
    Histogram(Histogram),
}

/// Only rises. Cloning shares it.
#[derive(Clone)]
pub struct Counter {
    cells: Cells,
}

/// Rises and falls by deltas, so that every worker keeps its own part.
#[derive(Clone)]
pub struct Gauge {
    cells: Cells,
}

/// Durations in fixed buckets. Cloning shares it.
#[derive(Clone)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One cell per bucket, one for what lies above the last bound.
    buckets: Arc<[Cells]>,
    microseconds: Cells,
}

/// Bounds for request durations, in seconds.
pub const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

// === impl Registry ===

impl Registry {
    /// A registry for `workers` workers and everyone else; a labelled family keeps at most
    /// `labels_max` label sets.
    pub fn new(workers: usize, labels_max: usize) -> Self {
        let inner = Inner { shards: workers + 1, labels_max, families: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The counter `name` with `labels`; the same one when it exists.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Counter {
        let new = || Series::Counter(Counter { cells: Cells::new(self.inner.shards) });
        self.with(name, help, Kind::Counter, labels, new, |series| match series {
            Series::Counter(counter) => counter.clone(),
            _ => unreachable!("a family has one kind"),
        })
    }

    /// The gauge `name` with `labels`; the same one when it exists.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Gauge {
        let new = || Series::Gauge(Gauge { cells: Cells::new(self.inner.shards) });
        self.with(name, help, Kind::Gauge, labels, new, |series| match series {
            Series::Gauge(gauge) => gauge.clone(),
            _ => unreachable!("a gauge that is read cannot be written"),
        })
    }

    /// A gauge that is read when somebody scrapes.
    pub fn gauge_read(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.with(name, help, Kind::Gauge, labels, || Series::Read(Box::new(read)), |_| ());
    }

    /// The histogram `name` with `labels` over `bounds`; the same one when it exists.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        bounds: &'static [f64],
    ) -> Histogram {
        let new = || Series::Histogram(Histogram::new(self.inner.shards, bounds));
        self.with(name, help, Kind::Histogram, labels, new, |series| match series {
            Series::Histogram(histogram) => histogram.clone(),
            _ => unreachable!("a family has one kind"),
        })
    }

    /// Forgets every series of every family whose label `label` is `value`: an app went.
    pub fn forget(&self, label: &'static str, value: &str) {
        for family in self.inner.families.lock().values_mut() {
            family.series.retain(|labels, _| {
                !labels.iter().any(|(name, held)| *name == label && held == value)
            });
        }
    }

    /// The text exposition format, version 0.0.4.
    pub fn render(&self) -> String {
        exposition::render(&self.inner.families.lock())
    }

    fn with<T>(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&'static str, &str)],
        new: impl FnOnce() -> Series,
        take: impl FnOnce(&Series) -> T,
    ) -> T {
        let mut families = self.inner.families.lock();
        let family =
            families.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        debug_assert!(family.kind == kind, "{name} was registered as another kind");
        let mut key: Labels =
            labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect();
        if family.series.len() >= self.inner.labels_max && !family.series.contains_key(&key) {
            for (_, value) in &mut key {
                OTHER.clone_into(value);
            }
        }
        take(family.series.entry(key).or_insert_with(new))
    }
}

// === impl Counter, Gauge, Histogram ===

impl Counter {
    pub fn increment(&self) {
        self.cells.add(1);
    }

    pub fn add(&self, n: u64) {
        self.cells.add(n as i64);
    }

    /// The sum over all shards.
    pub fn value(&self) -> u64 {
        self.cells.sum() as u64
    }
}

impl Gauge {
    pub fn add(&self, n: i64) {
        self.cells.add(n);
    }

    /// The sum over all shards.
    pub fn value(&self) -> i64 {
        self.cells.sum()
    }
}

impl Histogram {
    fn new(shards: usize, bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| Cells::new(shards)).collect();
        Self { bounds, buckets, microseconds: Cells::new(shards) }
    }

    pub fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].add(1);
        self.microseconds.add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_capped_and_the_rest_is_counted_as_other() {
        let registry = Registry::new(1, 3);
        for app in 0..10 {
            let app = format!("app-{app}");
            registry.counter("ferrule_requests_total", "", &[("app", &app)]).increment();
        }
        let text = registry.render();
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 4);
        assert!(text.contains("ferrule_requests_total{app=\"__other__\"} 7"), "{text}");
    }

    #[test]
    fn a_forgotten_label_makes_room() {
        let registry = Registry::new(1, 1);
        registry.counter("ferrule_requests_total", "", &[("app", "a")]).increment();
        registry.forget("app", "a");
        registry.counter("ferrule_requests_total", "", &[("app", "b")]).add(2);
        assert!(registry.render().contains("ferrule_requests_total{app=\"b\"} 2"));
    }

    #[test]
    fn shards_add_up() {
        let registry = Registry::new(2, 10);
        let counter = registry.counter("ferrule_things_total", "", &[]);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let counter = counter.clone();
                scope.spawn(move || {
                    if worker < 2 {
                        crate::shard::claim(worker);
                    }
                    (0..1000).for_each(|_| counter.increment());
                });
            }
        });
        assert_eq!(counter.value(), 4000);
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        let registry = Registry::new(1, 10);
        let histogram = registry.histogram("ferrule_wait_seconds", "", &[], &[0.1, 1.0]);
        for milliseconds in [50, 500, 5000] {
            histogram.record(Duration::from_millis(milliseconds));
        }
        let text = registry.render();
        for line in [
            "ferrule_wait_seconds_bucket{le=\"0.1\"} 1",
            "ferrule_wait_seconds_bucket{le=\"1\"} 2",
            "ferrule_wait_seconds_bucket{le=\"+Inf\"} 3",
            "ferrule_wait_seconds_sum 5.55",
            "ferrule_wait_seconds_count 3",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let registry = Registry::new(1, 10);
        registry.counter("ferrule_odd_total", "", &[("app", "a\"b\\c\nd")]).increment();
        assert!(registry.render().contains(r#"ferrule_odd_total{app="a\"b\\c\nd"} 1"#));
    }
}
