//! One family: its label sets, the cap on them, and who is beyond it.
//!
//! The lock is held for as long as looking up or listing takes, never while cells are read or a
//! reader is called, so that a first request of an app does not wait for a scrape.

mod carried;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use carried::Carried;

use super::block::Block;
use super::series::{Cells, Series, State};
use super::snapshot::{Number, since_epoch};
use super::source::Looks;
use super::{Kind, Labels, Metric, OTHER};
use crate::lock::Mutex;

pub(super) use carried::Told;

pub(super) struct Family {
    pub(super) metric: Metric,
    labels_max: usize,
    totals: Arc<Totals>,
    room: Arc<AtomicBool>,
    /// Series that the last snapshot showed and that are carried only.
    carried_only: AtomicUsize,
    held: Mutex<Held>,
}

/// Of all families.
pub(super) struct Totals {
    pub(super) shards: usize,
    pub(super) series_max: usize,
    pub(super) series: AtomicUsize,
    /// Series that are carried, shown or not; at most `series_max`, as our own.
    pub(super) carried: AtomicUsize,
    /// Of those, the ones that the last snapshot showed and that are none of our own.
    pub(super) carried_only: AtomicUsize,
    /// Of all blocks, the retired ones included.
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) evicted: AtomicU64,
    /// Label sets that found their family full.
    pub(super) beyond_labels: AtomicU64,
    /// Label sets that found the registry full.
    pub(super) beyond_series: AtomicU64,
}

#[derive(Default)]
struct Held {
    shown: BTreeMap<Labels, Shown>,
    /// Of those, how many count against the cap: not the ones of `__other__`.
    counted: usize,
    /// Evicted ones, so that there is never a second series with their labels. As many as there
    /// are handles that idle.
    evicted: BTreeMap<Labels, Weak<Series>>,
    /// What a worker may write to still.
    retired: Vec<(Arc<Series>, Arc<Block>)>,
    carried: Carried,
}

struct Shown {
    what: What,
    born: Duration,
    counted: bool,
    /// What it was when it last changed, and when that was seen.
    seen: i64,
    changed: Instant,
}

/// What stands behind one label set.
#[derive(Clone)]
pub(super) enum What {
    Cells(Cells),
    Read(Read),
}

/// How a number is read when somebody asks.
pub(super) type Read = Arc<dyn Fn(&mut Looks) -> Number + Send + Sync>;

/// One label set as a snapshot reads it.
pub(super) struct Listed {
    pub(super) labels: Labels,
    pub(super) born: Duration,
    /// Our own; nothing when it is carried only.
    pub(super) what: Option<What>,
    /// What other processes counted, cell by cell.
    pub(super) carried: Option<Box<[i64]>>,
    /// Not shown, because nothing touched it for long.
    pub(super) hidden: bool,
    /// Held so that an eviction meanwhile does not move its numbers.
    pub(super) block: Option<Arc<Block>>,
}

// === impl Totals ===

impl Totals {
    pub(super) fn new(shards: usize, series_max: usize) -> Self {
        Self {
            shards,
            series_max,
            series: AtomicUsize::new(0),
            carried: AtomicUsize::new(0),
            carried_only: AtomicUsize::new(0),
            bytes: Arc::default(),
            evicted: AtomicU64::new(0),
            beyond_labels: AtomicU64::new(0),
            beyond_series: AtomicU64::new(0),
        }
    }
}

// === impl Family ===

impl Family {
    pub(super) fn new(metric: Metric, labels_max: usize, totals: Arc<Totals>) -> Arc<Self> {
        let labels_max = metric.labels_max.unwrap_or(labels_max);
        let held = Mutex::new("family of metrics", Held::default());
        let (room, carried_only) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
        Arc::new(Self { metric, labels_max, totals, room, carried_only, held })
    }

    /// The cells of a label set: its own, or those of `__other__`.
    pub(super) fn cells(self: &Arc<Self>, labels: Labels) -> Cells {
        let mut held = self.held.lock();
        if let Some(Shown { what: What::Cells(cells), .. }) = held.shown.get(&labels) {
            return cells.clone();
        }
        if let Some(series) = held.evicted.get(&labels).and_then(Weak::upgrade) {
            self.attach_held(&mut held, &series);
            return Cells::Evictable(series);
        }
        if self.metric.per.is_some() {
            let (family, room) = (Arc::downgrade(self), self.room.clone());
            let series = Series::new(labels, since_epoch(), family, room, self.metric.width());
            let series = Arc::new(series);
            self.attach_held(&mut held, &series);
            return Cells::Evictable(series);
        }
        if labels.is_empty() || self.admit(&held) {
            let cells = Cells::Fixed(Arc::new(self.block()));
            let counted = !labels.is_empty();
            self.show(&mut held, labels, What::Cells(cells.clone()), since_epoch(), counted);
            return cells;
        }
        Cells::Fixed(self.other(&mut held, &labels))
    }

