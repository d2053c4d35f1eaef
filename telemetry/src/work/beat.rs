//! Notes that work is polled, for who polls it without holding its line.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::{Desk, Slot};

/// A way to one use of a line: what comes after the use is over is noted nowhere. Every connection
/// keeps one, so it is small.
pub struct Beat {
    desk: Desk,
    /// [`NOWHERE`] when the lane was full.
    cell: u32,
    /// Which use of it.
    version: u32,
}

/// No lane is so long.
const NOWHERE: u32 = u32::MAX;

pin_project! {
    /// Work whose polls are noted.
    pub struct Noted<F> {
        beat: Beat,
        #[pin]
        work: F,
    }
}

// === impl Slot ===

impl Slot {
    /// A way to note polls that does not keep the line.
    pub fn beat(&self) -> Beat {
        let version = self.cell().map_or(0, |(cell, _)| cell.version());
        Beat { desk: self.desk.clone(), cell: self.cell.unwrap_or(NOWHERE), version }
    }
}

// === impl Beat ===

impl Beat {
    /// The same work; each time it is polled, its line says so.
    pub fn note<F: Future>(self, work: F) -> Noted<F> {
        Noted { beat: self, work }
    }

    fn polled(&self) {
        let Self { desk, cell, version } = self;
        if let Some((cell, now)) = desk.cell(*cell)
            && cell.version() == *version
        {
            cell.polled(now);
        }
    }
}

// === impl Noted ===

impl<F: Future> Future for Noted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.beat.polled();
        this.work.poll(context)
    }
}
