//! Small random numbers for choices among equals; nothing secret depends on them.

use std::cell::Cell;
use std::hash::BuildHasher as _;

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016).
/// Each worker has its own; a `Cell` because a choice may be made while others are awaited.
#[derive(Debug)]
pub struct Rng {
    state: Cell<u64>,
}

// === impl Rng ===

impl Rng {
    /// Seeded by the process's random state, so that nodes do not choose in step.
    pub fn new() -> Self {
        Self::seeded(foldhash::quality::RandomState::default().hash_one(0))
    }

    /// Repeats itself for the same `seed`.
    pub fn seeded(seed: u64) -> Self {
        // Spread like splitmix64 does, because neighbouring seeds would begin alike; zero is the
        // one state that never leaves itself.
        let spread = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self { state: Cell::new((spread ^ (spread >> 27)) | 1) }
    }

    pub fn next(&self) -> u64 {
        let mut x = self.state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&self, bound: usize) -> usize {
        // Multiply and shift; the bias is below bound / 2^32.
        let bound = bound.min(u32::MAX as usize) as u64;
        (((self.next() >> 32) * bound) >> 32) as usize
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_below_the_bound_comes_about_equally_often() {
        for seed in 0..4 {
            let rng = Rng::seeded(seed);
            let mut seen = [0_u32; 5];
            for _ in 0..50_000 {
                seen[rng.below(5)] += 1;
            }
            assert!(seen.iter().all(|count| (9_000..11_000).contains(count)), "{seen:?}");
        }
    }

    #[test]
    fn nothing_is_below_zero() {
        assert_eq!(Rng::seeded(1).below(0), 0);
    }
}
