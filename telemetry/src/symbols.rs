//! Names for return addresses, looked up in a child process.
//!
//! Reading debug information costs hundreds of megabytes that no allocator gives back, so this
//! process never does it: it starts itself once more, as `symbolize`, with limits of its own
//! ([`child`]), and keeps at most [`BYTES_MAX`] of what it learns.

pub mod child;
mod quick;

use std::collections::{HashMap, HashSet};

use crate::heapwatch::report::Call;

/// Names kept; the least recently wanted go first.
pub const BYTES_MAX: usize = 2 << 20;

/// Addresses that are looked up in one go; further ones wait for the next.
pub const BATCH_MAX: usize = 4_096;

/// Addresses that may wait.
const WANTED_MAX: usize = 4 * BATCH_MAX;

/// What is known of addresses in the program's file.
#[derive(Default)]
pub(crate) struct Names {
    known: HashMap<usize, Known>,
    wanted: HashSet<usize>,
    bytes: usize,
    clock: u64,
}

struct Known {
    calls: Box<[Call]>,
    used: u64,
    bytes: usize,
}

// === impl Names ===

impl Names {
    /// The calls at `offset`, innermost first; empty when nobody knows. `None`: it is looked up soon.
    pub(crate) fn calls(&mut self, offset: usize) -> Option<&[Call]> {
        self.clock += 1;
        match self.known.get_mut(&offset) {
            Some(known) => {
                known.used = self.clock;
                Some(&known.calls)
            }
            None => {
                if self.wanted.len() < WANTED_MAX {
                    self.wanted.insert(offset);
                }
                None
            }
        }
    }

    pub(crate) fn pending(&self) -> usize {
        self.wanted.len()
    }

    /// The next addresses to look up. They stay wanted until they are learned.
    pub(crate) fn batch(&self) -> Vec<usize> {
        self.wanted.iter().copied().take(BATCH_MAX).collect()
    }

    /// What was found for `batch`; an address without an answer has no name.
    pub(crate) fn learn(&mut self, batch: &[usize], mut found: HashMap<usize, Vec<Call>>) {
        for offset in batch {
            self.wanted.remove(offset);
            let calls: Box<[Call]> = found.remove(offset).unwrap_or_default().into();
            let heap: usize = calls.iter().map(|call| call.function.len() + call.place.len()).sum();
            let bytes = heap + size_of_val(&*calls) + size_of::<(usize, Known)>();
            let known = Known { calls, used: self.clock, bytes };
            self.bytes += bytes;
            if let Some(before) = self.known.insert(*offset, known) {
                self.bytes -= before.bytes;
            }
        }
        self.evict();
    }

    fn evict(&mut self) {
        if self.bytes <= BYTES_MAX {
            return;
        }
        let mut by_use: Vec<(u64, usize)> =
            self.known.iter().map(|(offset, known)| (known.used, *offset)).collect();
        by_use.sort_unstable();
        for (_, offset) in by_use {
            if self.bytes <= BYTES_MAX / 4 * 3 {
                break;
            }
            if let Some(known) = self.known.remove(&offset) {
                self.bytes -= known.bytes;
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(function: &str) -> Call {
        Call { function: function.to_owned(), place: "a.rs:1".to_owned() }
    }

    #[test]
    fn an_address_is_wanted_until_it_is_learned() {
        let mut names = Names::default();
        assert_eq!(names.calls(16), None);
        assert_eq!(names.calls(32), None);
        let batch = names.batch();
        assert_eq!((batch.len(), names.pending()), (2, 2));
        names.learn(&batch, HashMap::from([(16, vec![call("main")])]));
        assert_eq!(names.calls(16), Some(&[call("main")][..]));
        assert_eq!(names.calls(32), Some(&[][..]), "nobody knows it, and nobody asks again");
        assert_eq!(names.pending(), 0);
    }

    #[test]
    fn names_stay_below_their_bound_and_the_least_used_go() {
        let mut names = Names::default();
        let long = "x".repeat(10_000);
        for offset in 0..1_000 {
            if offset > 0 {
                assert!(names.calls(0).is_some(), "the one that is used stays");
            }
            names.learn(&[offset], HashMap::from([(offset, vec![call(&long)])]));
            assert!(names.bytes() <= BYTES_MAX);
        }
        assert!(names.known.contains_key(&999) && !names.known.contains_key(&1));
        let counted: usize = names.known.values().map(|known| known.bytes).sum();
        assert_eq!(counted, names.bytes());
    }

    #[test]
    fn no_more_is_wanted_than_will_be_looked_up() {
        let mut names = Names::default();
        assert!((0..100_000).all(|offset| names.calls(offset).is_none()));
        assert_eq!((names.pending(), names.batch().len()), (WANTED_MAX, BATCH_MAX));
    }
}
