//! Counters, gauges and fixed-bucket histograms: sharded by worker, capped in cardinality.
//!
//! What may exist is declared ([`Metric`], [`catalogue!`](crate::catalogue)); a record is one add to
//! a cell of the current shard. Nothing here grows with traffic, with uptime, or when nobody
//! scrapes:
//!
//! - A family holds at most [`Config::labels_max`] label sets and all families together at most
//!   [`Config::series_max`] series; what is beyond counts under [`OTHER`]. Always there are series
//!   without labels and those of `__other__`, which the code bounds.
//! - Series of a family that is labelled by an app leave when nothing touched them for
//!   [`Config::idle`], and return with all they counted when something does (`series.rs`).
//! - What the processes before have counted is carried on (`carried.rs`), within the same caps.
//! - A [`Snapshot`] reads cells and asks no data thread for anything; both text formats and OTLP are
//!   made from it.

mod block;
mod carried;
mod declare;
mod exemplar;
mod exposition;
mod family;
mod handle;
mod series;
mod snapshot;
mod source;
pub mod catalogue;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use carried::Generations;
use family::{Family, Totals};
use snapshot::since_epoch;
use source::Looks;

use crate::lock::Mutex;

pub use carried::{BYTES_MAX as CARRIED_BYTES_MAX, CarryError};
pub use declare::{Kind, Metric, Unit, markdown};
pub use exemplar::Exemplar;
pub use exposition::Format;
pub use handle::{Counter, Gauge, Histogram, SECONDS};
pub use snapshot::{Distribution, FamilySnapshot, Number, Point, Snapshot, Value};
pub use source::Source;

/// The value of every label of a family's overflow set.
pub const OTHER: &str = "__other__";

/// Bytes of a label's value; the rest is cut off at a character.
pub const LABEL_BYTES_MAX: usize = 128;

/// Names and values of one series.
pub type Labels = Arc<[(&'static str, Box<str>)]>;

/// All metrics of the process. Cloning shares it.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// Absent in tests, which may register what they like.
    declared: Option<BTreeMap<&'static str, &'static Metric>>,
    began: Duration,
    totals: Arc<Totals>,
    families: Mutex<BTreeMap<&'static str, Arc<Family>>>,
    generations: Mutex<Generations>,
}

/// The bounds of a registry.
///
/// One series is 128 bytes for each worker and for all other threads; with the defaults and 16
/// workers 21 MiB at worst. A histogram of 15 buckets is 18 series in 256 bytes, and 1 KiB more
/// where it keeps exemplars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Label sets of one family. Default: 1,000.
    pub labels_max: usize,
    /// Time series of all families, each bucket of a histogram being one. Default: 10,000.
    pub series_max: usize,
    /// Time after which a series that nothing touched is evicted, where a family is labelled by
    /// something the code does not bound. Default: 30 min.
    pub idle: Duration,
}

// === impl Registry ===

impl Registry {
    /// A registry for `workers` workers and everyone else, which takes any metric; for tests and
    /// tools. A labelled family keeps at most `labels_max` label sets.
    pub fn new(workers: usize, labels_max: usize) -> Self {
        Self::build(workers, Config { labels_max, ..Config::default() }, None)
    }

