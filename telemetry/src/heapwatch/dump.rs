//! The fall-back without hooks: the allocator's own profile dumps, read back.
//!
//! A dump says what each stack holds and not since when. What a stack never fell below during an age
//! is taken to be of that age; a cache that stays full looks the same, and no exit is ever seen, so
//! nothing is called more than [`State::Growing`].
//!
//! [`State::Growing`]: super::profile::State::Growing

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::fs;
use std::hint::black_box;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use tikv_jemalloc_ctl::raw;

use super::fold::{Old, Sums};
use super::hooks::{self, weight};
use super::profile::Profile;
use super::stacks::{self, PCS_MAX, SCALES};
use super::watch::Seen;

/// One stack of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dumped {
    pub(super) pcs: Box<[usize]>,
    /// Sampled blocks that are alive, and their bytes.
    pub(super) samples: u64,
    pub(super) bytes: u64,
}

/// Dumps taken from time to time, with what they said before.
pub(super) struct Dumps {
    file: PathBuf,
    floors: HashMap<u64, Floor>,
    /// When dumps were taken, as far back as the greatest age.
    times: VecDeque<u64>,
    next_ms: u64,
}

/// The minima of one stack: each is lower than all later ones.
struct Floor {
    since_ms: u64,
    lows: VecDeque<Low>,
}

struct Low {
    at_ms: u64,
    samples: u64,
    bytes: u64,
}

/// A dump takes milliseconds and allocates, so there are few of them in an age.
const DUMPS_PER_AGE: u64 = 6;

/// What of a dump is read: 4,096 stacks of 128 frames and what follows them.
const DUMP_BYTES_MAX: u64 = 32 << 20;

// === impl Dumps ===

impl Dumps {
    /// Dumps go to a file in `folder`, always the same one.
    pub(super) fn new(folder: &Path) -> Self {
        let file = folder.join(format!("heap-{}.dump", std::process::id()));
        Self { file, floors: HashMap::new(), times: VecDeque::new(), next_ms: 0 }
    }

    /// Takes one dump, for a start: whether a block that must be sampled is in it.
    pub(super) fn test(&self) -> bool {
        if hooks::activate(true).is_err() {
            return false;
        }
        let block = hooks::certain_block();
        let dumped = dump(&self.file).map(|text| parse(&text)).unwrap_or_default();
        let bytes = black_box(block.capacity()) as u64;
        dumped.iter().any(|stack| stack.bytes >= bytes)
    }

    /// The stacks with old blocks, if a dump is due.
    pub(super) fn tick(&mut self, now_ms: u64, profile: Profile) -> Option<Vec<Seen>> {
        if now_ms < self.next_ms {
            return None;
        }
        let ages_ms = profile.ages_ms();
        self.next_ms = now_ms + ages_ms[0] / DUMPS_PER_AGE;
        let stacks = match dump(&self.file) {
            Ok(text) => parse(&text),
            Err(error) => {
                tracing::warn!(%error, "the heap profile cannot be dumped");
                return None;
            }
        };
        Some(self.seen(stacks, now_ms, ages_ms))
    }

    fn seen(&mut self, stacks: Vec<Dumped>, now_ms: u64, ages_ms: [u64; SCALES]) -> Vec<Seen> {
        self.times.push_back(now_ms);
        // For each age: the last dump before that, from which on nothing may be lower.
        let from = ages_ms.map(|age_ms| {
            let since = now_ms.checked_sub(age_ms)?;
            self.times.iter().rev().find(|at| **at <= since).copied()
        });
        let oldest = from[SCALES - 1];
        self.times.retain(|at| oldest.is_none_or(|oldest| *at >= oldest));
        // A stack that is in this dump no more was at nothing.
        let mut before = std::mem::take(&mut self.floors);
        let mut all = Vec::new();
        for Dumped { pcs, samples, bytes } in stacks {
            let hash = stacks::hash(&pcs);
            let mut floor = before
                .remove(&hash)
                .unwrap_or_else(|| Floor { since_ms: now_ms, lows: VecDeque::new() });
            floor.enter(Low { at_ms: now_ms, samples, bytes }, oldest);
            let old = from.map(|from| from.map_or_else(Old::default, |from| floor.since(from)));
            let sums = Sums { samples, bytes, live_bytes: bytes, old, ..Sums::default() };
            all.push(Seen { hash, pcs, sums, exits: [0; SCALES], filling: false });
            self.floors.insert(hash, floor);
        }
        all.retain(|seen| seen.sums.old[0].samples > 0);
        all
    }
}

// === impl Floor ===

