//! The sampled blocks that are alive, by address: a fixed table, written by the allocator's hooks.
//!
//! A block's slot is one of the few after its address's hash, so finding it is a scan of four cache
//! lines. Nothing here allocates or waits; what finds no room is counted and forgotten.
//!
//! **What a reader sees.** A slot belongs to whoever swapped its key to [`BUSY`]; fields are written
//! before the key. Each use of a slot raises its sequence number, so a reader that finds the same key
//! and number before and after has read the fields of one sample. A table that is read while threads
//! allocate is not a moment: blocks that come or go meanwhile may be in it or not.

use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

/// Slots looked at for one address.
const PROBES: usize = 32;

const FREE: usize = 0;
/// No block is at this address.
const BUSY: usize = 1;

/// `N` blocks; zero bytes of them are resident before they are used.
pub(super) struct Samples<const N: usize> {
    keys: [AtomicUsize; N],
    slots: [Slot; N],
    live: AtomicUsize,
    dropped: AtomicU64,
}

struct Slot {
    born_ms: AtomicU64,
    requested: AtomicU64,
    usable: AtomicU64,
    /// Bytes of the heap that the sample stands for.
    weight: AtomicU64,
    tag: AtomicU64,
    /// The stack's slot + 1; 0: the table of stacks was full.
    stack: AtomicU32,
    sequence: AtomicU32,
}

/// One sampled block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// On the tables' coarse clock.
    pub(super) born_ms: u64,
    /// What the program asked for.
    pub(super) requested: u64,
    /// What the allocator set aside for it.
    pub(super) usable: u64,
    /// Bytes set aside that this sample stands for: `usable` over the probability to be sampled.
    pub(super) weight: u64,
    pub(super) tag: u64,
    pub(super) stack: Option<usize>,
}

enum Removal {
    Taken(Sample),
    Absent,
    Lost,
}

// === impl Samples ===

