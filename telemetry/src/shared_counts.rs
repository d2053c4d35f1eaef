//! Counts that two generations of the process keep together, so that a limit holds while both run.
//!
//! During an upgrade the old process still has requests and the new one takes more; a hard limit of
//! 50 must not become 100. So a process keeps what it counts in a memory file, a [`Counts`], and
//! gives the other one a descriptor of it. Each writes its own file only and has the other's mapped
//! to read. A count is tried by adding to one's own and then reading the other's:
//!
//! ```text
//! this process    own += 1, fence, read the other's   ─┐ whichever fence is later sees both,
//! the other one   own += 1, fence, read the other's   ─┘ so at most one takes the last place
//! ```
//!
//! What does not fit is taken back. When a process dies, the other one leaves its file
//! ([`Counts::leave`]) and so has all its places back; nothing has to be repaired, because nobody
//! else ever wrote there. Joined or not, a count that a process gives back is an add to its own row.
//!
//! Outside an overlap it costs one load of a flag and a branch more than an atomic would.
//!
//! # The file
//!
//! Rows of one cache line each: a [`Key`] and its count. The first row says what the file is. A key
//! may be in one of [`WINDOW`] rows from where its hash points. When these are taken the count is
//! private: it holds for one process only, and is counted ([`Counts::without_room`]). The file is
//! sealed: it can neither shrink, which would make the reader fault, nor grow, nor be mapped to be
//! written to by whoever gets the descriptor.

mod file;
mod key;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence,
};

use arc_swap::ArcSwapOption;

use crate::ledger::Ledger;
use crate::lock::Mutex;
use crate::metrics::{Registry, catalogue};
use file::{ROW_BYTES, Row, Rows};

pub use file::ROWS_MAX;
pub use key::Key;

/// What this process counts where another generation can read it.
pub struct Counts {
    own: Rows,
    theirs: ArcSwapOption<Rows>,
    /// Set after `theirs`, so that whoever sees it finds them.
    joined: AtomicBool,
    /// Held while rows change hands.
    places: Mutex<()>,
    used: AtomicUsize,
    without_room: AtomicU64,
}

/// One count: a row of the file, or private to this process. Dropping it gives the row back.
pub struct Count {
    cell: Cell,
}

/// Why the other process's file cannot be read; this one goes on alone.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the counts of another process are joined already")]
    Joined,
    #[error("these are our own counts")]
    Own,
    #[error("the file of counts is not sealed, so its size is not certain")]
    NotSealed,
    #[error("the file of counts is of {bytes} bytes, which no number of rows is")]
    Size { bytes: u64 },
    #[error("the file is not one of counts")]
    Format,
    #[error("the file of counts is of version {theirs}, this process knows {ours}")]
    Version { theirs: u32, ours: u32 },
    #[error("the file of counts says that it has {rows} rows and is of {bytes} bytes")]
    Rows { rows: u32, bytes: u64 },
    #[error("the file of counts cannot be mapped")]
    Map(#[source] io::Error),
}

enum Cell {
    Private(AtomicU32),
    Row(Held),
}

struct Held {
    /// In the file of `counts`, which is mapped for as long as this is here.
    row: &'static Row,
    /// Where the other process had the same key last.
    there: AtomicU32,
    counts: Arc<Counts>,
}

/// Rows in which a key may be. Filling 65,536 rows (simulated), no key in a million finds all
/// sixteen taken up to a quarter, 0.03 % up to half, and 1.3 % up to three quarters.
const WINDOW: usize = 16;

/// How often whoever took back, because the other process did the same, tries again.
const TRIES: usize = 4;

// === impl Counts ===

