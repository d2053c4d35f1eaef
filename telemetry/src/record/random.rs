//! Ids: random ones for requests, derived ones for the spans inside.

use super::model::{SpanId, TraceId};

/// xoshiro256++ (Blackman and Vigna, 2018): about a nanosecond per number, and with 256 bits of state
/// the sequences of a fleet's workers do not meet. Ids need to be distinct, not secret.
#[derive(Debug)]
pub(super) struct Random {
    state: [u64; 4],
}

// === impl Random ===

impl Random {
    /// Seeded by the system, so that every worker of every node has a sequence of its own.
    pub(super) fn from_system() -> Self {
        let mut seed = [0; 32];
        // Without a random source there would be no TLS either; the clock keeps ids distinct enough.
        if aws_lc_rs::rand::fill(&mut seed).is_err() {
            let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            seed[..16].copy_from_slice(&since_epoch.as_nanos().to_le_bytes());
        }
        Self::from_seed(seed)
    }

    pub(super) fn from_seed(seed: [u8; 32]) -> Self {
        let mut state = [0; 4];
        for (word, bytes) in state.iter_mut().zip(seed.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        state[3] |= 1; // all zeros is the one state it never leaves
        Self { state }
    }

    pub(super) fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let out = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        out
    }

    pub(super) fn trace(&mut self) -> TraceId {
        let id = u128::from(self.next()) << 64 | u128::from(self.next());
        TraceId(id.max(1))
    }

    pub(super) fn span(&mut self) -> SpanId {
        SpanId(self.next().max(1))
    }
}

/// The id of the `index`th span inside `request`; index 0 is the request itself.
///
/// Derived, so that neither the entry nor the open span has to hold it. The finalizer of splitmix64
/// is a bijection: the spans of one request never share an id.
pub(super) fn derived(request: SpanId, index: u32) -> SpanId {
    if index == 0 {
        return request;
    }
    let mut id = request.0 ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    SpanId((id ^ (id >> 31)).max(1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_differ_between_workers_and_spans() {
        let (mut one, mut other) = (Random::from_system(), Random::from_system());
        let traces: HashSet<_> = (0..1000).flat_map(|_| [one.trace(), other.trace()]).collect();
        assert_eq!(traces.len(), 2000);
        let request = one.span();
        let spans: HashSet<_> = (0..10_000).map(|index| derived(request, index)).collect();
        assert_eq!(spans.len(), 10_000);
        assert!(!spans.contains(&SpanId(0)));
    }

    #[test]
    fn a_seed_of_zeros_still_gives_numbers() {
        let mut random = Random::from_seed([0; 32]);
        let numbers: HashSet<_> = (0..100).map(|_| random.next()).collect();
        assert_eq!(numbers.len(), 100);
    }
}
