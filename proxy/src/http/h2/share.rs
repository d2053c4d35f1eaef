//! What the streams of one connection may hold of answers that have not been sent, together.
//!
//! An answer waits in two places: in the stream's task, when the client's window is closed, and in h2,
//! when the connection takes no more. Both are counted here, so that a client with a hundred streams
//! cannot have a hundred times what one needs.
//!
//! The share is divided by dynamic thresholds (Choudhury and Hahne, "Dynamic queue length thresholds
//! for shared-memory packet switches", 1998): each stream may hold a part of what is left. Few streams
//! get much each, many get little, all the same, and what is free always has room for who comes next.
//! A stream waits for its own bytes only, never for another's, and one that holds nothing may always
//! take [`LEAST_BYTES`]: streams that a client does not read cannot stop the others.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

/// Of one connection.
pub(super) struct Share {
    bytes_max: usize,
    stream_bytes_max: usize,
    held: Cell<usize>,
}

/// What one stream holds of it.
pub(super) struct Holder {
    share: Rc<Share>,
    held: Cell<usize>,
    sent: Cell<u64>,
    /// Who waits for room.
    waiting: Cell<Option<Waker>>,
}

/// Bytes of an answer that count until they are gone.
pub(super) struct Chunk {
    bytes: Bytes,
    counted: usize,
    holder: Rc<Holder>,
}

/// What a stream that holds nothing may take whatever the others hold.
const LEAST_BYTES: usize = 2 * 1024;

/// One part in this of what is left may be held by one stream.
const PARTS: usize = 2;

// === impl Share ===

impl Share {
    pub(super) fn new(bytes_max: usize, stream_bytes_max: usize) -> Rc<Self> {
        Rc::new(Self { bytes_max, stream_bytes_max, held: Cell::default() })
    }

    /// How much the first read of a stream may bring.
    pub(super) fn first_room(&self) -> usize {
        self.threshold().max(LEAST_BYTES)
    }

    fn threshold(&self) -> usize {
        (self.bytes_max.saturating_sub(self.held.get()) / PARTS).min(self.stream_bytes_max)
    }
}

// === impl Holder ===

impl Holder {
    pub(super) fn new(share: &Rc<Share>) -> Rc<Self> {
        Rc::new(Self {
            share: share.clone(),
            held: Cell::default(),
            sent: Cell::default(),
            waiting: Cell::default(),
        })
    }

    /// How much may be taken now: something at once while nothing is held, or as soon as enough of it
    /// has been sent.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        let held = self.held.get();
        if held == 0 {
            return Poll::Ready(self.share.first_room());
        }
        match self.share.threshold().checked_sub(held) {
            Some(room) if room >= LEAST_BYTES => Poll::Ready(room),
            Some(_) | None => {
                self.waiting.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// Bytes that the connection has taken so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// `bytes`, held from now on.
    pub(super) fn hold(self: &Rc<Self>, bytes: Bytes) -> Chunk {
        let counted = bytes.len();
        self.held.set(self.held.get() + counted);
        self.share.held.set(self.share.held.get() + counted);
        Chunk { bytes, counted, holder: self.clone() }
    }

    fn give_back(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
        self.share.held.set(self.share.held.get() - bytes);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

// === impl Chunk ===

impl Chunk {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn split_to(&mut self, at: usize) -> Self {
        let bytes = self.bytes.split_to(at);
        self.counted -= at;
        Self { bytes, counted: at, holder: self.holder.clone() }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        // It is still held: a block of memory goes as a whole.
        self.bytes.advance(bytes);
        self.holder.sent.set(self.holder.sent.get() + bytes as u64);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.counted > 0 {
            // First the memory, then the right to it.
            self.bytes = Bytes::new();
            self.holder.give_back(self.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::Wake;

    use super::*;

    const KIB: usize = 1024;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn room(holder: &Holder) -> Option<usize> {
        match holder.poll_room(&Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => Some(room),
            Poll::Pending => None,
        }
    }

    /// As much as it may, read by read.
    fn fill(holder: &Rc<Holder>) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        while let Some(room) = room(holder) {
            chunks.push(holder.hold(vec![0; room].into()));
        }
        chunks
    }

    fn share() -> Rc<Share> {
        Share::new(256 * KIB, 64 * KIB)
    }

    #[test]
    fn a_hundred_streams_that_nobody_reads_hold_little_more_than_the_share() {
        let share = share();
        let chunks: Vec<_> = (0..100).flat_map(|_| fill(&Holder::new(&share))).collect();
        assert!(share.held.get() <= 256 * KIB + 100 * LEAST_BYTES, "{}", share.held.get());
        drop(chunks);
        assert_eq!(share.held.get(), 0);
    }

    #[test]
    fn without_a_bound_a_hundred_streams_hold_what_they_like() {
        let share = Share::new(usize::MAX, usize::MAX);
        let holder = Holder::new(&share);
        for _ in 0..100 {
            let room = room(&holder).expect("there is always room");
            assert!(room >= 256 * KIB);
            std::mem::forget(holder.hold(vec![0; 256 * KIB].into()));
        }
    }

    #[test]
    fn a_stream_alone_may_hold_all_that_one_stream_may() {
        let share = share();
        let holder = Holder::new(&share);
        assert_eq!(room(&holder), Some(64 * KIB));
        let _chunk = holder.hold(vec![0; 64 * KIB].into());
        assert_eq!(room(&holder), None);
    }

    #[test]
    fn a_stream_that_holds_nothing_may_always_take_something() {
        let share = share();
        let all = Holder::new(&share);
        let _all = all.hold(vec![0; 2 * 256 * KIB].into());
        let late = Holder::new(&share);
        assert_eq!(room(&late), Some(LEAST_BYTES));
        let chunk = late.hold(vec![0; LEAST_BYTES].into());
        assert_eq!(room(&late), None);
        drop(chunk);
        assert_eq!(room(&late), Some(LEAST_BYTES));
    }

    #[test]
    fn who_waits_is_woken_by_its_own_bytes_only_when_they_are_gone_whole() {
        let share = share();
        let holders = [Holder::new(&share), Holder::new(&share)];
        let mut chunks = holders.each_ref().map(fill);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(holders[0].poll_room(&Context::from_waker(&waker)).is_pending());
        chunks[1].clear();
        chunks[0][0].advance(KIB);
        assert_eq!((woken.0.load(SeqCst), holders[0].sent()), (0, KIB as u64));
        let first = chunks[0].remove(0);
        drop(first);
        assert_eq!(woken.0.load(SeqCst), 1);
    }

    #[test]
    fn the_parts_of_a_chunk_count_as_much_as_it_did() {
        let share = share();
        let holder = Holder::new(&share);
        let mut chunk = holder.hold(vec![0; 100].into());
        let part = chunk.split_to(30);
        assert_eq!((part.len(), chunk.len(), share.held.get()), (30, 70, 100));
        drop(chunk);
        assert_eq!(share.held.get(), 30);
        drop(part);
        assert_eq!(share.held.get(), 0);
    }
}