    /// The registry of a process with `workers` workers, which takes what `catalogue` lists and
    /// counts what its own caps did.
    pub fn open(workers: usize, config: Config, catalogue: &[&[&'static Metric]]) -> Self {
        let metrics = catalogue.iter().copied().flatten();
        let declared = metrics.map(|metric| (metric.name, *metric)).collect();
        let registry = Self::build(workers, config, Some(declared));
        let totals = registry.inner.totals.clone();
        let shown = move || totals.series.load(Relaxed) + totals.carried_only.load(Relaxed);
        catalogue::SERIES.gauge_read_in(&registry, &[], move || shown() as f64);
        let totals = registry.inner.totals.clone();
        let full = move || totals.beyond_labels.load(Relaxed);
        catalogue::OVERFLOW.counter_read_in(&registry, &["labels"], full);
        let totals = registry.inner.totals.clone();
        let full = move || totals.beyond_series.load(Relaxed);
        catalogue::OVERFLOW.counter_read_in(&registry, &["series"], full);
        let totals = registry.inner.totals.clone();
        catalogue::EVICTED.counter_read_in(&registry, &[], move || totals.evicted.load(Relaxed));
        registry
    }

    fn build(
        workers: usize,
        config: Config,
        declared: Option<BTreeMap<&'static str, &'static Metric>>,
    ) -> Self {
        let totals = Arc::new(Totals::new(workers + 1, config.series_max));
        let families = Mutex::new("metrics", BTreeMap::new());
        let generations = Mutex::new("generations of metrics", Generations::default());
        let began = since_epoch();
        let inner = Inner { config, declared, began, totals, families, generations };
        Self { inner: Arc::new(inner) }
    }

    /// The counter `name` with `labels`; the same one when it exists.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Counter {
        let metric = Metric::new(name, Kind::Counter, &[], &[], help);
        Counter { cells: self.family(metric, labels).cells(owned(labels)) }
    }

    /// The gauge `name` with `labels`; the same one when it exists.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Gauge {
        let metric = Metric::new(name, Kind::Gauge, &[], &[], help);
        Gauge { cells: self.family(metric, labels).cells(owned(labels)) }
    }

    /// A gauge that is read when somebody scrapes.
    pub fn gauge_read(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let metric = Metric::new(name, Kind::Gauge, &[], &[], help);
        let family = self.family(metric, labels);
        family.read(owned(labels), Arc::new(move |_| Number::Float(read())));
    }

    /// A counter that is read when somebody scrapes.
    pub fn counter_read(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let metric = Metric::new(name, Kind::Counter, &[], &[], help);
        let family = self.family(metric, labels);
        family.read(owned(labels), Arc::new(move |_| Number::Unsigned(read())));
    }

