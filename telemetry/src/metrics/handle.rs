//! What the code counts with.

use std::time::Duration;

use super::series::Cells;
use crate::record::model::TraceId;

/// Only rises. Cloning shares it.
#[derive(Clone)]
pub struct Counter {
    pub(super) cells: Cells,
}

/// Rises and falls by deltas, so that every worker keeps its own part. Cloning shares it.
#[derive(Clone)]
pub struct Gauge {
    pub(super) cells: Cells,
}

/// Durations in fixed buckets. Cloning shares it.
#[derive(Clone)]
pub struct Histogram {
    pub(super) bounds: &'static [f64],
    pub(super) cells: Cells,
}

/// Bounds for request durations, in seconds.
pub const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

// === impl Counter, Gauge, Histogram ===

impl Counter {
    pub fn increment(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.cells.with(|block| block.add(0, n as i64));
    }

    /// Adds a duration to a counter that was declared in microseconds.
    pub fn add_duration(&self, duration: Duration) {
        self.add(micros(duration));
    }

    /// The sum over all shards of the series it counts in.
    pub fn value(&self) -> u64 {
        self.cells.sum(0) as u64
    }
}

impl Gauge {
    pub fn add(&self, n: i64) {
        self.cells.with(|block| block.add(0, n));
    }

    /// The sum over all shards of the series it counts in.
    pub fn value(&self) -> i64 {
        self.cells.sum(0)
    }
}

impl Histogram {
    pub fn record(&self, duration: Duration) {
        self.observe(duration, None);
    }

    /// Records and remembers the trace, for a record that is kept: an exemplar that leads nowhere
    /// helps nobody. `at` is the time since the Unix epoch.
    pub fn record_traced(&self, duration: Duration, trace: TraceId, at: Duration) {
        self.observe(duration, Some((trace, at)));
    }

    fn observe(&self, duration: Duration, traced: Option<(TraceId, Duration)>) {
        let micros = micros(duration);
        // Of what is summed and remembered, so that an exemplar lies within its bucket.
        let seconds = micros as f64 / 1e6;
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.cells.with(|block| {
            block.add(bucket, 1);
            block.add(self.bounds.len() + 1, micros as i64);
            if let Some((trace, at)) = traced {
                let unix_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
                block.remember(bucket, trace, micros, unix_ms);
            }
        });
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