impl Floor {
    fn enter(&mut self, low: Low, oldest: Option<u64>) {
        // What is not below all that came later is no minimum of anything.
        while self.lows.back().is_some_and(|earlier| earlier.samples >= low.samples) {
            self.lows.pop_back();
        }
        self.lows.push_back(low);
        while oldest.is_some_and(|oldest| self.lows.front().is_some_and(|low| low.at_ms < oldest)) {
            self.lows.pop_front();
        }
    }

    /// The lowest from the dump at `from_ms` on; nothing when the stack was not in that dump.
    fn since(&self, from_ms: u64) -> Old {
        if from_ms < self.since_ms {
            return Old::default();
        }
        match self.lows.iter().find(|low| low.at_ms >= from_ms) {
            Some(Low { samples, bytes, .. }) => {
                Old { samples: *samples, bytes: *bytes, requested: *bytes }
            }
            None => Old::default(),
        }
    }
}

#[allow(unsafe_code, reason = "the allocator is told where to write")]
fn dump(file: &Path) -> std::io::Result<String> {
    let name = CString::new(file.as_os_str().as_bytes())?;
    // SAFETY: prof.dump takes a NUL-terminated name, which lives through the call.
    unsafe { raw::write(b"prof.dump\0", name.as_ptr()) }
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut text = String::new();
    let read = fs::File::open(file)?.take(DUMP_BYTES_MAX).read_to_string(&mut text);
    fs::remove_file(file)?;
    read.map(|_| text)
}

/// Reads jemalloc's `heap_v2` text: `@ pc pc …`, then `t*: objects: bytes [0: 0]`.
pub(super) fn parse(text: &str) -> Vec<Dumped> {
    let interval = text
        .strip_prefix("heap_v2/")
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(1_u64);
    let mut stacks = Vec::new();
    let mut pcs: Option<Box<[usize]>> = None;
    for line in text.lines().take_while(|line| !line.starts_with("MAPPED_LIBRARIES")) {
        if let Some(addresses) = line.strip_prefix('@') {
            let addresses = addresses.split_whitespace();
            let parsed = addresses
                .filter_map(|pc| usize::from_str_radix(pc.trim_start_matches("0x"), 16).ok());
            pcs = Some(parsed.take(PCS_MAX).collect());
        } else if let Some(counts) = line.trim_start().strip_prefix("t*:")
            && let Some(pcs) = pcs.take()
            && let Some((samples, bytes)) = counted(counts)
            && samples > 0
        {
            // The dump has what was sampled; each block stands for more of its size.
            let bytes = weight(bytes / samples, interval) * samples;
            stacks.push(Dumped { pcs, samples, bytes });
        }
    }
    stacks
}

fn counted(counts: &str) -> Option<(u64, u64)> {
    let mut fields = counts.split([':', '[']).map(str::trim);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
heap_v2/524288
  t*: 3: 3145728 [0: 0]
  t1: 3: 3145728 [0: 0]
@ 0x10 0x20 0x30
  t*: 2: 2097152 [0: 0]
  t1: 2: 2097152 [0: 0]
@ 0x11 0x20
  t*: 1: 128 [0: 0]
@ 0x12
  t*: 0: 0 [0: 0]

MAPPED_LIBRARIES:
@ 0x99
  t*: 5: 5 [0: 0]
";

    #[test]
    fn a_dump_is_read_with_its_weights() {
        let dumped = |pcs: &[usize], samples, bytes| Dumped { pcs: pcs.into(), samples, bytes };
        let each = weight(1 << 20, 1 << 19);
        let small = weight(128, 1 << 19);
        assert_eq!(
            parse(DUMP),
            [dumped(&[0x10, 0x20, 0x30], 2, 2 * each), dumped(&[0x11, 0x20], 1, small)]
        );
        assert_eq!(parse(""), []);
        assert_eq!(parse("heap_v2/x\n@ zz\n t*: 1: x\n t*: 1: 1\n"), []);
    }

    #[test]
    fn what_a_stack_never_fell_below_counts_as_old() {
        let mut dumps = Dumps::new(Path::new("/nowhere"));
        let ages = [10, 20, 20, 40];
        let mut old = |now, samples| {
            let stack = Dumped { pcs: [1].into(), samples, bytes: samples * 100 };
            let seen = dumps.seen(vec![stack], now, ages);
            seen.first().map(|seen| seen.sums.old.map(|old| old.samples))
        };
        assert_eq!(old(0, 5), None, "nobody knows how old they are");
        assert_eq!(old(5, 9), None);
        assert_eq!(old(10, 12), Some([5, 0, 0, 0]));
        assert_eq!(old(15, 7), Some([7, 0, 0, 0]));
        assert_eq!(old(26, 30), Some([7, 7, 7, 0]));
        assert_eq!(old(50, 40), Some([30, 30, 30, 7]));
    }
}
