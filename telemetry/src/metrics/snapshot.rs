//! All metrics at one moment, as plain data: what the text formats and OTLP are made from.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::family::{Family, Listed, What};
use super::series::Cells;
use super::source::Looks;
use super::{Exemplar, Kind, Labels, Unit};

/// Every family of the process, sorted by name.
///
/// Each number is read by itself while workers go on counting: a counter is never lower than in the
/// snapshot before, and two numbers may differ by what happened between reading them. A histogram's
/// count is the sum of its buckets as read, so these always agree; its sum may be ahead of or
/// behind the count by the observations of that moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When it was taken, since the Unix epoch.
    pub at: Duration,
    /// When the registry was made, since the Unix epoch.
    pub began: Duration,
    pub families: Vec<FamilySnapshot>,
}

/// One family with at least one point.
#[derive(Debug, Clone)]
pub struct FamilySnapshot {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub help: &'static str,
    /// Sorted by labels.
    pub points: Vec<Point>,
}

/// One label set.
#[derive(Debug, Clone)]
pub struct Point {
    pub labels: Labels,
    /// When its numbers were zero, since the Unix epoch. Later than [`Snapshot::began`] for an app
    /// that came later.
    pub began: Duration,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub enum Value {
    Number(Number),
    Distribution(Distribution),
}

/// A number that is exact: a counter of microseconds passes what an `f64` can hold within days.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// Seconds, in millionths.
    Micros(u64),
}

/// A histogram's observations.
#[derive(Debug, Clone)]
pub struct Distribution {
    /// Upper bounds in seconds, inclusive, rising.
    pub bounds: &'static [f64],
    /// Observations of each bucket alone; one more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of `counts`.
    pub count: u64,
    /// The sum of all observations.
    pub sum: Number,
    /// At most one for each bucket.
    pub exemplars: Vec<Exemplar>,
}

pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

// === impl FamilySnapshot ===

impl FamilySnapshot {
    pub(super) fn of(family: &Family, looks: &mut Looks) -> Self {
        let metric = &family.metric;
        let points = family.list().into_iter();
        let points = points.map(|listed| point(family, listed, looks)).collect();
        Self {
            name: metric.name,
            kind: metric.kind,
            unit: metric.unit(),
            help: metric.help,
            points,
        }
    }
}

fn point(family: &Family, listed: Listed, looks: &mut Looks) -> Point {
    let metric = &family.metric;
    let sum = |cell| listed.sum(cell);
    let value = match (&listed.what, metric.kind) {
        (Some(What::Read(read)), _) => Value::Number(read(looks).plus(listed.carried(0))),
        (_, Kind::Gauge) => Value::Number(Number::Signed(sum(0))),
        (_, Kind::Counter) if metric.microseconds => Value::Number(Number::Micros(sum(0) as u64)),
        (_, Kind::Counter) => Value::Number(Number::Unsigned(sum(0) as u64)),
        (_, Kind::Histogram) => {
            let buckets = metric.bounds.len() + 1;
            let counts: Vec<u64> = (0..buckets).map(|bucket| sum(bucket) as u64).collect();
            Value::Distribution(Distribution {
                bounds: metric.bounds,
                count: counts.iter().sum(),
                counts,
                sum: Number::Micros(sum(buckets) as u64),
                exemplars: listed.block.map(|block| block.exemplars()).unwrap_or_default(),
            })
        }
    };
    Point { labels: listed.labels, began: listed.born, value }
}

// === impl Listed ===

impl Listed {
    /// A cell of ours and of those before us; what is read has none.
    pub(super) fn sum(&self, cell: usize) -> i64 {
        let base = match &self.what {
            Some(What::Cells(Cells::Evictable(series))) => series.base(cell),
            _ => 0,
        };
        let own = self.block.as_ref().map_or(0, |block| block.sum(cell)).wrapping_add(base);
        own.wrapping_add(self.carried(cell))
    }

    pub(super) fn carried(&self, cell: usize) -> i64 {
        self.carried.as_ref().map_or(0, |cells| cells[cell])
    }
}

// === impl Number ===

impl Number {
    /// With what another process counted.
    fn plus(self, more: i64) -> Self {
        match self {
            Self::Unsigned(n) => Self::Unsigned(n.wrapping_add_signed(more)),
            Self::Signed(n) => Self::Signed(n.wrapping_add(more)),
            Self::Float(n) => Self::Float(n + more as f64),
            Self::Micros(n) => Self::Micros(n.wrapping_add_signed(more)),
        }
    }

    /// As one cell; nearly, where it is a fraction.
    pub(super) fn cell(self) -> i64 {
        match self {
            Self::Unsigned(n) | Self::Micros(n) => n as i64,
            Self::Signed(n) => n,
            Self::Float(n) => n.round() as i64,
        }
    }

    /// The nearest there is.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Unsigned(n) => n as f64,
            Self::Signed(n) => n as f64,
            Self::Float(n) => n,
            Self::Micros(n) => n as f64 / 1e6,
        }
    }
}

/// As both text formats write it: all digits.
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unsigned(n) => n.fmt(f),
            Self::Signed(n) => n.fmt(f),
            Self::Float(f64::INFINITY) => f.write_str("+Inf"),
            Self::Float(f64::NEG_INFINITY) => f.write_str("-Inf"),
            Self::Float(n) => n.fmt(f),
            Self::Micros(n) => {
                let (seconds, mut fraction) = (n / 1_000_000, n % 1_000_000);
                if fraction == 0 {
                    return seconds.fmt(f);
                }
                let mut digits = 6;
                while fraction.is_multiple_of(10) {
                    (fraction, digits) = (fraction / 10, digits - 1);
                }
                write!(f, "{seconds}.{fraction:0digits$}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_all_their_digits() {
        let cases = [
            (Number::Unsigned(u64::MAX), "18446744073709551615"),
            (Number::Signed(-3), "-3"),
            (Number::Float(0.25), "0.25"),
            (Number::Float(f64::INFINITY), "+Inf"),
            (Number::Float(f64::NAN), "NaN"),
            (Number::Micros(0), "0"),
            (Number::Micros(5_550_000), "5.55"),
            (Number::Micros(1), "0.000001"),
            (Number::Micros(20_000_000), "20"),
            // The next number an f64 of microseconds can hold is two further.
            (Number::Micros((1 << 53) + 1), "9007199254.740993"),
        ];
        for (number, text) in cases {
            assert_eq!(number.to_string(), text);
        }
    }
}
