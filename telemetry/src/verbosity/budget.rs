//! How much verbosity a node can afford, however many ask for it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const SECOND: u64 = 1_000_000_000;

/// Time over which the share of requests is averaged: a page with its pictures is one burst.
const BURST: Duration = Duration::from_secs(10);

/// Debt of bytes is remembered for no longer than this, so that one large record is not a day of
/// silence.
const DEBT_MAX: Duration = Duration::from_secs(10);

/// A bucket that refills with time, as the moment at which it will be full again (GCRA): one
/// number, so that workers can share it without a lock.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Nanoseconds since the owner's start.
    full_at: AtomicU64,
}

/// What the node spends on verbose requests.
pub(super) struct NodeBudget {
    started: Instant,
    requests: Bucket,
    bytes: Bucket,
    /// Nanoseconds that one verbose request costs, from how many requests there are.
    request_cost: AtomicU64,
    requests_percent_max: u32,
    bytes_per_second_max: u64,
    measured: Mutex<(Instant, u64)>,
}

// === impl Bucket ===

impl Bucket {
    /// Takes `cost` if the bucket, which holds `burst`, has as much. All in nanoseconds.
    pub(super) fn try_take(&self, now: u64, cost: u64, burst: u64) -> bool {
        let take = |full_at: u64| {
            let after = full_at.max(now) + cost;
            (after - now <= burst).then_some(after)
        };
        self.full_at.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// Takes `cost` in any case; what is owed later than `debt_max` from now is forgiven.
    fn owe(&self, now: u64, cost: u64, debt_max: u64) {
        let take = |full_at: u64| {
            Some(full_at.max(now).saturating_add(cost).min(now.saturating_add(debt_max)))
        };
        // The closure never declines.
        let _took = self.full_at.fetch_update(Relaxed, Relaxed, take);
    }

    /// Whether anything of `burst` is left.
    fn has_some(&self, now: u64, burst: u64) -> bool {
        self.full_at.load(Relaxed).saturating_sub(now) < burst
    }
}

// === impl NodeBudget ===

impl NodeBudget {
    pub(super) fn new(config: &super::Config, started: Instant) -> Self {
        Self {
            started,
            requests: Bucket::default(),
            bytes: Bucket::default(),
            request_cost: AtomicU64::new(SECOND),
            requests_percent_max: config.requests_percent_max,
            bytes_per_second_max: config.bytes_per_second_max.max(1),
            measured: Mutex::new((started, 0)),
        }
    }

    /// Takes one verbose request, if there is room for it and for its bytes.
    pub(super) fn try_take(&self, now: Instant) -> bool {
        let now = since(self.started, now);
        self.bytes.has_some(now, SECOND)
            && self.requests.try_take(now, self.request_cost.load(Relaxed), nanoseconds(BURST))
    }

    /// Bytes were written; they are known only when they are.
    pub(super) fn spend_bytes(&self, bytes: usize, now: Instant) {
        let cost = bytes as u128 * u128::from(SECOND) / u128::from(self.bytes_per_second_max);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        self.bytes.owe(since(self.started, now), cost, nanoseconds(DEBT_MAX));
    }

    /// Learns how many requests there are: `total` since the start, at `now`.
    pub(super) fn measure(&self, now: Instant, total: u64) {
        let mut measured = self.measured.lock();
        let (then, before) = *measured;
        let elapsed = nanoseconds(now.saturating_duration_since(then));
        if elapsed < SECOND / 2 {
            return; // too short to say anything
        }
        *measured = (now, total);
        // Nanoseconds per request, times 100 over the percentage; a second at most, for the floor.
        let requests =
            total.saturating_sub(before).saturating_mul(self.requests_percent_max.into());
        let cost = (u128::from(elapsed) * 100).checked_div(u128::from(requests));
        let cost = cost.map_or(SECOND, |cost| u64::try_from(cost).unwrap_or(u64::MAX));
        self.request_cost.store(cost.clamp(1, SECOND), Relaxed);
    }
}

/// Nanoseconds from `started` to `now`.
pub(super) fn since(started: Instant, now: Instant) -> u64 {
    nanoseconds(now.saturating_duration_since(started))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbosity::Config;

    fn budget(start: Instant) -> NodeBudget {
        NodeBudget::new(&Config::default(), start)
    }

    fn granted(budget: &NodeBudget, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.try_take(now)).count()
    }

    #[test]
    fn a_quiet_node_affords_one_a_second_and_ten_at_once() {
        let start = Instant::now();
        let budget = budget(start);
        assert_eq!(granted(&budget, start), 10);
        assert_eq!(granted(&budget, start + Duration::from_millis(900)), 0);
        assert_eq!(granted(&budget, start + Duration::from_secs(1)), 1);
        assert_eq!(granted(&budget, start + Duration::from_secs(4)), 3);
        assert_eq!(granted(&budget, start + Duration::from_secs(3600)), 10);
    }

    #[test]
    fn a_busy_node_affords_one_percent_of_its_requests() {
        let start = Instant::now();
        let budget = budget(start);
        let mut total = 0;
        let mut granted = 0;
        for second in 1..=100 {
            let now = start + Duration::from_secs(second);
            total += 5_000;
            budget.measure(now, total);
            granted += (0..5_000).filter(|_| budget.try_take(now)).count() as u64;
        }
        let share = granted as f64 / total as f64;
        assert!((0.0099..0.0111).contains(&share), "{share}"); // ten seconds' worth above at first
        // The load went: back to the floor.
        let now = start + Duration::from_secs(200);
        budget.measure(now, total);
        while budget.try_take(now) {}
        assert_eq!((0..100).filter(|_| budget.try_take(now + Duration::from_secs(5))).count(), 5);
    }

    #[test]
    fn bytes_that_were_spent_are_waited_for() {
        let start = Instant::now();
        let budget = budget(start);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(budget.try_take(start));
        budget.spend_bytes(2 << 20, start);
        assert!(!budget.try_take(start), "a second's worth is gone");
        assert!(budget.try_take(at(1)));
        budget.spend_bytes(6 << 20, at(1));
        assert!(!budget.try_take(at(2_900)));
        assert!(budget.try_take(at(3_002)));
        budget.spend_bytes(usize::MAX, at(4_000));
        assert!(!budget.try_take(at(12_900)));
        assert!(budget.try_take(at(13_100)), "debt is forgiven in the end");
    }

    #[test]
    fn a_bucket_is_shared_without_giving_anything_twice() {
        let bucket = Bucket::default();
        let taken = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if bucket.try_take(0, 1, 1_000) {
                            taken.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 1_000);
    }
}