    /// Shows a label set that is read; the first reader of a label set stays.
    pub(super) fn read(&self, labels: Labels, read: Read) {
        let mut held = self.held.lock();
        if !held.shown.contains_key(&labels) && (labels.is_empty() || self.admit(&held)) {
            let counted = !labels.is_empty();
            self.show(&mut held, labels, What::Read(read), since_epoch(), counted);
        }
    }

    /// Gives a series its place again; what it writes to from now on, unless it was forgotten.
    pub(super) fn attach(&self, series: &Arc<Series>) -> Option<Arc<Block>> {
        let mut held = self.held.lock();
        self.attach_held(&mut held, series);
        series.block.load_full() // still under the lock: a moment later it may be evicted again
    }

    fn attach_held(&self, held: &mut Held, series: &Arc<Series>) {
        let fresh = match series.state() {
            State::Shown | State::Displaced | State::Forgotten => return,
            State::Overflow if held.shown.contains_key(&series.labels) => {
                let block = series.block.load_full();
                series.enter(State::Displaced, block);
                return;
            }
            State::Overflow => false,
            State::Evicted => true,
        };
        if self.admit(held) {
            let own = held.retired.iter().position(|(retired, _)| Arc::ptr_eq(retired, series));
            let block = match own {
                Some(index) => held.retired.swap_remove(index).1,
                None => Arc::new(self.block()),
            };
            held.evicted.remove(&series.labels);
            series.enter(State::Shown, Some(block));
            let what = What::Cells(Cells::Evictable(series.clone()));
            self.show(held, series.labels.clone(), what, series.born, true);
        } else if fresh {
            let other = self.other(held, &series.labels);
            series.enter(State::Overflow, Some(other));
        }
    }

    /// Books a place if there is one.
    fn admit(&self, held: &Held) -> bool {
        let (weight, max) = (self.metric.weight(), self.totals.series_max);
        let add = |series| Some(series + weight).filter(|sum| *sum <= max);
        if held.counted >= self.labels_max {
            self.totals.beyond_labels.fetch_add(1, Relaxed);
        } else if self.totals.series.fetch_update(Relaxed, Relaxed, add).is_ok() {
            return true;
        } else {
            self.totals.beyond_series.fetch_add(1, Relaxed);
        }
        self.room.store(false, Relaxed);
        false
    }

    /// Shows a label set; one that is counted was admitted.
    fn show(&self, held: &mut Held, labels: Labels, what: What, born: Duration, counted: bool) {
        if counted {
            held.counted += 1;
        } else {
            self.totals.series.fetch_add(self.metric.weight(), Relaxed);
        }
        let shown = Shown { what, born, counted, seen: 0, changed: Instant::now() };
        held.shown.insert(labels, shown);
    }

    /// The overflow set of these labels: always there, for there are few.
    fn other(&self, held: &mut Held, labels: &Labels) -> Arc<Block> {
        let labels = self.overflow(labels);
        if let Some(Shown { what: What::Cells(Cells::Fixed(block)), .. }) = held.shown.get(&labels)
        {
            return block.clone();
        }
        let block = Arc::new(self.block());
        let what = What::Cells(Cells::Fixed(block.clone()));
        self.show(held, labels, what, since_epoch(), false);
        block
    }

    /// These labels with `__other__` for what the code does not bound.
    fn overflow(&self, labels: &Labels) -> Labels {
        let other = |(label, value): &(&'static str, Box<str>)| {
            let open = self.metric.per.is_none_or(|per| per == *label);
            (*label, if open { OTHER.into() } else { value.clone() })
        };
        labels.iter().map(other).collect()
    }

    fn block(&self) -> Block {
        let buckets = self.metric.bounds.len() + 1;
        let exemplars = if self.metric.exemplars { buckets } else { 0 };
        let bytes = self.totals.bytes.clone();
        Block::new(self.totals.shards, self.metric.width(), exemplars, bytes)
    }

    /// Forgets every label set whose `label` is `value`.
    pub(super) fn forget(&self, label: &'static str, value: &str) {
        let named =
            |labels: &Labels| labels.iter().any(|(name, held)| *name == label && **held == *value);
        let mut held = self.held.lock();
        let Held { shown, counted, evicted, .. } = &mut *held;
        shown.retain(|labels, shown| {
            let keep = !named(labels);
            if !keep {
                *counted -= usize::from(shown.counted);
                self.totals.series.fetch_sub(self.metric.weight(), Relaxed);
                if let What::Cells(Cells::Evictable(series)) = &shown.what {
                    series.enter(State::Forgotten, None);
                }
            }
            keep
        });
        evicted.retain(|labels, series| {
            let keep = !named(labels);
            if !keep && let Some(series) = series.upgrade() {
                series.enter(State::Forgotten, None);
            }
            keep
        });
        held.carried.retain(&self.metric, &self.totals, |labels| !named(labels));
        self.look_for_room(&held);
    }

