//! The stacks that sampled blocks came from: a fixed table, written by the allocator's hooks.
//!
//! A stack stays while a sample refers to it, and a while longer; [`Stacks::reclaim`] takes those that
//! nothing refers to when the table gets full. Nothing here allocates or waits.
//!
//! **What a reader sees.** A slot's program counters are written before its reference count becomes
//! positive and are not changed while it is; the count says which of the two it is. Counters are sums
//! of relaxed adds: each is right, two of them may be of different moments.

use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// Program counters kept of a stack, the innermost ones.
pub const PCS_MAX: usize = 40;

/// Ages at which a block's end is counted, one for each scale of the verdict.
pub(super) const SCALES: usize = 4;

/// Slots looked at for one stack before it is given up.
const PROBES_MAX: usize = 32;

/// `state` of a slot: nobody's, never used or reclaimed.
const FREE: u32 = u32::MAX;
/// `state` of a slot that is being written or reclaimed. Anything else counts references.
const BUSY: u32 = u32::MAX - 1;

/// `N` stacks; zero bytes of them are resident before they are used.
pub(super) struct Stacks<const N: usize> {
    slots: [Slot; N],
    /// Stacks that found no room.
    dropped: AtomicU64,
    used: AtomicUsize,
}

struct Slot {
    /// Stored inverted, so that zeroed memory is [`FREE`].
    not_state: AtomicU32,
    len: AtomicU32,
    hash: AtomicU64,
    /// Samples that ended at or above each age.
    exits: [AtomicU64; SCALES],
    pcs: [AtomicUsize; PCS_MAX],
}

/// A stack as read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stack {
    pub(super) hash: u64,
    /// Counters: samples that ended at or above each age.
    pub(super) exits: [u64; SCALES],
    len: usize,
    pcs: [usize; PCS_MAX],
}

// === impl Stacks ===

