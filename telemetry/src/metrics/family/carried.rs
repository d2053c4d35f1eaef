//! What a family shows on top of its own: what the processes before have counted.
//!
//! A label set's numbers are in two rows: what processes that have ended had counted, which stays,
//! and what the one that still runs says, which is replaced each time it says more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{Family, Totals};
use crate::ledger::scope::moved;
use crate::metrics::{Kind, Labels, Metric, OTHER};

/// Of one family.
#[derive(Default)]
pub(super) struct Carried {
    sets: BTreeMap<Labels, Set>,
    /// Of those, how many count against the cap.
    counted: usize,
    /// A label set found no room since the process that runs began to tell. From then on new ones
    /// count under `__other__`, also when there is room again: they would be counted twice.
    full: bool,
}

/// One label set.
pub(super) struct Set {
    ended: Box<[i64]>,
    running: Box<[i64]>,
    pub(super) born: Duration,
    /// When it last changed, as far as is known here.
    changed: Instant,
    /// Nothing touched it for long: shown again when something does.
    pub(super) hidden: bool,
    counted: bool,
    _booked: Booked,
}

/// Bytes in the ledger's line of the metrics.
struct Booked {
    bytes: u64,
    all: Arc<AtomicU64>,
}

/// One label set as another process tells of it.
pub(in crate::metrics) struct Told {
    pub(in crate::metrics) labels: Labels,
    pub(in crate::metrics) born: Duration,
    pub(in crate::metrics) hidden: bool,
    /// As a block of one shard has them.
    pub(in crate::metrics) cells: Box<[i64]>,
}

// === impl Family ===

impl Family {
    /// Takes over all that a running process tells of this family. What it told before and does not
    /// tell any more stays as it was.
    pub(in crate::metrics) fn carry(&self, told: Vec<Told>, now: Instant) {
        let mut held = self.held.lock();
        let carried = &mut held.carried;
        let mut placed: BTreeMap<Labels, Told> = BTreeMap::new();
        for mut told in told {
            if !self.admit_carried(carried, &told, now) {
                told = Told { labels: self.overflow(&told.labels), hidden: false, ..told };
                self.admit_carried(carried, &told, now);
            }
            // Several when they are beyond the cap. Each time all are told, so each time added up.
            match placed.get_mut(&told.labels) {
                Some(sum) => add(&mut sum.cells, &told.cells),
                None => drop(placed.insert(told.labels.clone(), told)),
            }
        }
        for (labels, told) in placed {
            if let Some(set) = carried.sets.get_mut(&labels) {
                set.tell(&told, self.metric.kind, now);
            }
        }
    }

    /// The process that told has ended: what it counted stays, what it held is gone.
    pub(in crate::metrics) fn carry_ended(&self) {
        let mut held = self.held.lock();
        let carried = &mut held.carried;
        carried.full = false;
        if self.metric.kind == Kind::Gauge {
            carried.retain(&self.metric, &self.totals, |_| false);
        }
        for set in carried.sets.values_mut() {
            add(&mut set.ended, &set.running);
            set.running.fill(0);
        }
    }

    /// Whether there is a set with these labels, or room for one.
    fn admit_carried(&self, carried: &mut Carried, told: &Told, now: Instant) -> bool {
        if carried.sets.contains_key(&told.labels) {
            return true;
        }
        // There are few of those, and they take what has no room.
        let is_other = |(_, value): &(&str, Box<str>)| **value == *OTHER;
        let counted = !told.labels.is_empty() && !told.labels.iter().any(is_other);
        if counted {
            let (weight, max) = (self.metric.weight(), self.totals.series_max);
            let add = |series| Some(series + weight).filter(|sum| *sum <= max);
            let has_room = !carried.full
                && carried.counted < self.labels_max
                && self.totals.carried.fetch_update(Relaxed, Relaxed, add).is_ok();
            if !has_room {
                carried.full = true;
                return false;
            }
            carried.counted += 1;
        }
        let set = Set::new(told, counted, self.totals.bytes.clone(), now);
        carried.sets.insert(told.labels.clone(), set);
        true
    }
}

// === impl Carried ===

impl Carried {
    pub(super) fn get(&self, labels: &Labels) -> Option<&Set> {
        self.sets.get(labels)
    }

    /// Every label set, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Labels, &Set)> {
        self.sets.iter()
    }

    pub(super) fn retain(
        &mut self,
        metric: &Metric,
        totals: &Totals,
        keep: impl Fn(&Labels) -> bool,
    ) {
        self.sets.retain(|labels, set| {
            let keep = keep(labels);
            if !keep && set.counted {
                self.counted -= 1;
                totals.carried.fetch_sub(metric.weight(), Relaxed);
            }
            keep
        });
    }

    /// Hides what did not change for `idle`.
    pub(super) fn hide(&mut self, now: Instant, idle: Duration) {
        for set in self.sets.values_mut() {
            set.hidden |= now.saturating_duration_since(set.changed) >= idle;
        }
    }
}

// === impl Set ===

impl Set {
    fn new(told: &Told, counted: bool, all: Arc<AtomicU64>, now: Instant) -> Self {
        let Told { labels, born, hidden, cells } = told;
        let values: usize = labels.iter().map(|(_, value)| value.len()).sum();
        let bytes = size_of::<Self>() + 2 * size_of_val(&**cells) + size_of_val(&**labels) + values;
        let zeros = || vec![0; cells.len()].into_boxed_slice();
        Self {
            ended: zeros(),
            running: zeros(),
            born: *born,
            changed: now,
            hidden: *hidden,
            counted,
            _booked: Booked::new(bytes as u64, all),
        }
    }

    fn tell(&mut self, told: &Told, kind: Kind, now: Instant) {
        self.born = self.born.min(told.born);
        let mut changed = false;
        for (cell, told) in self.running.iter_mut().zip(&told.cells) {
            // A counter that began anew there, with an app that came back, does not go back here.
            let new = if kind == Kind::Gauge { *told } else { (*told).max(*cell) };
            changed |= new != *cell;
            *cell = new;
        }
        if changed {
            (self.changed, self.hidden) = (now, told.hidden);
        }
    }

    /// Its numbers, as a block of one shard has them.
    pub(super) fn cells(&self) -> Box<[i64]> {
        let mut cells = self.ended.clone();
        add(&mut cells, &self.running);
        cells
    }
}

fn add(sum: &mut [i64], more: &[i64]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.wrapping_add(*more));
}

// === impl Booked ===

impl Booked {
    fn new(bytes: u64, all: Arc<AtomicU64>) -> Self {
        all.fetch_add(bytes, Relaxed);
        moved(bytes as i64); // it has a line of its own
        Self { bytes, all }
    }
}

impl Drop for Booked {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Relaxed);
        moved(-(self.bytes as i64));
    }
}
