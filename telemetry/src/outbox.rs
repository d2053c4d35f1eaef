//! What a worker hands to the telemetry thread: bounded, lossy, and never waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::ledger::Account;
use crate::metrics::Counter;
use crate::record::{Finished, Shared, Wide};

/// The two queues of one worker: kept records, bounded in bytes over all workers, and ended requests
/// for the access log, bounded in count. Both lose their oldest when they are full, and count it.
pub(crate) struct Outbox {
    finished: ArrayQueue<Box<Finished>>,
    bytes: Arc<Bytes>,
    /// Made when the access log is first wanted: it is a third of a mebibyte.
    wides: OnceLock<ArrayQueue<Wide>>,
    wides_max: usize,
    account: Account,
    lost: Counter,
    wides_lost: Counter,
    wakes: Arc<Wakes>,
}

/// What all outboxes hold together: a share per worker would be too small for one verbose record on a
/// machine with many cores. Only kept records touch it.
pub(crate) struct Bytes {
    held: AtomicUsize,
    max: usize,
}

/// One for each queue: two readers of one descriptor would take each other's wake-ups.
pub(crate) struct Wakes {
    pub(crate) finished: Wake,
    pub(crate) wides: Wake,
}

/// Wakes a queue's reader before its own tick, when an outbox fills faster than that.
pub(crate) struct Wake {
    /// Without one (no descriptor was left) the thread works at its tick.
    fd: Option<OwnedFd>,
    armed: AtomicBool,
}

/// The reading end of every worker's outbox. Each of the two queues has one reader at most, on a
/// thread of its own.
pub struct Outboxes {
    shared: Arc<Shared>,
    /// Which queue it waits for.
    wake: fn(&Wakes) -> &Wake,
    /// Where the last record came from, so that no worker's outbox starves the others.
    turn: usize,
}

// === impl Outbox ===

impl Outbox {
    pub(crate) fn new(
        bytes: Arc<Bytes>,
        wides_max: usize,
        account: Account,
        lost: Counter,
        wides_lost: Counter,
        wakes: Arc<Wakes>,
    ) -> Self {
        // A record takes about a kibibyte, so the bytes are the bound that acts.
        let slots = (bytes.max / 512).clamp(16, 8192);
        Self {
            finished: ArrayQueue::new(slots),
            bytes,
            wides: OnceLock::new(),
            wides_max,
            account,
            lost,
            wides_lost,
            wakes,
        }
    }

    /// Queues a record; this worker's oldest go when there is no room.
    pub(crate) fn push(&self, finished: Box<Finished>) {
        let bytes = finished.bytes();
        while !self.bytes.take(bytes) {
            let oldest = self.pop();
            self.lost.increment();
            self.account.drop_one();
            if oldest.is_none() {
                return; // the others hold everything: this one is lost itself
            }
        }
        self.account.take(bytes);
        if let Some(oldest) = self.finished.force_push(finished) {
            self.release(&oldest);
            self.lost.increment();
            self.account.drop_one();
        }
        let fills = self.finished.len() > self.finished.capacity() / 4;
        if fills || self.bytes.held.load(Relaxed) > self.bytes.max / 4 {
            self.wakes.finished.wake();
        }
    }

    pub(crate) fn pop(&self) -> Option<Box<Finished>> {
        let finished = self.finished.pop()?;
        self.release(&finished);
        Some(finished)
    }

    /// Queues the wide event of an ended request for the access log.
    pub(crate) fn push_wide(&self, wide: Wide) {
        let wides = self.wides.get_or_init(|| {
            self.account.take(self.wides_max * size_of::<Wide>());
            ArrayQueue::new(self.wides_max)
        });
        if wides.force_push(wide).is_some() {
            self.wides_lost.increment();
        }
        if wides.len() > wides.capacity() / 4 {
            self.wakes.wides.wake();
        }
    }

    pub(crate) fn pop_wide(&self) -> Option<Wide> {
        self.wides.get()?.pop()
    }

    fn release(&self, finished: &Finished) {
        let bytes = finished.bytes();
        self.bytes.held.fetch_sub(bytes, Relaxed);
        self.account.give_back(bytes);
    }
}

// === impl Bytes ===

impl Bytes {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), max })
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |held| Some(held + bytes).filter(|held| *held <= self.max);
        self.held.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

// === impl Wakes, Wake ===

impl Wakes {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { finished: Wake::new(), wides: Wake::new() })
    }
}

impl Wake {
    fn new() -> Self {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Self { fd: rustix::event::eventfd(0, flags).ok(), armed: AtomicBool::new(false) }
    }

    /// One system call per sleep of the reader, however many records there are.
    fn wake(&self) {
        if self.armed.load(Relaxed)
            && self.armed.swap(false, Relaxed)
            && let Some(fd) = &self.fd
        {
            // The counter of an eventfd that nobody reads stands at one: there is nothing to fail.
            let _written = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    fn disarm(&self) {
        self.armed.store(false, Relaxed);
        if let Some(fd) = &self.fd {
            let _read = rustix::io::read(fd, &mut [0; 8]);
        }
    }
}

// === impl Outboxes ===

impl Outboxes {
    pub(crate) fn new(shared: Arc<Shared>, wake: fn(&Wakes) -> &Wake) -> Self {
        Self { shared, wake, turn: 0 }
    }

    /// The next kept record of any worker.
    pub fn pop(&mut self) -> Option<Finished> {
        self.in_turn(Outbox::pop).map(|finished| *finished)
    }

    /// The next ended request of any worker; only while the access log is wanted.
    pub fn pop_wide(&mut self) -> Option<Wide> {
        self.in_turn(Outbox::pop_wide)
    }

    /// Sleeps until an outbox is a quarter full, at most `at_most`: the reader's tick. Blocks the
    /// thread; a reader with a runtime waits for the descriptor instead, between [`Self::arm`] and
    /// [`Self::disarm`].
    pub fn wait(&self, at_most: Duration) {
        let timeout = Timespec::try_from(at_most).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        self.arm();
        match self.wake().fd.as_ref() {
            Some(fd) => {
                let mut ready = [PollFd::new(fd, PollFlags::IN)];
                // Interrupted or not: the reader looks at every outbox anyway.
                let _woken = rustix::event::poll(&mut ready, Some(&timeout));
            }
            None => std::thread::sleep(at_most),
        }
        self.disarm();
    }

    /// Asks for a wake-up on the descriptor.
    pub fn arm(&self) {
        self.wake().armed.store(true, Relaxed);
    }

    /// Takes the wish back and clears the descriptor.
    pub fn disarm(&self) {
        self.wake().disarm();
    }

    /// Readable once an outbox is a quarter full; absent when the system had no descriptor left.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.wake().fd.as_ref().map(AsFd::as_fd)
    }

    fn wake(&self) -> &Wake {
        (self.wake)(self.shared.wakes())
    }

    fn in_turn<T>(&mut self, pop: impl Fn(&Outbox) -> Option<T>) -> Option<T> {
        let outboxes = self.shared.worker_outboxes();
        let turn = self.turn;
        (0..outboxes.len()).find_map(|more| {
            let at = (turn + more) % outboxes.len();
            let popped = pop(&outboxes[at])?;
            self.turn = at + 1;
            Some(popped)
        })
    }
}