impl<const N: usize> Samples<N> {
    pub(super) const fn new() -> Self {
        Self {
            keys: [const { AtomicUsize::new(FREE) }; N],
            slots: [const { Slot::new() }; N],
            live: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Enters a block; `false` when there is no room for it.
    pub(super) fn insert(&self, address: usize, sample: &Sample) -> bool {
        for index in probes::<N>(address) {
            let key = &self.keys[index];
            if key.load(Relaxed) == FREE
                && key.compare_exchange(FREE, BUSY, AcqRel, Relaxed).is_ok()
            {
                self.slots[index].write(sample);
                key.store(address, Release);
                self.live.fetch_add(1, Relaxed);
                return true;
            }
        }
        self.dropped.fetch_add(1, Relaxed);
        false
    }

    /// Takes the block at `address` out, if it is here.
    ///
    /// A block that was grown in place is entered anew before its old entry is taken out; and a block
    /// that moved may have its old address in use again by then. So of several entries the one of
    /// `usable` bytes goes, and of those the oldest.
    pub(super) fn remove(&self, address: usize, usable: u64) -> Option<Sample> {
        // Another thread that frees the address anew may take the same entry; then ours is the other.
        for _ in 0..PROBES {
            match self.try_remove(address, usable) {
                Removal::Taken(sample) => return Some(sample),
                Removal::Absent => return None,
                Removal::Lost => {}
            }
        }
        None
    }

    fn try_remove(&self, address: usize, usable: u64) -> Removal {
        let mut found: Option<(usize, Sample)> = None;
        for index in probes::<N>(address) {
            if self.keys[index].load(Acquire) != address {
                continue;
            }
            let sample = self.slots[index].read();
            let rank = |sample: &Sample| (sample.usable != usable, sample.born_ms);
            if found.as_ref().is_none_or(|(_, other)| rank(&sample) < rank(other)) {
                found = Some((index, sample));
            }
        }
        let Some((index, _)) = found else { return Removal::Absent };
        let key = &self.keys[index];
        if key.compare_exchange(address, BUSY, AcqRel, Relaxed).is_err() {
            return Removal::Lost;
        }
        let sample = self.slots[index].read();
        key.store(FREE, Release);
        self.live.fetch_sub(1, Relaxed);
        Removal::Taken(sample)
    }

    /// The block at `address`, left where it is.
    pub(super) fn find(&self, address: usize) -> Option<Sample> {
        probes::<N>(address)
            .filter(|index| self.keys[*index].load(Relaxed) == address)
            .find_map(|index| self.read(index).map(|(_, sample)| sample))
    }

    /// Calls `each` with every live block.
    pub(super) fn each(&self, mut each: impl FnMut(&Sample)) {
        for index in 0..N {
            if self.keys[index].load(Relaxed) > BUSY
                && let Some((_, sample)) = self.read(index)
            {
                each(&sample);
            }
        }
    }

    fn read(&self, index: usize) -> Option<(usize, Sample)> {
        let (key, slot) = (&self.keys[index], &self.slots[index]);
        let address = key.load(Acquire);
        if address <= BUSY {
            return None;
        }
        let sequence = slot.sequence.load(Relaxed);
        let sample = slot.read();
        fence(Acquire);
        let same = key.load(Relaxed) == address && slot.sequence.load(Relaxed) == sequence;
        same.then_some((address, sample))
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

// === impl Slot ===

impl Slot {
    const fn new() -> Self {
        Self {
            born_ms: AtomicU64::new(0),
            requested: AtomicU64::new(0),
            usable: AtomicU64::new(0),
            weight: AtomicU64::new(0),
            tag: AtomicU64::new(0),
            stack: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
        }
    }

    /// The caller has swapped the key to [`BUSY`].
    fn write(&self, sample: &Sample) {
        let Sample { born_ms, requested, usable, weight, tag, stack } = *sample;
        self.sequence.store(self.sequence.load(Relaxed).wrapping_add(1), Relaxed);
        // A reader that sees one of the fields below sees the new number too.
        fence(Release);
        self.born_ms.store(born_ms, Relaxed);
        self.requested.store(requested, Relaxed);
        self.usable.store(usable, Relaxed);
        self.weight.store(weight, Relaxed);
        self.tag.store(tag, Relaxed);
        self.stack.store(stack.map_or(0, |stack| stack as u32 + 1), Relaxed);
    }

    fn read(&self) -> Sample {
        Sample {
            born_ms: self.born_ms.load(Relaxed),
            requested: self.requested.load(Relaxed),
            usable: self.usable.load(Relaxed),
            weight: self.weight.load(Relaxed),
            tag: self.tag.load(Relaxed),
            stack: (self.stack.load(Relaxed) as usize).checked_sub(1),
        }
    }
}

fn probes<const N: usize>(address: usize) -> impl Iterator<Item = usize> {
    // Sampled blocks are aligned to pages: the low bits say nothing.
    let home = ((address >> 4) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..PROBES.min(N)).map(move |step| (home as usize + step) % N)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    fn sample(usable: u64, born_ms: u64) -> Sample {
        Sample { born_ms, requested: usable, usable, weight: usable, tag: 0, stack: None }
    }

    #[test]
    fn a_block_is_in_the_table_from_its_sample_to_its_end() {
        static SAMPLES: Samples<64> = Samples::new();
        let block = Sample { stack: Some(7), tag: 3, ..sample(100, 5) };
        assert!(SAMPLES.insert(4096, &block));
        assert_eq!(SAMPLES.find(4096), Some(block));
        assert_eq!(SAMPLES.live(), 1);
        assert_eq!(SAMPLES.remove(4096, 100), Some(block));
        assert_eq!(
            (SAMPLES.remove(4096, 100), SAMPLES.find(4096), SAMPLES.live()),
            (None, None, 0)
        );
    }

    #[test]
    fn of_two_blocks_at_one_address_the_former_is_taken_out() {
        static SAMPLES: Samples<64> = Samples::new();
        let (before, grown) = (sample(100, 5), sample(200, 9));
        SAMPLES.insert(4096, &before);
        SAMPLES.insert(4096, &grown);
        assert_eq!(SAMPLES.remove(4096, 100), Some(before));
        // The same size: the older.
        let again = sample(200, 11);
        SAMPLES.insert(4096, &again);
        assert_eq!(SAMPLES.remove(4096, 200), Some(grown));
        assert_eq!(SAMPLES.find(4096), Some(again));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        static SAMPLES: Samples<8> = Samples::new();
        let inserted = (1..20).filter(|n| SAMPLES.insert(n * 4096, &sample(1, 1))).count();
        assert_eq!((inserted, SAMPLES.live(), SAMPLES.dropped()), (8, 8, 11));
    }

    proptest! {
        #[test]
        fn the_table_holds_what_a_map_would(steps in prop::collection::vec((any::<bool>(), 1_usize..60), 1..400)) {
            static SAMPLES: Samples<256> = Samples::new();
            static ALONE: Mutex<()> = Mutex::new(());
            let _alone = ALONE.lock();
            let mut model = std::collections::HashMap::new();
            for (born, (enter, page)) in steps.into_iter().enumerate() {
                let address = page * 4096;
                if enter && !model.contains_key(&address) {
                    let block = sample(page as u64, born as u64);
                    if SAMPLES.insert(address, &block) {
                        model.insert(address, block);
                    }
                } else if !enter {
                    prop_assert_eq!(SAMPLES.remove(address, page as u64), model.remove(&address));
                }
            }
            let mut live = 0;
            SAMPLES.each(|_| live += 1);
            prop_assert_eq!(live, model.len());
            for (address, block) in model {
                prop_assert_eq!(SAMPLES.remove(address, block.usable), Some(block));
            }
        }
    }

    #[test]
    fn threads_and_a_reader_never_see_a_mixed_sample() {
        static SAMPLES: Samples<512> = Samples::new();
        let consistent = |sample: &Sample| {
            let Sample { born_ms, requested, usable, weight, tag, .. } = *sample;
            assert!([requested, usable, weight, tag].iter().all(|field| *field == born_ms));
        };
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4_usize)
                .map(|thread| {
                    scope.spawn(move || {
                        for turn in 1..30_000_usize {
                            let address = (thread * 64 + turn % 64 + 1) * 4096;
                            let n = turn as u64;
                            let block = Sample { requested: n, weight: n, tag: n, ..sample(n, n) };
                            assert!(SAMPLES.insert(address, &block));
                            assert_eq!(SAMPLES.remove(address, n), Some(block));
                        }
                    })
                })
                .collect();
            scope.spawn(move || {
                while writers.iter().any(|writer| !writer.is_finished()) {
                    SAMPLES.each(consistent);
                }
            });
        });
        assert_eq!(SAMPLES.live(), 0);
    }
}