impl<const N: usize> Stacks<N> {
    pub(super) const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; N],
            dropped: AtomicU64::new(0),
            used: AtomicUsize::new(0),
        }
    }

    /// Refers to the stack `pcs`; `None` when the table has no room for it.
    pub(super) fn acquire(&self, pcs: &[usize]) -> Option<usize> {
        let pcs = &pcs[..pcs.len().min(PCS_MAX)];
        let hash = hash(pcs);
        let mut room = None;
        for index in probes::<N>(hash) {
            let slot = &self.slots[index];
            // Another stack with the same 64 bits would be taken for this one; that can be lived with.
            if slot.hash.load(Relaxed) == hash && slot.retain(hash) {
                return Some(index);
            }
            if room.is_none() && slot.state() == FREE {
                room = Some(index);
            }
        }
        // Two threads may enter one stack at the same time, into two slots: readers add them up by hash.
        for index in room.into_iter().chain(probes::<N>(hash)) {
            if self.slots[index].claim(hash, pcs) {
                self.used.fetch_add(1, Relaxed);
                return Some(index);
            }
        }
        self.dropped.fetch_add(1, Relaxed);
        None
    }

    /// Gives a reference back; the sample ended having passed the first `ages` ages.
    pub(super) fn release(&self, index: usize, passed: [bool; SCALES]) {
        let slot = &self.slots[index];
        for (exits, passed) in slot.exits.iter().zip(passed) {
            if passed {
                exits.fetch_add(1, Relaxed);
            }
        }
        // One reference less is one more of the inverted count.
        slot.not_state.fetch_add(1, Release);
    }

    /// The stack in slot `index`, if there is one.
    pub(super) fn read(&self, index: usize) -> Option<Stack> {
        let slot = &self.slots[index];
        if slot.state() >= BUSY {
            return None;
        }
        let hash = slot.hash.load(Relaxed);
        let len = (slot.len.load(Relaxed) as usize).min(PCS_MAX);
        let pcs = std::array::from_fn(|i| if i < len { slot.pcs[i].load(Relaxed) } else { 0 });
        let exits = std::array::from_fn(|scale| slot.exits[scale].load(Relaxed));
        // Reclaimed and written anew in between: this is neither the one nor the other.
        std::sync::atomic::fence(Acquire);
        let same = slot.state() < BUSY && slot.hash.load(Relaxed) == hash;
        same.then_some(Stack { hash, exits, len, pcs })
    }

    /// Frees stacks that nothing refers to and `keep` does not want, when three quarters are in use.
    pub(super) fn reclaim(&self, mut keep: impl FnMut(u64) -> bool) -> usize {
        if self.used() < N / 4 * 3 {
            return 0;
        }
        let mut freed = 0;
        for slot in &self.slots {
            if slot.state() == 0 && !keep(slot.hash.load(Relaxed)) && slot.close() {
                freed += 1;
            }
        }
        self.used.fetch_sub(freed, Relaxed);
        freed
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

// === impl Slot ===

impl Slot {
    const fn new() -> Self {
        Self {
            not_state: AtomicU32::new(!FREE),
            len: AtomicU32::new(0),
            hash: AtomicU64::new(0),
            exits: [const { AtomicU64::new(0) }; SCALES],
            pcs: [const { AtomicUsize::new(0) }; PCS_MAX],
        }
    }

    fn state(&self) -> u32 {
        !self.not_state.load(Acquire)
    }

    /// One reference more, if the slot still holds the stack with this hash.
    fn retain(&self, hash: u64) -> bool {
        let retained = self.not_state.fetch_update(AcqRel, Acquire, |not_state| {
            let references = !not_state;
            // The last value below BUSY is never reached: there are fewer samples than that.
            (references < BUSY - 1).then_some(!(references + 1))
        });
        if retained.is_ok() && self.hash.load(Relaxed) != hash {
            self.not_state.fetch_add(1, Release);
            return false;
        }
        retained.is_ok()
    }

    /// Writes a stack into a free slot, with one reference.
    fn claim(&self, hash: u64, pcs: &[usize]) -> bool {
        if self.not_state.compare_exchange(!FREE, !BUSY, AcqRel, Relaxed).is_err() {
            return false;
        }
        self.hash.store(hash, Relaxed);
        self.len.store(pcs.len() as u32, Relaxed);
        for (kept, pc) in self.pcs.iter().zip(pcs) {
            kept.store(*pc, Relaxed);
        }
        self.exits.iter().for_each(|exits| exits.store(0, Relaxed));
        self.not_state.store(!1, Release);
        true
    }

    /// Makes an unreferenced slot free.
    fn close(&self) -> bool {
        if self.not_state.compare_exchange(!0, !BUSY, AcqRel, Relaxed).is_err() {
            return false;
        }
        self.hash.store(0, Relaxed);
        self.not_state.store(!FREE, Release);
        true
    }
}

// === impl Stack ===

impl Stack {
    /// Return addresses, innermost first.
    pub(super) fn pcs(&self) -> &[usize] {
        &self.pcs[..self.len]
    }
}

fn probes<const N: usize>(hash: u64) -> impl Iterator<Item = usize> {
    (0..PROBES_MAX.min(N)).map(move |step| (hash as usize).wrapping_add(step) % N)
}

/// Mixes addresses well enough for a table; nobody chooses them.
pub(super) fn hash(pcs: &[usize]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = pcs
        .iter()
        .fold(pcs.len() as u64, |hash, pc| (hash.rotate_left(5) ^ *pc as u64).wrapping_mul(ODD));
    (mixed ^ (mixed >> 32)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_found_again_and_counts_its_references() {
        static STACKS: Stacks<64> = Stacks::new();
        let one = STACKS.acquire(&[1, 2, 3]).expect("room");
        assert_eq!(STACKS.acquire(&[1, 2, 3]), Some(one));
        let two = STACKS.acquire(&[1, 2, 4]).expect("room");
        assert_ne!(one, two);
        STACKS.release(one, [true, true, false, false]);
        let stack = STACKS.read(one).expect("it is there");
        assert_eq!((stack.pcs(), stack.exits), (&[1, 2, 3][..], [1, 1, 0, 0]));
        assert_eq!((STACKS.slots[one].state(), STACKS.used()), (1, 2));
    }

    #[test]
    fn a_long_stack_keeps_its_innermost_frames() {
        static STACKS: Stacks<64> = Stacks::new();
        let pcs: Vec<usize> = (1..100).collect();
        let index = STACKS.acquire(&pcs).expect("room");
        assert_eq!(STACKS.read(index).expect("it is there").pcs(), &pcs[..PCS_MAX]);
    }

    #[test]
    fn a_full_table_drops_and_counts_until_it_is_reclaimed() {
        static STACKS: Stacks<16> = Stacks::new();
        let indexes: Vec<_> = (0..16).map(|n| STACKS.acquire(&[n]).expect("room")).collect();
        assert_eq!(STACKS.acquire(&[99]), None);
        assert_eq!((STACKS.dropped(), STACKS.used()), (1, 16));
        for index in &indexes[..8] {
            STACKS.release(*index, [false; SCALES]);
        }
        let wanted = hash(&[0]);
        assert_eq!(STACKS.reclaim(|hash| hash == wanted), 7);
        assert!(STACKS.acquire(&[99]).is_some());
        assert_eq!(STACKS.used(), 10);
        assert_eq!(STACKS.reclaim(|_| false), 0, "below three quarters nothing is taken");
    }

    #[test]
    fn threads_that_enter_leave_and_reclaim_lose_no_reference() {
        static STACKS: Stacks<32> = Stacks::new();
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                scope.spawn(move || {
                    for turn in 0..20_000 {
                        let pcs = [1 + (turn * (thread + 1)) % 40, 7];
                        if let Some(index) = STACKS.acquire(&pcs) {
                            let stack = STACKS.read(index).expect("we refer to it");
                            assert_eq!(stack.pcs(), pcs);
                            STACKS.release(index, [false; SCALES]);
                        }
                    }
                });
            }
            scope.spawn(|| (0..2_000).map(|_| STACKS.reclaim(|_| false)).sum::<usize>());
        });
        assert!(STACKS.slots.iter().all(|slot| [0, FREE].contains(&slot.state())));
    }
}
