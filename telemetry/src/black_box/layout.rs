//! Where everything is in the file: areas of slots of 64-bit words, in the machine's byte order.
//!
//! A word is written by one plain store, so the file never holds half a number, whenever the process
//! dies. The layout is hashed into the header: a file that was written by another layout is said to
//! be unreadable rather than misread.

/// `<storage>/blackbox`. More than is used, so that a later layout needs no larger file.
pub(super) const FILE_BYTES: usize = 4 << 20;

/// What the file begins with.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"ferrule\x07");

/// Rises when the meaning of a word changes without its place.
pub(super) const VERSION: u64 = 1;

/// Return addresses of a kept stack.
pub const FRAMES_MAX: usize = 32;

/// Slots of equal size, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    /// First word.
    pub(super) start: usize,
    pub(super) slots: usize,
    /// Words of a slot.
    pub(super) words: usize,
}

pub(super) const HEADER: Area = Area { start: 0, slots: 1, words: 512 };
/// 10 ms each, 10.24 s.
pub(super) const TICKS: Area = HEADER.then(1024, 8);
/// 1 s each, 10 min.
pub(super) const SECONDS: Area = TICKS.then(600, 32);
/// Last lines of the log that warn or worse; 240 bytes of text each.
pub(super) const LINES: Area = SECONDS.then(256, 34);
/// Allocations that took memory over a threshold: kept apart, so that what follows does not
/// overwrite them.
pub(super) const CROSSINGS: Area = LINES.then(16, 48);
/// Allocations while memory was above a threshold.
pub(super) const SPIKES: Area = CROSSINGS.then(48, 48);
pub(super) const PANICS: Area = SPIKES.then(8, 64);
/// Stacks with the most bytes that are old and alive.
pub(super) const STACKS: Area = PANICS.then(32, 40);
/// Requests that hold the most.
pub(super) const REQUESTS: Area = STACKS.then(32, 24);
/// Files of code that were mapped at start, to make sense of return addresses.
pub(super) const MODULES: Area = REQUESTS.then(24, 32);

const AREAS: [Area; 10] =
    [HEADER, TICKS, SECONDS, LINES, CROSSINGS, SPIKES, PANICS, STACKS, REQUESTS, MODULES];

/// Words that are used; so much is mapped.
pub(super) const WORDS: usize = MODULES.end();

const _: () = assert!(WORDS * 8 <= FILE_BYTES);

/// Words of the header, by name.
pub(super) mod header {
    pub(in crate::black_box) const MAGIC: usize = 0;
    pub(in crate::black_box) const VERSION: usize = 1;
    pub(in crate::black_box) const LAYOUT: usize = 2;
    /// How the process ended, see `Ended`.
    pub(in crate::black_box) const ENDED: usize = 3;
    /// Nanoseconds since 1970 of the sampler's last tick.
    pub(in crate::black_box) const HEARTBEAT: usize = 4;
    pub(in crate::black_box) const PID: usize = 5;
    /// Nanoseconds since 1970.
    pub(in crate::black_box) const STARTED: usize = 6;
    /// Bytes, and where that comes from, see `sampler::Source`.
    pub(in crate::black_box) const LIMIT: usize = 7;
    pub(in crate::black_box) const LIMIT_SOURCE: usize = 8;
    /// Kills of the cgroup: at start, and as last seen.
    pub(in crate::black_box) const OOM_KILLS_AT_START: usize = 9;
    pub(in crate::black_box) const OOM_KILLS: usize = 10;
    /// Kills of the machine: at start, and as last seen.
    pub(in crate::black_box) const MACHINE_KILLS_AT_START: usize = 11;
    pub(in crate::black_box) const MACHINE_KILLS: usize = 12;
    pub(in crate::black_box) const CGROUP: usize = 13;
    /// Highest usage of the cgroup, as the kernel last said.
    pub(in crate::black_box) const PEAK: usize = 14;
    /// Highest resident memory that the sampler saw.
    pub(in crate::black_box) const RESIDENT_MAX: usize = 15;
    pub(in crate::black_box) const BOOT: (usize, usize) = (16, 6);
    pub(in crate::black_box) const BUILD: (usize, usize) = (22, 6);
    pub(in crate::black_box) const PROGRAM: (usize, usize) = (28, 4);
    pub(in crate::black_box) const NODE: (usize, usize) = (32, 9);
    pub(in crate::black_box) const CGROUP_PATH: (usize, usize) = (41, 33);
    /// What was around when a later start judged this file; 0 before. Kept, so that `ferrule
    /// postmortem` says the same of it a week later.
    pub(in crate::black_box) const JUDGED: usize = 80;
    pub(in crate::black_box) const JUDGED_OOM_KILLS: usize = 81;
    pub(in crate::black_box) const JUDGED_MACHINE_KILLS: usize = 82;
    pub(in crate::black_box) const JUDGED_CGROUP: usize = 83;
    pub(in crate::black_box) const JUDGED_BOOT: (usize, usize) = (84, 6);
}

/// A number that is not known; 0 is one that may be.
pub(super) const UNKNOWN: u64 = u64::MAX;

// === impl Area ===

impl Area {
    const fn then(self, slots: usize, words: usize) -> Self {
        Self { start: self.end(), slots, words }
    }

    const fn end(self) -> usize {
        self.start + self.slots * self.words
    }

    /// First word of the slot that `sequence` goes to.
    pub(super) const fn slot(self, sequence: u64) -> usize {
        self.start + (sequence % self.slots as u64) as usize * self.words
    }
}

/// FNV-1a over the version and every area's place and shape.
pub(super) const fn hash() -> u64 {
    let mut hash = fnv(0xcbf2_9ce4_8422_2325, VERSION);
    let mut index = 0;
    while index < AREAS.len() {
        let Area { start, slots, words } = AREAS[index];
        hash = fnv(fnv(fnv(hash, start as u64), slots as u64), words as u64);
        index += 1;
    }
    fnv(hash, FRAMES_MAX as u64)
}

const fn fnv(hash: u64, word: u64) -> u64 {
    let bytes = word.to_le_bytes();
    let mut hash = hash;
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
        index += 1;
    }
    hash
}
