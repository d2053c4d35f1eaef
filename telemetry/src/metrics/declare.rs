//! What a metric is, declared once as a static.
//!
//! A crate lists its metrics with [`catalogue!`](crate::catalogue); a process gives every list to
//! [`Registry::open`](super::Registry::open). Names, labels and help texts stand there and nowhere
//! else, so the documentation can be generated and a node's scrape be checked against them.

use std::fmt::Write as _;

/// One family of series. Copying it is cheap: everything in it is static.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Names of the labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    pub help: &'static str,
    /// Upper bounds of a histogram's buckets, rising, in seconds.
    pub bounds: &'static [f64],
    /// The label that something outside the code multiplies, such as an app. Its families are
    /// capped, the rest counts under [`OTHER`](super::OTHER), and series that idle are evicted.
    pub per: Option<&'static str>,
    /// Label sets of this family; the registry's `labels_max` when absent.
    pub labels_max: Option<usize>,
    /// Whether each bucket keeps the trace of a recent observation.
    pub exemplars: bool,
    /// A counter of microseconds, exported as seconds.
    pub microseconds: bool,
    /// Whether what two processes count adds up, so that one that takes over shows what the one
    /// before counted together with its own.
    pub adds_up: bool,
}

/// What a metric's number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Only rises.
    Counter,
    Gauge,
    Histogram,
}

/// What a metric counts, as the end of its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Things.
    None,
    Seconds,
    Bytes,
    /// Between 0 and 1.
    Ratio,
}

/// Declares the metrics of a crate: one static for each, and a list of all.
///
/// ```
/// use telemetry::metrics::{Kind, Metric};
///
/// telemetry::catalogue! {
///     /// Metrics of the kettle.
///     pub ALL;
///     BOILED: Metric::counter("ferrule_kettle_boiled_total", &[], "Times the water boiled.");
///     WATER: Metric::gauge("ferrule_kettle_water_bytes", &["side"], "Water in the kettle.");
/// }
///
/// assert_eq!(ALL.len(), 2);
/// assert_eq!(BOILED.kind, Kind::Counter);
/// ```
#[macro_export]
macro_rules! catalogue {
    ($(#[$meta:meta])* $vis:vis $all:ident; $($name:ident: $metric:expr;)*) => {
        $($vis static $name: $crate::metrics::Metric = $metric;)*
        $(#[$meta])*
        $vis static $all: &[&$crate::metrics::Metric] = &[$(&$name),*];
    };
}

// === impl Metric ===

impl Metric {
    /// Only rises; the name ends in `_total`.
    pub const fn counter(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self::new(name, Kind::Counter, labels, &[], help)
    }

    /// Rises and falls.
    pub const fn gauge(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self::new(name, Kind::Gauge, labels, &[], help)
    }

    /// Durations in buckets with these upper bounds, in seconds.
    pub const fn histogram(
        name: &'static str,
        labels: &'static [&'static str],
        bounds: &'static [f64],
        help: &'static str,
    ) -> Self {
        Self::new(name, Kind::Histogram, labels, bounds, help)
    }

    pub(super) const fn new(
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        bounds: &'static [f64],
        help: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            labels,
            help,
            bounds,
            per: None,
            labels_max: None,
            exemplars: false,
            microseconds: false,
            // What is counted adds up; of a gauge, such as an age or a limit, only itself knows.
            adds_up: !matches!(kind, Kind::Gauge),
        }
    }

    /// Says which label something outside the code multiplies; see [`Metric::per`].
    #[must_use]
    pub const fn per(mut self, label: &'static str) -> Self {
        self.per = Some(label);
        self
    }

    /// Caps the family at `labels_max` label sets instead of what the registry allows each.
    #[must_use]
    pub const fn at_most(mut self, labels_max: usize) -> Self {
        self.labels_max = Some(labels_max);
        self
    }

    /// Lets each bucket of a histogram keep the trace of a recent observation.
    #[must_use]
    pub const fn with_exemplars(mut self) -> Self {
        self.exemplars = true;
        self
    }

    /// Says that a counter is added to in microseconds; it is exported in seconds.
    #[must_use]
    pub const fn in_microseconds(mut self) -> Self {
        self.microseconds = true;
        self
    }

    /// Says that the gauges of two processes add up, because each counts things that only it has:
    /// connections, requests, tasks. Whole numbers only.
    #[must_use]
    pub const fn adding_up(mut self) -> Self {
        self.adds_up = true;
        self
    }

    /// Says that a counter is kept outside the process, where the next one reads all of it: adding
    /// what the process before had read would count it twice.
    #[must_use]
    pub const fn kept_outside(mut self) -> Self {
        self.adds_up = false;
        self
    }

    /// What it counts, which the name ends in.
    pub fn unit(&self) -> Unit {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        match name.rsplit('_').next() {
            Some("seconds") => Unit::Seconds,
            Some("bytes") => Unit::Bytes,
            Some("ratio") => Unit::Ratio,
            _ => Unit::None,
        }
    }

    /// Cells of one series: one, or a histogram's buckets and its sum.
    pub(super) fn width(&self) -> usize {
        if self.kind == Kind::Histogram { self.bounds.len() + 2 } else { 1 }
    }

    /// Time series that one label set is to whoever scrapes: a histogram is one for each bucket,
    /// the sum and the count.
    pub(super) fn weight(&self) -> usize {
        if self.kind == Kind::Histogram { self.bounds.len() + 3 } else { 1 }
    }
}

// === impl Kind, Unit ===

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Unit {
    /// As names end; empty for things.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
        }
    }

    /// As OpenTelemetry spells units (UCUM).
    pub const fn ucum(self) -> &'static str {
        match self {
            Self::None | Self::Ratio => "1",
            Self::Seconds => "s",
            Self::Bytes => "By",
        }
    }
}

/// The catalogue as a Markdown table, sorted by name.
pub fn markdown(catalogue: &[&[&Metric]]) -> String {
    let mut metrics: Vec<&Metric> = catalogue.iter().copied().flatten().copied().collect();
    metrics.sort_by_key(|metric| metric.name);
    let mut text =
        "| name | kind | unit | labels | what it says |\n|---|---|---|---|---|\n".to_owned();
    for metric in metrics {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, unit) = (metric.name, metric.kind.as_str(), metric.unit().as_str());
        writeln!(text, "| `{name}` | {kind} | {unit} | {} | {} |", labels.join(", "), metric.help)
            .expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_what_the_name_ends_in() {
        let unit = |name| Metric::gauge(name, &[], "").unit();
        assert_eq!(unit("ferrule_wait_seconds"), Unit::Seconds);
        assert_eq!(unit("ferrule_busy_seconds_total"), Unit::Seconds);
        assert_eq!(unit("ferrule_memory_resident_max_bytes"), Unit::Bytes);
        assert_eq!(unit("ferrule_requests_total"), Unit::None);
    }

    #[test]
    fn the_table_has_a_line_for_each_metric_in_order() {
        static B: Metric = Metric::gauge("ferrule_b_bytes", &["kind", "side"], "Bees.");
        static A: Metric = Metric::counter("ferrule_a_total", &[], "Ants.");
        let text = markdown(&[&[&B], &[&A]]);
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| `ferrule_a_total` | counter |  |  | Ants. |",
                "| `ferrule_b_bytes` | gauge | bytes | `kind`, `side` | Bees. |"
            ]
        );
    }
}
