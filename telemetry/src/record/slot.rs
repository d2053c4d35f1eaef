//! One request in flight: its wide event, its entries, and what becomes of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::decide::{Facts, decide, judged};
use super::log::Log;
use super::model::{Finished, Keep, SpanId, TraceId, Verbosity, Wide};
use super::recorder::Worker;

/// One request in flight. Reused; only its place in `live` and the clones of [`super::Record`] hold it, so the
/// record that sees two holders is the last.
pub(super) struct Slot {
    pub(super) worker: Rc<Worker>,
    pub(super) trace: Cell<TraceId>,
    pub(super) span: Cell<SpanId>,
    pub(super) wide: RefCell<Wide>,
    pub(super) log: RefCell<Log>,
    pub(super) verbosity: Cell<Verbosity>,
    /// Whether the buffer is one of the verbose pool.
    pub(super) has_verbose_buffer: Cell<bool>,
    pub(super) verbose_asked: Cell<bool>,
    pub(super) sampled: Cell<bool>,
    pub(super) continued: Cell<bool>,
    /// Why the segments so far were kept; the rest is then kept as well.
    pub(super) kept: Cell<Option<Keep>>,
    pub(super) segment: Cell<u16>,
    pub(super) began: Cell<u64>,
    /// When the latest entry was written, in nanoseconds since the begin.
    pub(super) latest: Cell<u64>,
    /// Nanoseconds since the begin at which the segment ends.
    pub(super) segment_ends: Cell<u64>,
    pub(super) place: Cell<usize>,
}

/// After the head of its answer a request that still goes on gives its buffer back.
const STREAM_AFTER: Duration = Duration::from_secs(1);

// === impl Slot ===

impl Slot {
    pub(super) fn new(worker: &Rc<Worker>) -> Rc<Self> {
        worker.shared.slots.take(size_of::<Self>());
        let wide = Wide::new(TraceId(1), SpanId(1));
        Rc::new(Self {
            worker: Rc::clone(worker),
            trace: Cell::new(wide.trace),
            span: Cell::new(wide.span),
            wide: RefCell::new(wide),
            log: RefCell::default(),
            verbosity: Cell::default(),
            has_verbose_buffer: Cell::default(),
            verbose_asked: Cell::default(),
            sampled: Cell::default(),
            continued: Cell::default(),
            kept: Cell::default(),
            segment: Cell::default(),
            began: Cell::default(),
            latest: Cell::default(),
            segment_ends: Cell::default(),
            place: Cell::default(),
        })
    }

    /// Nanoseconds since the request began.
    pub(super) fn nanos(&self) -> u64 {
        self.since_begin(self.worker.clock.raw())
    }

    pub(super) fn since_begin(&self, raw: u64) -> u64 {
        self.worker.clock.delta_as_nanos(self.began.get(), raw)
    }

    /// Writes into the log, with the time since the begin. Does nothing but count without a buffer.
    pub(super) fn write<T: Default>(&self, write: impl FnOnce(&mut Log, u64) -> T) -> T {
        if self.verbosity.get() != Verbosity::Wide {
            let now = self.nanos();
            self.cut_when_due(now);
            self.latest.set(now);
        }
        self.write_untimed(write)
    }

    /// The same with the time of the latest entry, for what learns its own time later.
    pub(super) fn write_untimed<T: Default>(&self, write: impl FnOnce(&mut Log, u64) -> T) -> T {
        // Taken only while a value is being written, which has nothing to add.
        let Ok(mut log) = self.log.try_borrow_mut() else { return T::default() };
        if self.verbosity.get() == Verbosity::Wide {
            log.cut(1, 0);
            return T::default();
        }
        write(&mut log, self.latest.get())
    }

    /// Hands on the segment so far, when it is long enough, and starts a new one.
    pub(super) fn cut_when_due(&self, now: u64) {
        if now < self.segment_ends.get() {
            return;
        }
        self.segment_ends.set(now.saturating_add(self.worker.segment_after));
        self.cut(now);
    }

    /// Hands on the segment so far when it is worth keeping; its entries are gone either way, and
    /// counted as cut when nobody gets them.
    pub(super) fn cut(&self, now: u64) {
        let (Ok(mut wide), Ok(mut log)) = (self.wide.try_borrow_mut(), self.log.try_borrow_mut())
        else {
            return;
        };
        if !self.hand_on(&mut wide, &log, now, true) {
            let (entries, bytes) = (log.count(), log.entries().len());
            log.cut(entries, bytes);
        }
        log.start_anew();
    }

