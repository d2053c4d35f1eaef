//! Latencies in buckets that are at most 3 % wide.

use std::time::Duration;

use serde::Serialize;

/// Microseconds, up to some minutes.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

/// What is said of many latencies, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Buckets for each power of two.
const STEPS: u32 = 32;
const POWERS: u32 = 29;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; (STEPS * POWERS) as usize], count: 0 }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let index = bucket(micros).min(self.buckets.len() - 1);
        self.buckets[index] += 1;
        self.count += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
    }

    pub(crate) fn share_above(&self, millis: f64) -> f64 {
        let above = |index: &usize| upper(*index) / 1e3 > millis;
        let counts = (0..self.buckets.len()).filter(above).map(|index| self.buckets[index]);
        counts.sum::<u64>() as f64 / self.count.max(1) as f64
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        let at = |share: f64| self.at(share);
        Quantiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }

    /// Milliseconds below which this share is; the upper end of its bucket.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return upper(index) / 1e3;
            }
        }
        0.0
    }
}

/// Linear up to `STEPS`, then `STEPS` for each doubling.
fn bucket(micros: u64) -> usize {
    let steps = u64::from(STEPS);
    if micros < steps {
        return micros as usize;
    }
    let power = micros.ilog2() - STEPS.ilog2();
    let within = (micros >> power) - steps;
    ((u64::from(power) + 1) * steps + within) as usize
}

fn upper(index: usize) -> f64 {
    let steps = STEPS as usize;
    let (power, within) = (index / steps, index % steps);
    if power == 0 {
        return within as f64;
    }
    ((steps + within + 1) as f64) * 2f64.powi(power as i32 - 1) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_its_bucket() {
        let mut histogram = Histogram::default();
        (1..=10_000).for_each(|n| histogram.add(Duration::from_micros(n * 100)));
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let got = histogram.at(share);
            assert!((got - expected).abs() / expected < 0.035, "{share}: {got}");
        }
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut last = 0;
        for micros in 1..1_000_000u64 {
            let index = bucket(micros);
            assert!(index == last || index == last + 1, "{micros}");
            assert!(upper(index) >= micros as f64);
            last = index;
        }
    }

    #[test]
    fn nothing_has_no_latency() {
        assert_eq!(Histogram::default().at(0.99), 0.0);
    }
}