impl Counts {
    /// A file of `rows_max` rows, 64 bytes each; pages that no row is in take no memory.
    ///
    /// # Errors
    /// When there is no memory or descriptor for it, or no rows are wanted, or over [`ROWS_MAX`].
    pub fn create(rows_max: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            own: Rows::create(rows_max)?,
            theirs: ArcSwapOption::empty(),
            joined: AtomicBool::new(false),
            places: Mutex::new("shared counts", ()),
            used: AtomicUsize::new(0),
            without_room: AtomicU64::new(0),
        }))
    }

    /// What the other process needs to [`join`](Self::join). It can map it to read only.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.own.file().as_fd()
    }

    /// The count of `key`. As long as one is alive, another one of the same key is the same row.
    ///
    /// Takes a lock for some hundred nanoseconds: when something to be counted comes, not per
    /// request.
    pub fn count(self: &Arc<Self>, key: Key) -> Count {
        let _places = self.places.lock();
        let window = || self.own.window(key);
        let row = window().find(|row| row.is(key)).or_else(|| {
            let row = window().find(|row| row.is_free())?;
            row.take(key);
            self.used.fetch_add(1, Relaxed);
            Some(row)
        });
        let Some(row) = row else {
            self.without_room.fetch_add(1, Relaxed);
            return Count::private();
        };
        row.holders.fetch_add(1, Relaxed);
        let held = Held { row, there: AtomicU32::new(0), counts: self.clone() };
        Count { cell: Cell::Row(held) }
    }

    /// Adds what the process with this file counts to every total from here on.
    ///
    /// To be called before the other one counts anything, by both: what it has added before this
    /// call is seen, what it granted meanwhile on its own is not taken back.
    ///
    /// # Errors
    /// When the file is not one that can be read without the other's good will.
    pub fn join(&self, other: OwnedFd) -> Result<(), JoinError> {
        let _places = self.places.lock();
        if self.is_joined() {
            return Err(JoinError::Joined);
        }
        let theirs = Rows::open(other)?;
        if self.own.is_same_file(&theirs) {
            return Err(JoinError::Own);
        }
        self.theirs.store(Some(Arc::new(theirs)));
        self.joined.store(true, SeqCst);
        Ok(())
    }

    /// Forgets the other process: it has ended, and what it held is free. Whoever waits for a place
    /// should look again.
    pub fn leave(&self) {
        let _places = self.places.lock();
        self.joined.store(false, SeqCst);
        self.theirs.store(None);
    }

    /// Whether another process's counts are added to ours.
    pub fn is_joined(&self) -> bool {
        self.joined.load(Relaxed)
    }

    /// Counts that found no row and hold for this process only.
    pub fn without_room(&self) -> u64 {
        self.without_room.load(Relaxed)
    }

    /// Rows that are in use.
    pub fn rows(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Shows the file in the ledger and how many counts found no room.
    pub fn export(self: &Arc<Self>, registry: &Registry, ledger: &Ledger) {
        let counts = self.clone();
        let cap = (self.own.len() * ROW_BYTES) as u64;
        ledger.watch_outside("shared_counts", cap, move || counts.own.bytes());
        let counts = self.clone();
        catalogue::SHARED_COUNTS_FULL.counter_read_in(registry, &[], move || counts.without_room());
    }

    fn give_back(&self, row: &Row) {
        let _places = self.places.lock();
        if row.holders.fetch_sub(1, Relaxed) == 1 {
            debug_assert_eq!(row.count.load(Relaxed), 0, "a count was dropped before its places");
            row.clear();
            self.used.fetch_sub(1, Relaxed);
        }
    }
}

// === impl Count ===

impl Count {
    /// One that no other process sees.
    pub fn private() -> Self {
        Self { cell: Cell::Private(AtomicU32::new(0)) }
    }

    /// Of this process.
    pub fn own(&self) -> u32 {
        self.here().load(Relaxed)
    }

    /// Of both while they are joined. Of this process it is read `SeqCst`, for who looks for a place
    /// after saying that they wait.
    pub fn total(&self) -> u32 {
        let own = self.here().load(SeqCst);
        match self.joined() {
            None => own,
            Some(held) => own.saturating_add(held.theirs()),
        }
    }

    /// Takes one more unless that made it more than `max`, of both together.
    ///
    /// It is one add, whoever else adds. At the limit it may refuse a place that was taken and taken
    /// back in this moment, so nobody should wait on its word; see [`Self::try_add_exactly`].
    #[inline]
    pub fn try_add(&self, max: u32) -> bool {
        let here = self.here();
        let before = here.fetch_add(1, SeqCst);
        if before < max && self.fits(before + 1, max) {
            return true;
        }
        here.fetch_sub(1, SeqCst);
        false
    }

    /// The same, and it refuses only when there was no place, while not joined. While joined it may
    /// refuse the last place to both, so who waits looks again from time to time.
    #[inline]
    pub fn try_add_exactly(&self, max: u32) -> bool {
        let here = self.here();
        for _ in 0..TRIES {
            let one_more = |own| (own < max).then(|| own + 1);
            let Ok(before) = here.fetch_update(SeqCst, SeqCst, one_more) else { return false };
            if self.fits(before + 1, max) {
                return true;
            }
            here.fetch_sub(1, SeqCst);
            if self.total() >= max {
                return false;
            }
        }
        false
    }

    /// Takes one more, whatever the limit.
    pub fn add(&self) {
        self.here().fetch_add(1, SeqCst);
    }

    /// Gives one back.
    #[inline]
    pub fn sub(&self) {
        let before = self.here().fetch_sub(1, SeqCst);
        debug_assert!(before > 0, "a place was given back twice");
    }

    #[inline]
    fn here(&self) -> &AtomicU32 {
        match &self.cell {
            Cell::Private(count) => count,
            Cell::Row(held) => &held.row.count,
        }
    }

    /// Whether `own`, the sum after adding, leaves the other process's within `max`.
    #[inline]
    fn fits(&self, own: u32, max: u32) -> bool {
        self.joined().is_none_or(|held| own.saturating_add(held.theirs()) <= max)
    }

    /// `SeqCst` and after adding: if it says no, then the add comes before the join, so before any
    /// add of the process that is joined, which therefore sees ours.
    #[inline]
    fn joined(&self) -> Option<&Held> {
        match &self.cell {
            Cell::Row(held) if held.counts.joined.load(SeqCst) => Some(held),
            _ => None,
        }
    }
}

impl Held {
    /// What the other process has of the same key.
    #[cold]
    fn theirs(&self) -> u32 {
        // Between adding to ours and reading theirs; they have the same. Loads of memory that may
        // only be read have to be relaxed, so it is a fence that orders them.
        fence(SeqCst);
        let theirs = self.counts.theirs.load();
        let Some(theirs) = theirs.as_deref() else { return 0 };
        theirs.count(self.row.key(), &self.there)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counts.give_back(self.row);
    }
}

#[cfg(test)]
mod tests;
