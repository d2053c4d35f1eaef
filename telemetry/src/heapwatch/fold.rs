//! One pass over the table of samples: who holds how much, and how old it is.

use std::collections::HashMap;
use std::time::Duration;

use super::budget::{self, OWNERS_MAX};
use super::hooks::Tables;
use super::samples::Sample;
use super::stacks::SCALES;
use super::tag::{Subsystem, Tag};

/// Which blocks are meant, by age. A time window, seen from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    pub older_than: Duration,
    pub younger_than: Duration,
}

/// What the blocks of one stack are together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    /// Alive and meant.
    pub(super) samples: u64,
    pub(super) bytes: u64,
    /// Alive, of any age.
    pub(super) live_bytes: u64,
    /// Age of the oldest that is alive.
    pub(super) oldest_ms: u64,
    /// Alive and older than each scale's age.
    pub(super) old: [Old; SCALES],
    /// Bytes older than the first scale's age which no owner has declared.
    pub(super) undeclared: u64,
    /// Who most of it is charged to, by majority vote.
    pub(super) charge: Tag,
    pub(super) charge_lead: u64,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Old {
    pub(super) samples: u64,
    pub(super) bytes: u64,
    pub(super) requested: u64,
}

/// The result, kept and used again.
pub(super) struct Fold {
    /// By slot of the table of stacks; the last one is for stacks that found no room.
    pub(super) stacks: Vec<Sums>,
    pub(super) subsystems: [u64; Subsystem::ALL.len()],
    pub(super) owners: [u64; OWNERS_MAX + 1],
    /// Bytes by app; what is beyond [`APPS_MAX`] is under 0, which is no app.
    pub(super) apps: HashMap<u32, u64>,
    pub(super) bytes: u64,
}

/// Apps told apart in one pass.
const APPS_MAX: usize = 4_096;

/// Memory of a fold.
pub(super) const FOLD_BYTES: usize = size_of::<[Sums; 4_097]>() + APPS_MAX * 24;

// === impl Ages ===

impl Ages {
    pub const ALL: Self = Self { older_than: Duration::ZERO, younger_than: Duration::MAX };

    fn contains(&self, age_ms: u64) -> bool {
        let age = Duration::from_millis(age_ms);
        age >= self.older_than && age <= self.younger_than
    }
}

// === impl Fold ===

impl Fold {
    pub(super) fn new() -> Self {
        Self {
            stacks: Vec::new(),
            subsystems: Default::default(),
            owners: [0; OWNERS_MAX + 1],
            apps: HashMap::new(),
            bytes: 0,
        }
    }

    pub(super) fn run(&mut self, tables: &Tables, stacks: usize, now_ms: u64, meant: Ages) {
        self.stacks.clear();
        self.stacks.resize(stacks + 1, Sums::default());
        self.subsystems = Default::default();
        self.owners = [0; OWNERS_MAX + 1];
        self.apps.clear();
        self.bytes = 0;
        let ages_ms = tables.ages_ms();
        tables.samples.each(|sample| self.add(sample, now_ms, &ages_ms, meant));
    }

    fn add(&mut self, sample: &Sample, now_ms: u64, ages_ms: &[u64; SCALES], meant: Ages) {
        let Sample { born_ms, requested, usable, weight, tag, stack } = *sample;
        let age = now_ms.saturating_sub(born_ms);
        let tag = Tag::from_word(tag);
        self.bytes += weight;
        self.subsystems[tag.subsystem() as usize] += weight;
        let owner = usize::from(tag.owner()).min(OWNERS_MAX);
        self.owners[owner] += weight;
        if tag.app() != 0 {
            let room = self.apps.len() < APPS_MAX || self.apps.contains_key(&tag.app());
            *self.apps.entry(if room { tag.app() } else { 0 }).or_default() += weight;
        }
        let last = self.stacks.len() - 1;
        let sums = &mut self.stacks[stack.unwrap_or(last).min(last)];
        sums.live_bytes += weight;
        sums.oldest_ms = sums.oldest_ms.max(age);
        if meant.contains(age) {
            sums.samples += 1;
            sums.bytes += weight;
        }
        if age >= ages_ms[0] {
            sums.vote(tag, weight);
            if owner == 0 {
                sums.undeclared += weight;
            }
        }
        let requested = (weight as f64 * (requested as f64 / usable.max(1) as f64)) as u64;
        for (old, limit) in sums.old.iter_mut().zip(ages_ms) {
            if age >= *limit {
                old.samples += 1;
                old.bytes += weight;
                old.requested += requested;
            }
        }
    }

    /// Whether nearly all of a stack's old blocks belong to an owner that is under its cap.
    pub(super) fn is_filling(&self, sums: &Sums) -> bool {
        let owner = sums.charge.owner();
        let Some(declared) = budget::declared(owner) else { return false };
        sums.undeclared * 10 <= sums.old[0].bytes && self.owners[usize::from(owner)] <= declared.cap
    }
}

// === impl Sums ===

impl Sums {
    /// The majority vote of Boyer and Moore, by bytes.
    fn vote(&mut self, tag: Tag, weight: u64) {
        if self.charge == tag {
            self.charge_lead += weight;
        } else if self.charge_lead >= weight {
            self.charge_lead -= weight;
        } else {
            self.charge = tag;
            self.charge_lead = weight - self.charge_lead;
        }
    }

    /// Another slot holds the same stack.
    pub(super) fn merge(&mut self, other: &Self) {
        self.samples += other.samples;
        self.bytes += other.bytes;
        self.live_bytes += other.live_bytes;
        self.undeclared += other.undeclared;
        self.oldest_ms = self.oldest_ms.max(other.oldest_ms);
        for (old, other) in self.old.iter_mut().zip(&other.old) {
            old.samples += other.samples;
            old.bytes += other.bytes;
            old.requested += other.requested;
        }
        self.vote(other.charge, other.charge_lead);
    }
}
