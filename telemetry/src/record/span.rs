//! Stretches of work inside a request: guards that write a span when they begin, and again in the
//! same place when they end.
//!
//! What a guard knows is enough to write its span anew, which it does when the entry has been taken
//! away in the meantime by a cut.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::handle::Record;
use super::log::{CLOSED, FAILED, Log, Place, Times};
use super::model::Value;
use super::site::Site;
use super::slot::Slot;

/// A span until it is dropped, for work that does not wait.
pub struct SpanGuard<'a> {
    record: &'a Record,
    state: State,
}

/// A span until it is dropped; busy while it is entered.
pub struct OpenSpan {
    record: Record,
    state: State,
}

/// While it lives the span is busy, and what happens belongs to it.
pub struct Busy<'a> {
    span: &'a mut OpenSpan,
    since: u64,
    /// Whether the span ends with this poll: one reading of the clock is enough for both.
    last: bool,
}

pin_project_lite::pin_project! {
    /// A future with a span around it.
    pub struct Spanned<F> {
        #[pin]
        future: F,
        span: OpenSpan,
    }
}

/// What is known of a span, at hand where it is polled.
struct State {
    site: &'static Site,
    /// 0 when the span found no room, or has ended.
    index: u32,
    parent: u32,
    flags: u8,
    /// Whether its start is known, which for a future is its first poll.
    started: bool,
    place: Place,
    times: Times,
}

/// Where a span was written. Small enough to be returned in registers: returning and moving what was
/// just written field by field stalls the processor, some 10 ns per span.
#[derive(Clone, Copy, Default)]
struct Written {
    index: u32,
    parent: u32,
    place: Place,
}

// === impl State ===

impl State {
    #[inline]
    fn of(site: &'static Site, written: Written) -> Self {
        let Written { index, parent, place } = written;
        Self { site, index, parent, flags: 0, started: false, place, times: Times::default() }
    }

    fn started_at(self, start: u64) -> Self {
        Self { started: true, times: Times { start, ..self.times }, ..self }
    }

    fn is_open(&self) -> bool {
        self.index != 0
    }

    /// Makes it the current span; when that was.
    fn enter(&mut self, slot: &Slot) -> u64 {
        let now = slot.nanos();
        if !self.started {
            self.started = true;
            self.times.start = now;
        }
        if let Ok(mut log) = slot.log.try_borrow_mut() {
            log.enter(self.index, self.place);
        }
        now
    }

    /// One poll ended, and the span goes on.
    fn leave(&mut self, slot: &Slot, since: u64) {
        self.polled(since, slot.nanos());
        if let Ok(mut log) = slot.log.try_borrow_mut() {
            log.leave(self.index);
            log.update(self.place, self.flags, self.times);
        }
    }

    /// The last poll ended, and the span with it.
    fn finish(&mut self, slot: &Slot, since: u64) {
        let now = slot.nanos();
        self.polled(since, now);
        self.close(slot, now);
    }

    fn polled(&mut self, since: u64, now: u64) {
        self.times.polls = self.times.polls.saturating_add(1);
        self.times.busy = self.times.busy.saturating_add(now.saturating_sub(since));
    }

    fn close(&mut self, slot: &Slot, now: u64) {
        self.times.end = now;
        self.flags |= CLOSED;
        let index = std::mem::take(&mut self.index);
        let Ok(mut log) = slot.log.try_borrow_mut() else { return };
        log.leave(index);
        if !log.update(self.place, self.flags, self.times) {
            // A cut took the entry. If there is no room now either, that is counted.
            let _anew = log.span(self.site, index, self.parent, self.flags, self.times, &[]);
        }
    }
}

/// Writes a span that opens; zeros when there is no room.
fn write(log: &mut Log, site: &'static Site, start: u64, values: &[Value<'_>]) -> Written {
    let (index, parent) = (log.next_span(), log.current());
    let times = Times { start, ..Times::default() };
    let place = log.span(site, index, parent, 0, times, values);
    place.map(|place| Written { index, parent, place }).unwrap_or_default()
}

/// Writes a span that begins when it is first entered, which saves a reading of the clock.
fn prepare(slot: &Slot, site: &'static Site, values: &[Value<'_>]) -> Written {
    slot.write_untimed(|log, earlier| write(log, site, earlier, values))
}

// === impl SpanGuard ===

impl<'a> SpanGuard<'a> {
    pub(super) fn new(record: &'a Record, site: &'static Site, values: &[Value<'_>]) -> Self {
        let slot = &*record.slot;
        let (written, start) = slot.write(|log, now| {
            let written = write(log, site, now, values);
            if written.index != 0 {
                log.enter(written.index, written.place);
            }
            (written, now)
        });
        Self { record, state: State::of(site, written).started_at(start) }
    }

    /// The work did not succeed.
    pub fn fail(&mut self) {
        self.state.flags |= FAILED;
    }
}

impl Drop for SpanGuard<'_> {
    fn drop(&mut self) {
        if self.state.is_open() {
            let since = self.state.times.start;
            self.state.finish(&self.record.slot, since);
        }
    }
}

// === impl OpenSpan ===

impl OpenSpan {
    pub(super) fn new(record: Record, site: &'static Site, values: &[Value<'_>]) -> Self {
        let (written, start) = record.slot.write(|log, now| (write(log, site, now, values), now));
        Self { record, state: State::of(site, written).started_at(start) }
    }

    /// The span is busy until the guard is dropped.
    pub fn enter(&mut self) -> Busy<'_> {
        let since = if self.state.is_open() { self.state.enter(&self.record.slot) } else { 0 };
        Busy { span: self, since, last: false }
    }

    /// The work did not succeed.
    pub fn fail(&mut self) {
        self.state.flags |= FAILED;
    }

    pub fn record(&self) -> &Record {
        &self.record
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if self.state.is_open() {
            let slot = &*self.record.slot;
            self.state.close(slot, slot.nanos());
        }
    }
}

// === impl Busy ===

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let OpenSpan { record, state } = &mut *self.span;
        if state.is_open() {
            if record.is_verbose() {
                poll_event(record, self.since, self.last);
            }
            if self.last {
                state.finish(&record.slot, self.since);
            } else {
                state.leave(&record.slot, self.since);
            }
        }
    }
}

/// One poll of a verbose request, in the span that was polled.
#[cold]
fn poll_event(record: &Record, since: u64, last: bool) {
    let busy_ns = record.slot.nanos().saturating_sub(since);
    crate::event!(record, TRACE, "polled", busy_ns = busy_ns, last = last);
}

// === impl Spanned ===

impl<F> Spanned<F> {
    pub(super) fn new(
        record: Record,
        site: &'static Site,
        values: &[Value<'_>],
        future: F,
    ) -> Self {
        let state = State::of(site, prepare(&record.slot, site, values));
        Self { future, span: OpenSpan { record, state } }
    }
}

impl<F: Future> Future for Spanned<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut busy = this.span.enter();
        let poll = this.future.poll(context);
        busy.last = poll.is_ready();
        poll
    }
}
