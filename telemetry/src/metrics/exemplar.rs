//! One remembered observation, written without a lock and read without stopping the writer.

use std::sync::atomic::{
    AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence,
};

use crate::record::model::TraceId;

/// An observation with the trace it came from. It stays until another one of its bucket replaces it,
/// so who exports deltas looks at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exemplar {
    /// Index of the bucket it fell into.
    pub bucket: usize,
    pub trace: TraceId,
    pub micros: u64,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// A sequence lock: odd while it is written; who reads takes what did not change meanwhile.
///
/// Lossy both ways: a writer replaces what was there, a reader that was disturbed reads nothing.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Slot {
    sequence: AtomicU64,
    trace: [AtomicU64; 2],
    micros: AtomicU64,
    unix_ms: AtomicU64,
}

/// How often a reader tries again before it goes without.
const TRIES: usize = 3;

// === impl Slot ===

impl Slot {
    /// For the slot's only writer.
    pub(super) fn write(&self, trace: TraceId, micros: u64, unix_ms: u64) {
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        self.fill(sequence, trace, micros, unix_ms);
    }

    /// For one of several writers: writes unless another one does.
    pub(super) fn try_write(&self, trace: TraceId, micros: u64, unix_ms: u64) {
        let sequence = self.sequence.load(Relaxed);
        let odd = sequence.wrapping_add(1);
        let free = sequence.is_multiple_of(2)
            && self.sequence.compare_exchange(sequence, odd, Acquire, Relaxed).is_ok();
        if free {
            self.fill(sequence, trace, micros, unix_ms);
        }
    }

    fn fill(&self, sequence: u64, TraceId(trace): TraceId, micros: u64, unix_ms: u64) {
        // The odd number is seen before any of what follows.
        fence(Release);
        self.trace[0].store((trace >> 64) as u64, Relaxed);
        self.trace[1].store(trace as u64, Relaxed);
        self.micros.store(micros, Relaxed);
        self.unix_ms.store(unix_ms, Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Release);
    }

    pub(super) fn read(&self, bucket: usize) -> Option<Exemplar> {
        (0..TRIES).find_map(|_| {
            let before = self.sequence.load(Acquire);
            let trace = [self.trace[0].load(Relaxed), self.trace[1].load(Relaxed)];
            let (micros, unix_ms) = (self.micros.load(Relaxed), self.unix_ms.load(Relaxed));
            // What was read above is not newer than the number read below.
            fence(Acquire);
            let whole = before.is_multiple_of(2) && before == self.sequence.load(Relaxed);
            let trace = TraceId(u128::from(trace[0]) << 64 | u128::from(trace[1]));
            (whole && trace.0 != 0).then_some(Exemplar { bucket, trace, micros, unix_ms })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let slot = Slot::default();
        assert_eq!(slot.read(3), None);
        slot.write(TraceId(u128::MAX - 7), 1_500, 42);
        let trace = TraceId(u128::MAX - 7);
        assert_eq!(slot.read(3), Some(Exemplar { bucket: 3, trace, micros: 1_500, unix_ms: 42 }));
    }

    #[test]
    fn nobody_reads_half_of_one_and_half_of_another() {
        let slot = Slot::default();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 0..2_u64 {
                let (slot, stop) = (&slot, &stop);
                scope.spawn(move || {
                    let mut n = writer + 1;
                    while !stop.load(Relaxed) {
                        slot.try_write(TraceId(u128::from(n) << 64 | u128::from(n)), n, n);
                        n += 2;
                    }
                });
            }
            let mut seen = 0;
            while seen < 20_000 {
                let Some(exemplar) = slot.read(0) else { continue };
                let n = exemplar.micros;
                assert_eq!(exemplar.trace.0, u128::from(n) << 64 | u128::from(n));
                assert_eq!(exemplar.unix_ms, n);
                seen += 1;
            }
            stop.store(true, Relaxed);
        });
    }
}
