//! One line of the board as its worker writes it and anybody reads it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use Ordering::{Acquire, Relaxed, Release};

use super::{Kind, State};

/// One cache line: what its worker writes nobody else writes, and no two share one.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Cell {
    /// Odd while the line is being taken or given back; also tells its uses apart.
    version: AtomicU32,
    /// Kind in the upper byte, state in the lower; 0 when free.
    what: AtomicU32,
    began: AtomicU32,
    since: AtomicU32,
    polled: AtomicU32,
    /// One more than the app's number; 0 while it is not known.
    app: AtomicU32,
    trace: [AtomicU64; 2],
}

/// A line of the board, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub worker: usize,
    pub kind: Kind,
    pub state: State,
    /// Since it began.
    pub age: Duration,
    /// Since it is in this state.
    pub waiting: Duration,
    /// Since it was last polled.
    pub quiet: Duration,
    /// As the writer numbers apps.
    pub app: Option<u32>,
    /// 0 when it has no record.
    pub trace: u128,
}

// === impl Cell ===

impl Cell {
    pub(super) fn open(&self, kind: Kind, state: State, now: u32) {
        self.change(|| {
            self.what.store(what(kind, state), Relaxed);
            self.began.store(now, Relaxed);
            self.since.store(now, Relaxed);
            self.polled.store(now, Relaxed);
            self.app.store(0, Relaxed);
            self.trace.iter().for_each(|half| half.store(0, Relaxed));
        });
    }

    pub(super) fn close(&self) {
        self.change(|| self.what.store(0, Relaxed));
    }

    /// State and its time are not written as one: a reader may see the old state as just begun,
    /// which harms nobody.
    pub(super) fn enter(&self, state: State, now: u32) {
        let kind = self.what.load(Relaxed) & !0xff;
        self.since.store(now, Relaxed);
        self.polled.store(now, Relaxed);
        self.what.store(kind | state as u32, Relaxed);
    }

    /// Which use of the line this is, for its own worker.
    pub(super) fn version(&self) -> u32 {
        self.version.load(Relaxed)
    }

    pub(super) fn polled(&self, now: u32) {
        self.polled.store(now, Relaxed);
    }

    pub(super) fn belongs_to(&self, app: u32) {
        self.app.store(app.saturating_add(1), Relaxed);
    }

    pub(super) fn traced(&self, trace: u128) {
        self.trace[0].store((trace >> 64) as u64, Relaxed);
        self.trace[1].store(trace as u64, Relaxed);
    }

    /// The line, if it is in use and was not taken by somebody else while it was read.
    pub(super) fn read(&self, worker: usize, now: u32) -> Option<Line> {
        let before = self.version.load(Acquire);
        if before & 1 == 1 {
            return None; // coming or going
        }
        let what = self.what.load(Relaxed);
        let [began, since, polled] =
            [&self.began, &self.since, &self.polled].map(|time| time.load(Relaxed));
        let app = self.app.load(Relaxed).checked_sub(1);
        let trace =
            u128::from(self.trace[0].load(Relaxed)) << 64 | u128::from(self.trace[1].load(Relaxed));
        fence(Acquire);
        if self.version.load(Relaxed) != before {
            return None;
        }
        let kind = match what >> 8 {
            1 => Kind::Connection,
            2 => Kind::Request,
            _ => return None,
        };
        let state = State::from_number(what as u8)?;
        let ago = |then: u32| Duration::from_millis(u64::from(now.saturating_sub(then)));
        let (age, waiting, quiet) = (ago(began), ago(since), ago(polled));
        Some(Line { worker, kind, state, age, waiting, quiet, app, trace })
    }

    /// The writer's half of a sequence lock. There is one writer, so no compare is needed.
    fn change(&self, write: impl FnOnce()) {
        let version = self.version.load(Relaxed);
        self.version.store(version.wrapping_add(1), Relaxed);
        fence(Release);
        write();
        self.version.store(version.wrapping_add(2), Release);
    }
}

fn what(kind: Kind, state: State) -> u32 {
    u32::from(kind as u8) << 8 | u32::from(state as u8)
}
