//! How long a request of an app usually takes, in one word per app.

use std::time::Duration;

/// Apps a worker watches at a time. A power of two.
const APPS: usize = 256;
/// Requests before an estimate is used.
const WARM: u8 = 32;

/// The medians of the apps of one worker: a fixed table, 6 KiB.
///
/// An estimate moves by 1/32 of itself towards each request (a "frugal" estimator: Ma, Muthukrishnan
/// and Sandler, 2013, with steps in proportion). It starts at the first request, needs about 22
/// requests per factor of two to arrive, and then wanders about the median: within a fifth of it for
/// durations that are spread log-normally over a factor of ten, which is enough for a threshold that
/// is a multiple of it. It follows an app that becomes slower or faster at the same pace.
///
/// Two apps that fall on one slot fight for it; the one with more requests keeps it, the other has no
/// estimate and only the absolute threshold.
pub(super) struct Typical {
    apps: Box<[App]>,
}

#[derive(Clone, Copy, Default)]
struct App {
    /// Which app; its address, since names are not hashed per request.
    key: usize,
    median: u64,
    /// How firmly the app holds the slot, and how much was seen.
    held: u8,
}

// === impl Typical ===

impl Typical {
    pub(super) fn new() -> Self {
        Self { apps: vec![App::default(); APPS].into_boxed_slice() }
    }

    /// The app's median so far, and takes this request into account.
    pub(super) fn observe(&mut self, key: usize, took: u64) -> Option<Duration> {
        let app = &mut self.apps[slot(key, APPS)];
        if app.key != key {
            if app.held > 0 {
                app.held -= 1;
                return None;
            }
            *app = App { key, median: took.max(32), held: 1 };
            return None;
        }
        let known = (app.held >= WARM).then(|| Duration::from_nanos(app.median));
        app.held = app.held.saturating_add(1);
        // At least one, and at least 32 in all, so that it can always move.
        let step = app.median >> 5;
        app.median = if took > app.median { app.median + step } else { app.median - step }.max(32);
        known
    }
}

/// Spreads addresses, whose low bits are equal, over `slots` (a power of two).
pub(super) fn slot(key: usize, slots: usize) -> usize {
    let spread = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    spread as usize & (slots - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::random::Random;

    /// About log-normal: the sum of twelve uniform numbers is close to normal.
    fn sample(random: &mut Random, median: f64) -> u64 {
        let sum: f64 = (0..12).map(|_| random.next() as f64 / u64::MAX as f64).sum();
        (median * 10f64.powf((sum - 6.0) * 0.4)) as u64
    }

    #[test]
    fn the_estimate_is_near_the_median_and_follows_it() {
        let mut random = Random::from_seed([7; 32]);
        let mut typical = Typical::new();
        for median in [3e6, 200e6, 20e6] {
            for _ in 0..2000 {
                typical.observe(0x1000, sample(&mut random, median));
            }
            let mut worst = 1f64;
            for _ in 0..10_000 {
                let known = typical.observe(0x1000, sample(&mut random, median));
                let ratio = known.expect("warm").as_nanos() as f64 / median;
                worst = worst.max(ratio).max(1.0 / ratio);
            }
            assert!(worst < 2.0, "{worst} at {median}");
            let known = typical.observe(0x1000, median as u64).expect("warm").as_nanos() as f64;
            assert!((known / median).ln().abs() < 0.5, "{known} for {median}");
        }
    }

    #[test]
    fn an_unknown_app_has_no_estimate_and_the_busier_of_two_keeps_the_slot() {
        let mut typical = Typical::new();
        let busy = 0x1000;
        let rare = (busy + 8..).step_by(8).find(|key| slot(*key, APPS) == slot(busy, APPS));
        let rare = rare.expect("some address falls on the same slot");
        assert_eq!(typical.observe(busy, 1_000_000), None);
        for request in 0..1000 {
            typical.observe(busy, 1_000_000);
            if request % 10 == 0 {
                assert_eq!(typical.observe(rare, 9_000_000_000), None);
            }
        }
        assert!(typical.observe(busy, 1_000_000).is_some());
    }
}
