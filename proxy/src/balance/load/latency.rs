//! What an instance is expected to cost in time: peak-sensitive EWMA with a penalty for failures.
//!
//! The idea is Finagle's, by way of linkerd and tower (`tower::load::PeakEwma`): a slower sample
//! counts at once, a faster one by how long ago the last one was, and without samples the estimate
//! decays, so that nobody is avoided for ever. Decay 10 s and first guess 1 s are linkerd's.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Millis;

/// The estimate, in two words that lose at worst one sample to a race.
pub(super) struct Latency {
    /// Microseconds as f32 in the high half, when it was (milliseconds) in the low one. A negative
    /// estimate is a guess: it decays like a measured one, and the first measurement replaces it.
    estimate: AtomicU64,
    /// Share of failures, 0 to 1, as f32; smoothed by count, and decaying as the estimate does.
    failing: AtomicU32,
}

/// What an instance is expected to take before it ever answered: enough that a new one is tried
/// when the others are busy rather than with everything at once.
const GUESS: Duration = Duration::from_secs(1);

const DECAY_MS: f32 = 10_000.0;

/// Weight of one outcome in the share of failures.
const OUTCOME: f32 = 1.0 / 8.0;

/// Factor on the cost of one that always fails. It is squared in the share, so that the one
/// failure in a hundred that every app has moves little (×16, gone in seconds), while one that
/// fails in 1 ms does not look better than one that works in 500.
const PENALTY: f32 = 1000.0;

// === impl Latency ===

impl Latency {
    pub(super) fn guess(now: Millis) -> Self {
        let estimate = AtomicU64::new(pack(-micros(GUESS), now));
        Self { estimate, failing: AtomicU32::new(0) }
    }

    /// Microseconds, penalty included; never 0.
    pub(super) fn estimate(&self, now: Millis) -> f32 {
        let (estimate, at) = unpack(self.estimate.load(Relaxed));
        let decay = decay(at, now);
        let failing = f32::from_bits(self.failing.load(Relaxed)) * decay;
        (estimate.abs() * decay).max(1.0) * (1.0 + PENALTY * failing * failing)
    }

    pub(super) fn observe(&self, took: Duration, now: Millis) {
        let (estimate, at) = unpack(self.estimate.load(Relaxed));
        let (decay, took) = (decay(at, now), micros(took));
        let estimate = if estimate < 0.0 || took > estimate {
            took
        } else {
            estimate * decay + took * (1.0 - decay)
        };
        self.outcome(0.0, decay);
        self.estimate.store(pack(estimate, now), Relaxed);
    }

    /// It takes longer than `waited`, nobody knows how much.
    pub(super) fn observe_at_least(&self, waited: Duration, now: Millis) {
        let (estimate, at) = unpack(self.estimate.load(Relaxed));
        let decay = decay(at, now);
        if micros(waited) > estimate.abs() * decay {
            self.fade(decay);
            self.estimate.store(pack(micros(waited), now), Relaxed);
        }
    }

    pub(super) fn penalise(&self, now: Millis) {
        let (estimate, at) = unpack(self.estimate.load(Relaxed));
        let decay = decay(at, now);
        self.outcome(1.0, decay);
        // How fast it fails says nothing about how fast it works.
        self.estimate.store(pack(estimate * decay, now), Relaxed);
    }

    fn outcome(&self, failed: f32, decay: f32) {
        let failing = f32::from_bits(self.failing.load(Relaxed)) * decay;
        // Most instances have never failed: no store, no dirty line.
        if failing != 0.0 || failed != 0.0 {
            self.failing.store((failing + (failed - failing) * OUTCOME).to_bits(), Relaxed);
        }
    }

    fn fade(&self, decay: f32) {
        let failing = f32::from_bits(self.failing.load(Relaxed));
        self.failing.store((failing * decay).to_bits(), Relaxed);
    }
}

fn micros(duration: Duration) -> f32 {
    duration.as_secs_f32() * 1e6
}

fn decay(at: u32, now: Millis) -> f32 {
    // A reader may be a little behind the last writer: then nothing has passed.
    let elapsed = now.low().wrapping_sub(at) as i32;
    (-(elapsed.max(0) as f32) / DECAY_MS).exp()
}

fn pack(estimate: f32, at: Millis) -> u64 {
    (u64::from(estimate.to_bits()) << 32) | u64::from(at.low())
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Millis {
        Millis(1_000_000 + ms)
    }

    fn millis(latency: &Latency, now: u64) -> f32 {
        latency.estimate(at(now)) / 1000.0
    }

    #[test]
    fn the_first_measurement_replaces_the_guess() {
        let latency = Latency::guess(at(0));
        assert_eq!(millis(&latency, 0), 1000.0);
        latency.observe(5 * MS, at(0));
        assert_eq!(millis(&latency, 0), 5.0);
    }

    #[test]
    fn a_peak_counts_at_once_and_fades_slowly() {
        let latency = Latency::guess(at(0));
        latency.observe(5 * MS, at(0));
        latency.observe(500 * MS, at(10));
        assert_eq!(millis(&latency, 10), 500.0);
        latency.observe(5 * MS, at(1_010));
        let after_a_second = millis(&latency, 1_010);
        assert!((440.0..470.0).contains(&after_a_second), "{after_a_second}");
    }

    #[test]
    fn without_samples_the_estimate_decays() {
        let latency = Latency::guess(at(0));
        latency.observe(500 * MS, at(0));
        let after_a_minute = millis(&latency, 60_000);
        assert!((1.0..2.0).contains(&after_a_minute), "{after_a_minute}");
    }

    #[test]
    fn a_reader_behind_the_writer_sees_no_decay() {
        let latency = Latency::guess(at(50));
        assert_eq!(millis(&latency, 20), 1000.0);
    }

    #[test]
    fn one_that_fails_fast_costs_more_than_one_that_works_slowly() {
        let (failing, working) = (Latency::guess(at(0)), Latency::guess(at(0)));
        failing.observe(MS, at(0));
        working.observe(500 * MS, at(0));
        assert!(failing.estimate(at(0)) < working.estimate(at(0)));
        (1..20).for_each(|ms| failing.penalise(at(ms)));
        assert!(failing.estimate(at(20)) > working.estimate(at(20)));
    }

    #[test]
    fn one_failure_among_many_successes_is_soon_forgotten() {
        let latency = Latency::guess(at(0));
        latency.observe(5 * MS, at(0));
        latency.penalise(at(1));
        assert!(millis(&latency, 1) > 50.0);
        (2..32).for_each(|ms| latency.observe(5 * MS, at(ms)));
        assert!(millis(&latency, 32) < 5.1);
    }

    #[test]
    fn waiting_in_vain_raises_the_estimate_and_never_lowers_it() {
        let latency = Latency::guess(at(0));
        latency.observe(100 * MS, at(0));
        latency.observe_at_least(MS, at(0));
        assert_eq!(millis(&latency, 0), 100.0);
        latency.observe_at_least(900 * MS, at(0));
        assert_eq!(millis(&latency, 0), 900.0);
    }
}