    /// Evicts what did not change for `idle`, and counts up what was evicted before.
    pub(super) fn sweep(&self, now: Instant, idle: Duration) {
        if self.metric.per.is_none() {
            return;
        }
        let evictable: Vec<_> = {
            let held = self.held.lock();
            let series = held.shown.values().filter_map(|shown| match &shown.what {
                What::Cells(Cells::Evictable(series)) => Some(series.clone()),
                _ => None,
            });
            series.collect()
        };
        let totals: Vec<_> = evictable.iter().map(|series| series.total()).collect();

        let mut held = self.held.lock();
        let retired = std::mem::take(&mut held.retired);
        held.retired = retired
            .into_iter()
            .filter_map(|(series, block)| Some((series.clone(), series.fold(block).err()?)))
            .collect();
        held.evicted.retain(|_, series| series.strong_count() > 0);
        held.carried.hide(now, idle);
        for (series, total) in evictable.iter().zip(totals) {
            self.look_at(&mut held, series, total, now, idle);
        }
        self.look_for_room(&held);
    }

    fn look_at(
        &self,
        held: &mut Held,
        series: &Arc<Series>,
        total: i64,
        now: Instant,
        idle: Duration,
    ) {
        let Some(shown) = held.shown.get_mut(&series.labels) else { return };
        if shown.seen != total {
            (shown.seen, shown.changed) = (total, now);
            return;
        }
        // A gauge that stands at something says that it is there: connections may be open for long.
        let in_use = self.metric.kind == Kind::Gauge && total != 0;
        let is_idle = now.saturating_duration_since(shown.changed) >= idle && !in_use;
        if !is_idle || series.total() != total || series.state() != State::Shown {
            return;
        }
        held.shown.remove(&series.labels);
        held.counted -= 1;
        self.totals.series.fetch_sub(self.metric.weight(), Relaxed);
        self.totals.evicted.fetch_add(1, Relaxed);
        held.evicted.insert(series.labels.clone(), Arc::downgrade(series));
        if let Some(block) = series.enter(State::Evicted, None) {
            held.retired.push((series.clone(), block));
        }
    }

    fn look_for_room(&self, held: &Held) {
        let total = self.totals.series.load(Relaxed) + self.metric.weight();
        let room = held.counted < self.labels_max && total <= self.totals.series_max;
        self.room.store(room, Relaxed);
    }

    /// Every label set that is shown, in order.
    pub(super) fn list(&self) -> Vec<Listed> {
        let held = self.held.lock();
        let mut listed = held.own();
        let own = listed.len();
        listed.extend(held.others().filter(|listed| !listed.hidden));
        drop(held);
        let carried_only = (listed.len() - own) * self.metric.weight();
        let before = self.carried_only.swap(carried_only, Relaxed);
        self.totals.carried_only.fetch_add(carried_only.wrapping_sub(before), Relaxed);
        listed.sort_by(|a, b| a.labels.cmp(&b.labels));
        listed
    }

    /// Every label set that has numbers, those among them that are not shown.
    pub(super) fn list_all(&self) -> Vec<Listed> {
        let held = self.held.lock();
        let mut listed = held.own();
        listed.extend(held.others());
        listed.extend(held.evicted.keys().filter_map(|labels| {
            let carried = held.carried.get(labels).is_some();
            (!carried).then(|| held.quiet(labels)).flatten()
        }));
        listed
    }
}

// === impl Held ===

impl Held {
    /// What is shown for its own sake, in order.
    fn own(&self) -> Vec<Listed> {
        let listed = self.shown.iter().map(|(labels, shown)| {
            let block = match &shown.what {
                What::Cells(Cells::Fixed(block)) => Some(block.clone()),
                What::Cells(Cells::Evictable(series)) => series.block.load_full(),
                What::Read(_) => None,
            };
            let carried = self.carried.get(labels);
            Listed {
                labels: labels.clone(),
                born: carried.map_or(shown.born, |set| set.born.min(shown.born)),
                what: Some(shown.what.clone()),
                carried: carried.map(|set| set.cells()),
                hidden: false,
                block,
            }
        });
        listed.collect()
    }

    /// What is carried and not shown for its own sake.
    fn others(&self) -> impl Iterator<Item = Listed> {
        let others = self.carried.iter().filter(|(labels, _)| !self.shown.contains_key(*labels));
        others.map(|(labels, set)| {
            let carried = Listed {
                labels: labels.clone(),
                born: set.born,
                what: None,
                carried: None,
                hidden: true,
                block: None,
            };
            // One that was evicted here belongs to it: together they must not go back.
            let quiet = self.quiet(labels).unwrap_or(carried);
            let born = set.born.min(quiet.born);
            Listed { born, carried: Some(set.cells()), hidden: set.hidden, ..quiet }
        })
    }

    /// An evicted series, as far as somebody holds it.
    fn quiet(&self, labels: &Labels) -> Option<Listed> {
        let series = self.evicted.get(labels)?.upgrade()?;
        let retired = self.retired.iter().find(|(retired, _)| Arc::ptr_eq(retired, &series));
        Some(Listed {
            labels: labels.clone(),
            born: series.born,
            block: retired.map(|(_, block)| block.clone()),
            what: Some(What::Cells(Cells::Evictable(series))),
            carried: None,
            hidden: true,
        })
    }
}