    /// The histogram `name` with `labels` over `bounds`; the same one when it exists.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        bounds: &'static [f64],
    ) -> Histogram {
        let metric = Metric::new(name, Kind::Histogram, &[], bounds, help);
        let family = self.family(metric, labels);
        Histogram { bounds: family.metric.bounds, cells: family.cells(owned(labels)) }
    }

    /// Forgets every series of every family whose label `label` is `value`: an app went. Handles
    /// that are still held count for nobody.
    pub fn forget(&self, label: &'static str, value: &str) {
        self.families().iter().for_each(|family| family.forget(label, value));
    }

    /// Evicts what idles. To be called about once a minute, on no data thread.
    pub fn sweep(&self, now: Instant) {
        self.families().iter().for_each(|family| family.sweep(now, self.inner.config.idle));
    }

    /// All numbers as of now.
    pub fn snapshot(&self) -> Snapshot {
        let (families, mut looks) = (self.families(), Looks::default());
        let families = families.iter().map(|family| FamilySnapshot::of(family, &mut looks));
        let families = families.filter(|family| !family.points.is_empty()).collect();
        Snapshot { at: since_epoch(), began: self.inner.began, families }
    }

    /// The text exposition format, version 0.0.4.
    pub fn render(&self) -> String {
        self.render_as(Format::Prometheus)
    }

    /// The answer to a scrape.
    pub fn render_as(&self, format: Format) -> String {
        exposition::render(&self.snapshot(), format)
    }

    /// Bytes of cells, as the ledger shows them.
    pub(crate) fn bytes(&self) -> u64 {
        self.inner.totals.bytes.load(Relaxed)
    }

    /// What [`Self::bytes`] stays below: a full registry in which every label set is one series, and
    /// as much again for the sets without labels, those of `__other__` and what is being evicted.
    pub(crate) fn bytes_max(&self) -> u64 {
        2 * (self.inner.config.series_max * (self.shards() + 1) * 128) as u64
    }

    pub(crate) fn shards(&self) -> usize {
        self.inner.totals.shards
    }

    fn families(&self) -> Vec<Arc<Family>> {
        self.inner.families.lock().values().cloned().collect()
    }

    /// The family of `metric`, as it was declared.
    fn family(&self, metric: Metric, labels: &[(&'static str, &str)]) -> Arc<Family> {
        let Inner { config, declared, totals, families, .. } = &*self.inner;
        let kind = metric.kind;
        let metric = match declared {
            None => metric,
            Some(declared) => {
                let declared = declared.get(metric.name);
                debug_assert!(declared.is_some(), "{} is in no catalogue", metric.name);
                let declared = declared.map_or(metric, |declared| **declared);
                let names = labels.iter().map(|(name, _)| name);
                debug_assert!(names.eq(declared.labels), "{} has other labels", metric.name);
                declared
            }
        };
        let mut families = families.lock();
        let new = || Family::new(metric, config.labels_max, totals.clone());
        let family = families.entry(metric.name).or_insert_with(new);
        debug_assert!(family.metric.kind == kind, "{} is of another kind", metric.name);
        family.clone()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { labels_max: 1_000, series_max: 10_000, idle: Duration::from_secs(30 * 60) }
    }
}

fn owned(labels: &[(&'static str, &str)]) -> Labels {
    let cut = |value: &str| value[..value.floor_char_boundary(LABEL_BYTES_MAX)].into();
    labels.iter().map(|(label, value)| (*label, cut(value))).collect()
}

// === impl Metric ===

/// How declared metrics become handles; `values` are those of the labels, in their order.
impl Metric {
    /// The counter with these label values; the same one when it exists.
    pub fn counter_in(&self, registry: &Registry, values: &[&str]) -> Counter {
        let (family, labels) = self.family(registry, Kind::Counter, values);
        Counter { cells: family.cells(labels) }
    }

    /// The gauge with these label values; the same one when it exists.
    pub fn gauge_in(&self, registry: &Registry, values: &[&str]) -> Gauge {
        let (family, labels) = self.family(registry, Kind::Gauge, values);
        Gauge { cells: family.cells(labels) }
    }

    /// The histogram with these label values; the same one when it exists.
    pub fn histogram_in(&self, registry: &Registry, values: &[&str]) -> Histogram {
        let (family, labels) = self.family(registry, Kind::Histogram, values);
        Histogram { bounds: family.metric.bounds, cells: family.cells(labels) }
    }

    /// A gauge that is read when somebody scrapes.
    pub fn gauge_read_in(
        &self,
        registry: &Registry,
        values: &[&str],
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let (family, labels) = self.family(registry, Kind::Gauge, values);
        family.read(labels, Arc::new(move |_| Number::Float(read())));
    }

    /// A gauge that shows a part of what `source` sees, which is looked at once for each scrape.
    pub fn gauge_read_of<T: 'static>(
        &self,
        registry: &Registry,
        values: &[&str],
        source: &Source<T>,
        read: impl Fn(&T) -> f64 + Send + Sync + 'static,
    ) {
        let (family, labels) = self.family(registry, Kind::Gauge, values);
        let source = source.clone();
        let read = move |looks: &mut Looks| Number::Float(read(&source.seen(looks)));
        family.read(labels, Arc::new(read));
    }

    /// A counter that is read when somebody scrapes.
    pub fn counter_read_in(
        &self,
        registry: &Registry,
        values: &[&str],
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let (family, labels) = self.family(registry, Kind::Counter, values);
        family.read(labels, Arc::new(move |_| Number::Unsigned(read())));
    }

    fn family(&self, registry: &Registry, kind: Kind, values: &[&str]) -> (Arc<Family>, Labels) {
        debug_assert!(self.kind == kind, "{} is no {}", self.name, kind.as_str());
        debug_assert_eq!(self.labels.len(), values.len(), "labels of {}", self.name);
        let labels: Vec<_> =
            self.labels.iter().zip(values).map(|(label, value)| (*label, *value)).collect();
        (registry.family(*self, &labels), owned(&labels))
    }
}

#[cfg(test)]
mod tests;
