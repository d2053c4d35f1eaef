//! Large blocks that were grown: the half of a leak that is one `Vec`, doubling.
//!
//! To the allocator a grown block is a new one, so by age alone it is always young. Here every block
//! that is reallocated at 256 KiB or more keeps its birth and its lineage, whether it was sampled or
//! not: such calls are rare, and cost more than this.
//!
//! A fixed table like that of samples, with the same rules for readers; a lineage that finds no room
//! is not followed.

use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

use super::stacks::PCS_MAX;

/// From this size on a block that is reallocated has a lineage.
pub(super) const BYTES_MIN: usize = 256 << 10;

const PROBES: usize = 16;
const FREE: usize = 0;
const BUSY: usize = 1;

pub(super) struct Containers<const N: usize> {
    keys: [AtomicUsize; N],
    slots: [Slot; N],
    last_id: AtomicU64,
    dropped: AtomicU64,
}

struct Slot {
    id: AtomicU64,
    born_ms: AtomicU64,
    first_bytes: AtomicU64,
    bytes: AtomicU64,
    tag: AtomicU64,
    len: AtomicU32,
    sequence: AtomicU32,
    pcs: [AtomicUsize; PCS_MAX],
}

/// One block with its lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Container {
    /// The same through all its growth.
    pub(super) id: u64,
    pub(super) born_ms: u64,
    /// When it was first seen.
    pub(super) first_bytes: u64,
    pub(super) bytes: u64,
    pub(super) tag: u64,
    len: usize,
    pcs: [usize; PCS_MAX],
}

// === impl Containers ===

impl<const N: usize> Containers<N> {
    pub(super) const fn new() -> Self {
        Self {
            keys: [const { AtomicUsize::new(FREE) }; N],
            slots: [const { Slot::new() }; N],
            last_id: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// A lineage that begins with a block of `bytes`, reallocated for the first time.
    pub(super) fn begin(&self, born_ms: u64, bytes: u64, tag: u64) -> Container {
        let id = self.last_id.fetch_add(1, Relaxed) + 1;
        Container { id, born_ms, first_bytes: bytes, bytes, tag, len: 0, pcs: [0; PCS_MAX] }
    }

    /// Enters a block at its new address.
    pub(super) fn insert(&self, address: usize, container: &Container) -> bool {
        for index in probes::<N>(address) {
            let key = &self.keys[index];
            if key.load(Relaxed) == FREE
                && key.compare_exchange(FREE, BUSY, AcqRel, Relaxed).is_ok()
            {
                self.slots[index].write(container);
                key.store(address, Release);
                return true;
            }
        }
        self.dropped.fetch_add(1, Relaxed);
        false
    }

    /// Takes out the block at `address`; only its owner, who frees or grows it, may.
    pub(super) fn remove(&self, address: usize) -> Option<Container> {
        let index =
            probes::<N>(address).find(|index| self.keys[*index].load(Relaxed) == address)?;
        let key = &self.keys[index];
        key.compare_exchange(address, BUSY, AcqRel, Relaxed).ok()?;
        let container = self.slots[index].read();
        key.store(FREE, Release);
        Some(container)
    }

    /// Calls `each` with every block.
    pub(super) fn each(&self, mut each: impl FnMut(&Container)) {
        for (key, slot) in self.keys.iter().zip(&self.slots) {
            let address = key.load(Acquire);
            if address <= BUSY {
                continue;
            }
            let sequence = slot.sequence.load(Relaxed);
            let container = slot.read();
            fence(Acquire);
            if key.load(Relaxed) == address && slot.sequence.load(Relaxed) == sequence {
                each(&container);
            }
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

// === impl Container ===

impl Container {
    /// The same container, grown.
    pub(super) fn grown(
        mut self,
        bytes: u64,
        tag: u64,
        walk: impl FnOnce(&mut [usize]) -> usize,
    ) -> Self {
        self.bytes = bytes;
        self.tag = tag;
        self.len = walk(&mut self.pcs).min(PCS_MAX);
        self
    }

    /// Where it grew last, innermost first.
    pub(super) fn pcs(&self) -> &[usize] {
        &self.pcs[..self.len]
    }
}

// === impl Slot ===

impl Slot {
    const fn new() -> Self {
        Self {
            id: AtomicU64::new(0),
            born_ms: AtomicU64::new(0),
            first_bytes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            tag: AtomicU64::new(0),
            len: AtomicU32::new(0),
            sequence: AtomicU32::new(0),
            pcs: [const { AtomicUsize::new(0) }; PCS_MAX],
        }
    }

    fn write(&self, container: &Container) {
        let Container { id, born_ms, first_bytes, bytes, tag, len, pcs } = *container;
        self.sequence.store(self.sequence.load(Relaxed).wrapping_add(1), Relaxed);
        fence(Release);
        self.id.store(id, Relaxed);
        self.born_ms.store(born_ms, Relaxed);
        self.first_bytes.store(first_bytes, Relaxed);
        self.bytes.store(bytes, Relaxed);
        self.tag.store(tag, Relaxed);
        self.len.store(len as u32, Relaxed);
        for (kept, pc) in self.pcs.iter().zip(&pcs[..len]) {
            kept.store(*pc, Relaxed);
        }
    }

    fn read(&self) -> Container {
        let len = (self.len.load(Relaxed) as usize).min(PCS_MAX);
        Container {
            id: self.id.load(Relaxed),
            born_ms: self.born_ms.load(Relaxed),
            first_bytes: self.first_bytes.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            tag: self.tag.load(Relaxed),
            len,
            pcs: std::array::from_fn(|i| if i < len { self.pcs[i].load(Relaxed) } else { 0 }),
        }
    }
}

fn probes<const N: usize>(address: usize) -> impl Iterator<Item = usize> {
    let home = ((address >> 12) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..PROBES.min(N)).map(move |step| (home as usize + step) % N)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_its_birth_and_its_id_through_growth() {
        static CONTAINERS: Containers<32> = Containers::new();
        let walk = |pcs: &mut [usize]| {
            pcs[0] = 42;
            1
        };
        let first = CONTAINERS.begin(17, 300, 1).grown(600, 1, walk);
        assert!(CONTAINERS.insert(1 << 20, &first));
        let moved = CONTAINERS.remove(1 << 20).expect("it is there").grown(1200, 2, walk);
        assert!(CONTAINERS.insert(1 << 21, &moved));
        assert_eq!(CONTAINERS.remove(1 << 20), None);
        let mut seen = Vec::new();
        CONTAINERS.each(|container| seen.push(*container));
        assert_eq!(seen, [moved]);
        let Container { id, born_ms, first_bytes, bytes, tag, .. } = moved;
        assert_eq!((id, born_ms, first_bytes, bytes, tag), (first.id, 17, 300, 1200, 2));
        assert_eq!(moved.pcs(), [42]);
        assert_ne!(CONTAINERS.begin(17, 300, 1).id, id);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        static CONTAINERS: Containers<4> = Containers::new();
        let container = CONTAINERS.begin(0, 1, 0);
        assert_eq!((1..8).filter(|n| CONTAINERS.insert(n << 20, &container)).count(), 4);
        assert_eq!(CONTAINERS.dropped(), 3);
    }
}
