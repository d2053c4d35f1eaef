//! A series that may be evicted, and what happens to a handle that still writes it.
//!
//! # Eviction
//!
//! Families that are labelled by something the code does not bound (an app) evict what nothing
//! touched for long, so that the cap is for what is in use. The handle may be held still, by an app
//! that is merely quiet, and what it counts must not be lost:
//!
//! 1. Evicting takes the series out of its family and its [`Block`] out of the series. Whoever
//!    holds a handle keeps only the labels and one number for each cell, `base`.
//! 2. A worker may have picked the block up just before, and add to it afterwards. So the block is
//!    *retired*, not dropped: its numbers go to `base` when nobody else refers to it, which the
//!    reference count says exactly (an `ArcSwap` counts borrowers as soon as its value changes).
//! 3. The next add finds no block and asks the family for its place again. It gets its retired
//!    block back, or a new one on top of `base`: the exported number goes on where it stopped. When
//!    there is no room, it counts under `__other__` and moves back once there is.
//!
//! What was counted before the eviction is therefore exported again as soon as the handle is used,
//! and is gone only with the last handle, at least [`Config::idle`](super::Config::idle) after it
//! was last touched. A series that is *forgotten* (the app was removed) does not come back, and
//! what is added to it is not counted.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::Labels;
use super::block::Block;
use super::family::Family;

pub(super) struct Series {
    pub(super) labels: Labels,
    /// Since the Unix epoch.
    pub(super) born: Duration,
    family: Weak<Family>,
    /// Whether the family has room for one that counts under `__other__`.
    room: Arc<AtomicBool>,
    /// What blocks that are gone had counted, cell by cell.
    base: Box<[AtomicI64]>,
    /// Its own, or that of `__other__`; absent while it is evicted.
    pub(super) block: ArcSwapOption<Block>,
    state: AtomicU8,
}

/// Where a series is. Changes under the lock of its family only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Shown,
    Evicted,
    /// Counts under `__other__` until there is room.
    Overflow,
    /// Counts under `__other__` for good: another handle has the place.
    Displaced,
    Forgotten,
}

/// The cells behind a handle.
#[derive(Clone)]
pub(super) enum Cells {
    Fixed(Arc<Block>),
    Evictable(Arc<Series>),
}

// === impl Cells ===

impl Cells {
    pub(super) fn with(&self, write: impl FnOnce(&Block)) {
        match self {
            Self::Fixed(block) => write(block),
            Self::Evictable(series) => series.with(write),
        }
    }

    /// The cell's sum over all shards.
    pub(super) fn sum(&self, cell: usize) -> i64 {
        match self {
            Self::Fixed(block) => block.sum(cell),
            Self::Evictable(series) => {
                let sum = series.block.load().as_deref().map_or(0, |block| block.sum(cell));
                sum.wrapping_add(series.base(cell))
            }
        }
    }
}

// === impl Series ===

impl Series {
    pub(super) fn new(
        labels: Labels,
        born: Duration,
        family: Weak<Family>,
        room: Arc<AtomicBool>,
        width: usize,
    ) -> Self {
        let base = (0..width).map(|_| AtomicI64::new(0)).collect();
        let state = AtomicU8::new(State::Evicted as u8);
        Self { labels, born, family, room, base, block: ArcSwapOption::empty(), state }
    }

    fn with(self: &Arc<Self>, write: impl FnOnce(&Block)) {
        let block = self.block.load();
        match block.as_deref() {
            Some(block) if !self.may_return() => write(block),
            _ => {
                drop(block);
                self.return_and(write);
            }
        }
    }

    fn may_return(&self) -> bool {
        self.state() == State::Overflow && self.room.load(Relaxed)
    }

    /// Takes its place in the family again. The block is held while it is written, so that one
    /// evicted meanwhile is not counted up too early.
    #[cold]
    fn return_and(self: &Arc<Self>, write: impl FnOnce(&Block)) {
        if self.state() == State::Forgotten {
            return;
        }
        let block = self.family.upgrade().and_then(|family| family.attach(self));
        if let Some(block) = block {
            write(&block);
        }
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Relaxed) {
            0 => State::Shown,
            1 => State::Evicted,
            2 => State::Overflow,
            3 => State::Displaced,
            _ => State::Forgotten,
        }
    }

    /// Moves to `state` and writes to `block` from now on; returns what it wrote to.
    pub(super) fn enter(&self, state: State, block: Option<Arc<Block>>) -> Option<Arc<Block>> {
        self.state.store(state as u8, Relaxed);
        self.block.swap(block)
    }

    pub(super) fn base(&self, cell: usize) -> i64 {
        self.base[cell].load(Relaxed)
    }

    /// Adds up a block that nobody else refers to; gives back one that somebody does.
    pub(super) fn fold(&self, block: Arc<Block>) -> Result<(), Arc<Block>> {
        let block = Arc::try_unwrap(block)?;
        for (cell, base) in self.base.iter().enumerate() {
            base.fetch_add(block.sum(cell), Relaxed);
        }
        Ok(())
    }

    /// A number that differs when any cell of a counter or histogram does.
    pub(super) fn total(&self) -> i64 {
        let block = self.block.load();
        let Some(block) = block.as_deref() else { return 0 };
        (0..self.base.len()).map(|cell| block.sum(cell)).fold(0, i64::wrapping_add)
    }
}
