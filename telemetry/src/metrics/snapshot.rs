//! All metrics at one moment, as plain data: what the text formats and OTLP are made from.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::family::{Family, Listed, What};
use super::series::Cells;
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
    pub(super) fn of(family: &Family) -> Self {
        let metric = &family.metric;
        let points = family.list().into_iter().map(|listed| point(family, listed)).collect();
        Self {
            name: metric.name,
            kind: metric.kind,
            unit: metric.unit(),
            help: metric.help,
            points,
        }
    }
}

fn point(family: &Family, listed: Listed) -> Point {
    let metric = &family.metric;
    let Listed { labels, born, what, block } = listed;
    let sum = |cell| {
        let base = match &what {
            What::Cells(Cells::Evictable(series)) => series.base(cell),
            _ => 0,
        };
        block.as_ref().map_or(0, |block| block.sum(cell)).wrapping_add(base)
    };
    let value = match (&what, metric.kind) {
        (What::Read(read), _) => Value::Number(read()),
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
                exemplars: block.as_ref().map(|block| block.exemplars()).unwrap_or_default(),
            })
        }
    };
    Point { labels, began: born, value }
}

// === impl Number ===

impl Number {
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