    /// The last record was dropped.
    pub(super) fn end(self: &Rc<Self>) {
        let now = self.nanos();
        // Nobody else is left who could have borrowed them.
        if let (Ok(mut wide), Ok(log)) = (self.wide.try_borrow_mut(), self.log.try_borrow()) {
            self.hand_on(&mut wide, &log, now, false);
            if self.worker.shared.access_log_wanted() {
                self.worker.outbox().push_wide(wide.take());
            }
            wide.release();
        }
        self.give_buffer_back();
        self.worker.retire(self);
    }

    /// See [`super::Record::release_buffer`].
    pub(super) fn release_buffer(&self, now: u64) {
        if self.verbosity.get() == Verbosity::Normal {
            self.cut(now);
            self.give_buffer_back();
            self.verbosity.set(Verbosity::Wide);
        }
    }

    /// What is left of a request whose answer began long ago is a stream, which has little to say.
    pub(super) fn release_when_streaming(&self, now: u64) {
        let head_after = self.wide.try_borrow().ok().and_then(|wide| wide.head_after);
        let since =
            head_after.map(|head_after| Duration::from_nanos(now).saturating_sub(head_after));
        if since.is_some_and(|since| since >= STREAM_AFTER) {
            self.release_buffer(now);
        }
    }

    pub(super) fn give_buffer_back(&self) {
        let Ok(mut log) = self.log.try_borrow_mut() else { return };
        let Some(buffer) = log.buffer.take() else { return };
        if self.has_verbose_buffer.replace(false) {
            self.worker.verbose_buffers.give_back(buffer);
        } else {
            self.worker.buffers.give_back(buffer);
        }
    }

    /// Copies the record into the outbox, if it is worth keeping; whether it was.
    fn hand_on(&self, wide: &mut Wide, log: &Log, now: u64, open: bool) -> bool {
        wide.lasted = Duration::from_nanos(now);
        wide.verbosity = wide.verbosity.max(self.verbosity.get());
        let Some(keep) = self.decide(wide, open) else { return false };
        let finished = self.copy(wide, log, keep, open);
        self.segment.set(self.segment.get().saturating_add(1));
        self.worker.outbox().push(Box::new(finished));
        true
    }

    pub(super) fn so_far(&self) -> Finished {
        let mut wide = match self.wide.try_borrow() {
            Ok(wide) => wide.clone(),
            Err(_) => Wide::new(self.trace.get(), self.span.get()),
        };
        wide.lasted = Duration::from_nanos(self.nanos());
        let keep = self.kept.get().unwrap_or(Keep::Verbose);
        match self.log.try_borrow() {
            Ok(log) => self.copy(&wide, &log, keep, true),
            Err(_) => self.copy(&wide, &Log::default(), keep, true),
        }
    }

    fn copy(&self, wide: &Wide, log: &Log, keep: Keep, open: bool) -> Finished {
        Finished {
            wide: wide.clone(),
            keep,
            continued: self.continued.get(),
            entries: log.entries().into(),
            entries_cut: log.entries_cut,
            bytes_cut: log.bytes_cut,
            segment: self.segment.get(),
            open,
        }
    }

    /// Why this is kept, if it is and the caps have room.
    fn decide(&self, wide: &Wide, open: bool) -> Option<Keep> {
        let shared = &self.worker.shared;
        let verbose = self.verbose_asked.get();
        if !verbose && !shared.exports_wanted() {
            return None;
        }
        let app = wide.app.as_ref().map(|app| app.as_ptr() as usize);
        let typical = match app {
            Some(app) if !open => {
                let took = judged(wide).as_nanos() as u64;
                self.worker.typical.borrow_mut().observe(app, took)
            }
            _ => None,
        };
        if let Some(kept) = self.kept.get() {
            return Some(kept);
        }
        let facts = Facts {
            verbose,
            sampled: self.sampled.get(),
            near_anomaly: shared.is_near_anomaly(),
            typical,
        };
        let keep = decide(&shared.config, wide, facts)?;
        let uncapped = verbose || self.continued.get();
        if !uncapped && !shared.admit(app) {
            return None;
        }
        shared.counters.kept(keep).increment();
        self.kept.set(Some(keep));
        Some(keep)
    }
}
