//! The record of one request, as the data plane holds it.

use std::rc::Rc;
use std::time::Duration;

use super::current::{self, Entered, Scope};
use super::model::{Finished, SpanId, TraceId, Value, Verbosity, Wide};
use super::site::Site;
use super::slot::Slot;
use super::span::{OpenSpan, SpanGuard, Spanned};
use super::{random, traceparent};

/// The record of one request. Cloning shares it; when the last clone is dropped the request has ended,
/// and whether the record is kept is decided then.
pub struct Record {
    pub(super) slot: Rc<Slot>,
}

// === impl Record ===

impl Record {
    /// Notes something in the wide event. Must not use the record inside; what does is left out.
    pub fn wide(&self, note: impl FnOnce(&mut Wide)) {
        let wide = self.slot.wide.try_borrow_mut();
        debug_assert!(wide.is_ok(), "the wide event is noted by one at a time");
        if let Ok(mut wide) = wide {
            note(&mut wide);
        }
    }

    pub fn trace(&self) -> TraceId {
        self.slot.trace.get()
    }

    /// The span of the request on this node.
    pub fn span_id(&self) -> SpanId {
        self.slot.span.get()
    }

    /// The innermost span that is being polled, else the request's.
    pub fn current_span_id(&self) -> SpanId {
        let index = self.slot.log.try_borrow().map_or(0, |log| log.current());
        random::derived(self.span_id(), index)
    }

    /// Whether the next node should keep its part of the trace, whatever comes of it.
    pub fn sampled(&self) -> bool {
        self.slot.sampled.get() || self.slot.verbose_asked.get()
    }

    /// The header for whoever is asked next: the trace, the current span, whether it is sampled.
    pub fn traceparent(&self) -> [u8; traceparent::LEN] {
        traceparent::write(self.trace(), self.current_span_id(), self.sampled())
    }

    /// Since the request began.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.slot.nanos())
    }

    /// Bytes of entries in this segment.
    pub fn bytes(&self) -> usize {
        self.slot.log.try_borrow().map_or(0, |log| log.entries().len())
    }

    /// Writes an event; `values` belong to the site's keys, in order. See [`crate::event!`].
    pub fn event(&self, site: &'static Site, values: &[Value<'_>]) {
        self.slot.write(|log, now| log.event(site, now, values));
    }

    /// What a library said; see [`crate::bridge`].
    pub(crate) fn library_event(
        &self,
        name: &'static str,
        target: &'static str,
        level: tracing::Level,
        fields: &[(&'static str, Value<'_>)],
    ) {
        self.slot.write(|log, now| log.library(name, target, level, now, fields));
    }

    /// Adds a field to the current span.
    pub fn field(&self, key: &'static str, value: Value<'_>) {
        self.slot.write(|log, _| log.field(key, value));
    }

    /// Marks the current span as failed.
    pub fn fail_span(&self) {
        if let Ok(mut log) = self.slot.log.try_borrow_mut() {
            log.fail();
        }
    }

    /// A span until the guard is dropped, for work that does not wait; all of it counts as busy.
    pub fn enter_span(&self, site: &'static Site) -> SpanGuard<'_> {
        self.enter_span_with(site, &[])
    }

    pub fn enter_span_with(&self, site: &'static Site, values: &[Value<'_>]) -> SpanGuard<'_> {
        SpanGuard::new(self, site, values)
    }

    /// A span until it is dropped, of which only what happens between its `enter` and the end of that
    /// guard is busy; for work that is polled by hand, such as a body.
    pub fn open_span(&self, site: &'static Site, values: &[Value<'_>]) -> OpenSpan {
        OpenSpan::new(self.clone(), site, values)
    }

    /// A span around `future` from its first poll on: its polls, and how long it was busy and idle.
    pub fn spanned<F>(&self, site: &'static Site, future: F) -> Spanned<F> {
        self.spanned_with(site, &[], future)
    }

    pub fn spanned_with<F>(
        &self,
        site: &'static Site,
        values: &[Value<'_>],
        future: F,
    ) -> Spanned<F> {
        Spanned::new(self.clone(), site, values, future)
    }

    /// Makes this the thread's current record whenever `future` is polled.
    pub fn scope<F>(&self, future: F) -> Scope<F> {
        current::scope(self.clone(), future)
    }

    /// Makes this the thread's current record until the guard is dropped.
    pub fn enter(&self) -> Entered {
        Entered::new(self.clone())
    }

    pub fn verbosity(&self) -> Verbosity {
        self.slot.verbosity.get()
    }

    pub fn is_verbose(&self) -> bool {
        self.slot.verbosity.get() == Verbosity::Verbose
    }

    /// Writes more from now on, and says how much it came to.
    ///
    /// `Verbose` swaps in a larger buffer, and the record is kept whatever becomes of the request;
    /// when the pool of those is used up it stays at what it has, which is counted.
    pub fn raise(&self, verbosity: Verbosity) -> Verbosity {
        let slot = &*self.slot;
        let worker = &slot.worker;
        if verbosity == Verbosity::Verbose {
            slot.verbose_asked.set(true);
        }
        if verbosity <= slot.verbosity.get() {
            return slot.verbosity.get();
        }
        let Ok(mut log) = slot.log.try_borrow_mut() else { return slot.verbosity.get() };
        if verbosity == Verbosity::Verbose {
            if let Some(buffer) = worker.verbose_buffers.take() {
                if let Some(former) = log.enlarge(buffer) {
                    worker.buffers.give_back(former);
                }
                log.entries_max = log.entries_max.saturating_mul(16);
                slot.has_verbose_buffer.set(true);
                slot.verbosity.set(Verbosity::Verbose);
                return Verbosity::Verbose;
            }
            worker.shared.counters.no_verbose_buffer.increment();
        }
        if slot.verbosity.get() == Verbosity::Wide
            && let Some(buffer) = worker.take_buffer()
        {
            log.buffer = Some(buffer);
            slot.verbosity.set(Verbosity::Normal);
        }
        slot.verbosity.get()
    }

    /// A copy of the record as it stands, for a report about a request that goes on.
    pub fn so_far(&self) -> Finished {
        self.slot.so_far()
    }

    /// Gives the buffer back before a long stream; from now on only the wide event is written.
    ///
    /// If the request would be kept were it to end now, its entries so far are handed on as a segment,
    /// and the end will follow as another. If not they are gone, and counted as cut. A verbose record
    /// keeps its buffer: the stream is what somebody asked to see.
    pub fn release_buffer(&self) {
        self.slot.release_buffer(self.slot.nanos());
    }
}

impl Clone for Record {
    fn clone(&self) -> Self {
        Self { slot: Rc::clone(&self.slot) }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // The worker's list holds the slot as well.
        if Rc::strong_count(&self.slot) == 2 {
            self.slot.end();
        }
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({})", self.trace())
    }
}
