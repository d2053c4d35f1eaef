//! What every connection and request waits for, and since when.
//!
//! A [`Board`] is a fixed table that anybody may read while its workers are stuck: a worker writes
//! its own [`lane`](Desk) with plain stores, and a reader leaves a half-written line out. A lane
//! grows by chunks to what was ever needed at once, and no further than its bound; nothing is locked,
//! and a lane that is full costs the newcomer its line, not its service.
//!
//! The time of a state is the board's own clock, milliseconds that somebody else keeps
//! ([`Board::set_clock`]), so that a change of state is three stores.

mod beat;
mod cell;
mod state;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use beat::{Beat, Noted};
use cell::Cell;
pub use cell::Line;
pub use state::{Kind, State};

/// Cells of all workers.
pub struct Board {
    lanes: Box<[Lane]>,
    /// Milliseconds since the board was made.
    clock: AtomicU32,
    /// Work that found its lane full.
    unlisted: AtomicU64,
}

struct Lane {
    chunks: Box<[OnceLock<Box<Chunk>>]>,
    /// How many cells were ever used at once.
    used: AtomicU32,
    lines_max: u32,
}

/// 64 KiB.
type Chunk = [Cell; CHUNK];
const CHUNK: usize = 1024;

/// One worker's way to its lane. Cloning shares it.
#[derive(Clone)]
pub struct Desk {
    inner: Rc<Inner>,
}

struct Inner {
    board: Arc<Board>,
    lane: usize,
    free: RefCell<Vec<u32>>,
}

/// A line of the board, until dropped.
pub struct Slot {
    desk: Desk,
    /// `None` when the lane was full.
    cell: Option<u32>,
}

// === impl Board ===

impl Board {
    /// A table for `workers` workers with at most `lines_max` lines each, 64 bytes per line.
    pub fn new(workers: usize, lines_max: u32) -> Arc<Self> {
        let lane = || Lane {
            chunks: (0..(lines_max as usize).div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            used: AtomicU32::new(0),
            lines_max,
        };
        Arc::new(Self {
            lanes: (0..workers).map(|_| lane()).collect(),
            clock: AtomicU32::new(0),
            unlisted: AtomicU64::new(0),
        })
    }

    /// Moves the clock to `since_start`; one thread does that.
    pub fn set_clock(&self, since_start: Duration) {
        self.clock.store(u32::try_from(since_start.as_millis()).unwrap_or(u32::MAX), Relaxed);
    }

    /// The desk of worker `index`; each worker takes its own, once.
    pub fn desk(self: &Arc<Self>, index: usize) -> Desk {
        let inner = Inner { board: self.clone(), lane: index, free: RefCell::default() };
        Desk { inner: Rc::new(inner) }
    }

    /// Every line in use, at most `max`, the longest in its state first.
    pub fn lines(&self, max: usize) -> Vec<Line> {
        let now = self.clock.load(Relaxed);
        let mut lines: Vec<_> = self
            .lanes
            .iter()
            .enumerate()
            .flat_map(|(worker, lane)| lane.cells().filter_map(move |cell| cell.read(worker, now)))
            .collect();
        lines.sort_by_key(|line| std::cmp::Reverse(line.waiting));
        lines.truncate(max);
        lines
    }

    /// Work that is not listed, for want of a line, since the start.
    pub fn unlisted(&self) -> u64 {
        self.unlisted.load(Relaxed)
    }

    /// Bytes of all lines there are.
    pub fn bytes(&self) -> usize {
        let chunks = self.lanes.iter().flat_map(|lane| &lane.chunks);
        chunks.filter(|chunk| chunk.get().is_some()).count() * size_of::<Chunk>()
    }

    /// The most that [`Self::bytes`] can be.
    pub fn bytes_max(&self) -> usize {
        self.lanes.iter().map(|lane| lane.chunks.len() * size_of::<Chunk>()).sum()
    }
}

// === impl Lane ===

impl Lane {
    /// One more cell than were ever used at once; `None` at the bound.
    fn grow(&self) -> Option<u32> {
        let next = self.used.load(Relaxed);
        if next >= self.lines_max {
            return None;
        }
        self.chunks[next as usize / CHUNK].get_or_init(|| {
            let cells: Box<[Cell]> = (0..CHUNK).map(|_| Cell::default()).collect();
            cells.try_into().unwrap_or_else(|_| unreachable!("collected from as many"))
        });
        self.used.store(next + 1, Relaxed);
        Some(next)
    }

    fn cell(&self, index: u32) -> Option<&Cell> {
        Some(&self.chunks.get(index as usize / CHUNK)?.get()?[index as usize % CHUNK])
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        (0..self.used.load(Relaxed)).filter_map(|index| self.cell(index))
    }
}

// === impl Desk ===

impl Desk {
    /// Takes a line.
    pub fn open(&self, kind: Kind, state: State) -> Slot {
        let Inner { board, lane, free } = &*self.inner;
        let lane = &board.lanes[*lane];
        let cell = free.borrow_mut().pop().or_else(|| lane.grow());
        match cell.and_then(|cell| lane.cell(cell)) {
            Some(cell) => cell.open(kind, state, board.clock.load(Relaxed)),
            None => {
                board.unlisted.fetch_add(1, Relaxed);
            }
        }
        Slot { desk: self.clone(), cell }
    }

    fn cell(&self, index: u32) -> Option<(&Cell, u32)> {
        let Inner { board, lane, .. } = &*self.inner;
        Some((board.lanes[*lane].cell(index)?, board.clock.load(Relaxed)))
    }
}

// === impl Slot ===

impl Slot {
    /// It waits for something else from now on.
    pub fn enter(&self, state: State) {
        if let Some((cell, now)) = self.cell() {
            cell.enter(state, now);
        }
    }

    /// The app it turned out to be for, as the caller numbers apps.
    pub fn belongs_to(&self, app: u32) {
        if let Some((cell, _)) = self.cell() {
            cell.belongs_to(app);
        }
    }

    /// The trace that its record is in.
    pub fn traced(&self, trace: u128) {
        if let Some((cell, _)) = self.cell() {
            cell.traced(trace);
        }
    }

    /// It was polled.
    pub fn polled(&self) {
        if let Some((cell, now)) = self.cell() {
            cell.polled(now);
        }
    }

    fn cell(&self) -> Option<(&Cell, u32)> {
        self.desk.cell(self.cell?)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((cell, _)) = self.cell() {
            cell.close();
        }
        if let Some(cell) = self.cell {
            self.desk.inner.free.borrow_mut().push(cell);
        }
    }
}

#[cfg(test)]
mod tests;
