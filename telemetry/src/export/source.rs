//! What the export thread reads records through, and how a record is held by several owners.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::ledger::Account;
use crate::record::Outboxes;
use crate::record::model::{Entry, Finished, Keep, Wide};

/// Where finished records come from: the workers' outboxes.
///
/// The export thread asks it every [`super::Config::poll`], or when its descriptor becomes readable,
/// until it has no more. A source is bounded by its owner, who counts what found no room in it.
pub trait Source: Send {
    /// The next finished record; does not wait.
    fn next(&mut self) -> Option<Box<dyn Exportable>>;

    /// Readable when the source must not be left alone until the next turn.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Called before the thread sleeps: the descriptor is wanted.
    fn arm(&self) {}

    /// Called after: it is not, and may be cleared.
    fn disarm(&self) {}
}

/// A kept record, or a segment of one: what the export needs to know of it.
///
/// Implemented by the recorder's own type; a trait, so that this module reads no buffer format.
pub trait Exportable: Any + Send + Sync {
    fn wide(&self) -> &Wide;
    fn keep(&self) -> Keep;
    /// 0 for the first segment of a long request.
    fn segment(&self) -> u16;
    /// Whether the request goes on after this segment.
    fn open(&self) -> bool;
    /// Entries, and their bytes, that found no room.
    fn cut(&self) -> (u32, u32);
    /// Bytes of memory this record holds, itself included.
    fn bytes(&self) -> usize;
    /// Visits the entries in the order they were written.
    fn visit(&self, each: &mut dyn FnMut(Entry<'_>));
}

/// A record with its size, shared by the queue and the ring.
///
/// Its bytes are booked once: on the queue's account while the queue has it, on the ring's after.
pub(super) struct Kept {
    pub(super) record: Box<dyn Exportable>,
    pub(super) bytes: usize,
    /// Spans it becomes, the request's own included.
    pub(super) spans: usize,
    holders: AtomicU8,
}

/// Whether this segment sends `entry` as a span. One that is still open comes again, under the same
/// id, with the segment in which it ends.
pub(super) fn is_span(record: &dyn Exportable, entry: &Entry<'_>) -> bool {
    matches!(entry, Entry::Span(span) if !record.open() || span.end.is_some())
}

impl Source for Outboxes {
    fn next(&mut self) -> Option<Box<dyn Exportable>> {
        self.pop().map(|finished| Box::new(finished) as Box<dyn Exportable>)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Self::descriptor(self)
    }

    fn arm(&self) {
        Self::arm(self);
    }

    fn disarm(&self) {
        Self::disarm(self);
    }
}

impl Exportable for Finished {
    fn wide(&self) -> &Wide {
        &self.wide
    }

    fn keep(&self) -> Keep {
        self.keep
    }

    fn segment(&self) -> u16 {
        self.segment
    }

    fn open(&self) -> bool {
        self.open
    }

    fn cut(&self) -> (u32, u32) {
        (self.entries_cut, self.bytes_cut)
    }

    fn bytes(&self) -> usize {
        Self::bytes(self)
    }

    fn visit(&self, each: &mut dyn FnMut(Entry<'_>)) {
        self.entries().into_iter().for_each(each);
    }
}

const QUEUE: u8 = 1;
const RING: u8 = 2;

// === impl Kept ===

impl Kept {
    pub(super) fn new(record: Box<dyn Exportable>) -> Arc<Self> {
        let mut spans = 1;
        record.visit(&mut |entry| spans += usize::from(is_span(&*record, &entry)));
        // The two counters in front of an `Arc`'s value are held too.
        let bytes = record.bytes() + size_of::<Self>() + 2 * size_of::<usize>();
        Arc::new(Self { record, bytes, spans, holders: AtomicU8::new(0) })
    }

    pub(super) fn enter_queue(&self, queue: &Account) {
        self.holders.fetch_or(QUEUE, Relaxed);
        queue.take(self.bytes);
    }

    pub(super) fn leave_queue(&self, queue: &Account, ring: &Account) {
        let before = self.holders.fetch_and(!QUEUE, Relaxed);
        queue.give_back(self.bytes);
        if before & RING != 0 {
            ring.take(self.bytes);
        }
    }

    pub(super) fn enter_ring(&self, ring: &Account) {
        let before = self.holders.fetch_or(RING, Relaxed);
        if before & QUEUE == 0 {
            ring.take(self.bytes);
        }
    }

    pub(super) fn leave_ring(&self, ring: &Account) {
        let before = self.holders.fetch_and(!RING, Relaxed);
        if before & QUEUE == 0 {
            ring.give_back(self.bytes);
        }
    }
}
