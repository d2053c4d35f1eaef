//! What a second attempt needs: the request body once more, and the right to try.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use telemetry::event;
use telemetry::record::Record;
use tokio::time::Instant;

use crate::body::Body;
use crate::error::{Code, Failure};

/// A request body that can be sent again while what was sent of it is small.
///
/// Holds at most `bytes_max`; a body that turns out to be larger is not held at all any more.
pub struct Replay {
    kind: Kind,
}

enum Kind {
    Empty,
    Full(Bytes),
    Stream(Rc<RefCell<Tape>>),
}

struct Tape {
    source: Body,
    /// What attempts have taken from the source: a copy, so that small frames do not keep the large
    /// buffers alive that they were read into.
    kept: BytesMut,
    trailers: Option<HeaderMap>,
    bytes_max: usize,
    /// Where is noted how much there was.
    record: Record,
    /// The source gave more than is kept, or failed: it cannot be sent again.
    is_lost: bool,
    has_ended: bool,
    /// Only the last attempt may read.
    attempt: u64,
}

/// The body of one attempt.
struct Attempt {
    tape: Rc<RefCell<Tape>>,
    number: u64,
    /// How much of `kept` it has given out.
    position: usize,
    gave_trailers: bool,
}

/// How many retries there may be: a share of the requests, above a floor.
///
/// Counts in seconds over the last ten, so that a burst of failures cannot double the load.
#[derive(Debug)]
pub struct RetryBudget {
    percent: u32,
    floor_per_second: u32,
    start: Instant,
    /// The second since `start` that the newest counts belong to.
    second: u64,
    requests: [u32; WINDOW],
    retries: [u32; WINDOW],
}

const WINDOW: usize = 10;

// === impl Replay ===

impl Replay {
    pub fn new(body: Body, bytes_max: usize, record: Record) -> Self {
        let kind = match body {
            Body::Full(Some(bytes)) if bytes.len() <= bytes_max => Kind::Full(bytes),
            body if body.is_end_stream() => Kind::Empty,
            source => Kind::Stream(Rc::new(RefCell::new(Tape::new(source, bytes_max, record)))),
        };
        Self { kind }
    }

    /// The body for the next attempt; `None` when it cannot be sent again. The attempt before may
    /// not be read any further.
    pub fn attempt(&self) -> Option<Body> {
        let tape = match &self.kind {
            Kind::Empty => return Some(Body::Empty),
            Kind::Full(bytes) => return Some(Body::Full(Some(bytes.clone()))),
            Kind::Stream(tape) => tape,
        };
        let number = {
            let mut tape = tape.borrow_mut();
            if tape.is_lost {
                return None;
            }
            tape.attempt += 1;
            tape.attempt
        };
        let tape = tape.clone();
        Some(Body::boxed(Attempt { tape, number, position: 0, gave_trailers: false }))
    }

    /// Would [`attempt`](Self::attempt) give a body?
    pub fn is_possible(&self) -> bool {
        match &self.kind {
            Kind::Empty | Kind::Full(_) => true,
            Kind::Stream(tape) => !tape.borrow().is_lost,
        }
    }
}

// === impl Tape ===

impl Tape {
    fn new(source: Body, bytes_max: usize, record: Record) -> Self {
        Self {
            source,
            record,
            kept: BytesMut::new(),
            trailers: None,
            bytes_max,
            is_lost: false,
            has_ended: false,
            attempt: 0,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.is_lost {
            return;
        }
        // What cannot fit in the end need not be copied in the beginning.
        let rest = usize::try_from(self.source.size_hint().lower()).unwrap_or(usize::MAX);
        let total = self.kept.len().saturating_add(bytes.len()).saturating_add(rest);
        if total > self.bytes_max {
            self.is_lost = true;
            self.kept = BytesMut::new();
        } else {
            self.kept.extend_from_slice(bytes);
        }
    }
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let tape = &mut *this.tape.borrow_mut();
        if tape.attempt != this.number {
            let failure = Failure::new(Code::PX01).because("another attempt reads the body");
            return Poll::Ready(Some(Err(failure)));
        }
        if let Some(again) = tape.kept.get(this.position..).filter(|kept| !kept.is_empty()) {
            let again = Bytes::copy_from_slice(again);
            this.position = tape.kept.len();
            return Poll::Ready(Some(Ok(Frame::data(again))));
        }
        if tape.has_ended {
            let trailers = tape.trailers.clone().filter(|_| !this.gave_trailers);
            this.gave_trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let item = ready!(Pin::new(&mut tape.source).poll_frame(cx));
        match &item {
            Some(Ok(frame)) => {
                if let Some(bytes) = frame.data_ref() {
                    let read = bytes.len() as u64;
                    tape.record.wide(|wide| wide.request_bytes += read);
                    if tape.record.is_verbose() {
                        event!(tape.record, TRACE, "request chunk", bytes = read);
                    }
                    tape.keep(bytes);
                    this.position = tape.kept.len();
                }
                if let Some(trailers) = frame.trailers_ref() {
                    tape.trailers = Some(trailers.clone());
                    tape.has_ended = true;
                    this.gave_trailers = true;
                }
            }
            Some(Err(_)) => tape.is_lost = true,
            None => tape.has_ended = true,
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        let tape = self.tape.borrow();
        let has_ended = tape.has_ended || tape.source.is_end_stream();
        let gave_all = tape.trailers.is_none() || self.gave_trailers;
        has_ended && gave_all && self.position >= tape.kept.len()
    }

    fn size_hint(&self) -> SizeHint {
        let tape = self.tape.borrow();
        let again = tape.kept.len().saturating_sub(self.position) as u64;
        let mut hint = tape.source.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(again));
        }
        hint.set_lower(hint.lower().saturating_add(again));
        hint
    }
}

// === impl RetryBudget ===

impl RetryBudget {
    /// Retries up to `percent` of the requests, and `floor_per_second` whatever the requests.
    pub fn new(percent: u32, floor_per_second: u32, now: Instant) -> Self {
        let (requests, retries) = ([0; WINDOW], [0; WINDOW]);
        Self { percent, floor_per_second, start: now, second: 0, requests, retries }
    }

    /// A request came.
    pub fn deposit(&mut self, now: Instant) {
        let slot = self.advance(now);
        self.requests[slot] = self.requests[slot].saturating_add(1);
    }

    /// Takes the right to one retry, if there is one.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let slot = self.advance(now);
        let sum = |counts: &[u32]| counts.iter().map(|count| u64::from(*count)).sum::<u64>();
        let share = sum(&self.requests) * u64::from(self.percent) / 100;
        let floor = u64::from(self.floor_per_second) * WINDOW as u64;
        let is_allowed = sum(&self.retries) < share + floor;
        if is_allowed {
            self.retries[slot] += 1;
        }
        is_allowed
    }

    /// The slot of `now`, with what is older than the window forgotten.
    fn advance(&mut self, now: Instant) -> usize {
        let second = (now.saturating_duration_since(self.start).as_nanos()
            / Duration::from_secs(1).as_nanos()) as u64;
        let passed = second.saturating_sub(self.second).min(WINDOW as u64);
        for old in 1..=passed {
            let slot = slot_of(self.second + old);
            self.requests[slot] = 0;
            self.retries[slot] = 0;
        }
        if second > self.second + passed {
            self.requests = [0; WINDOW];
            self.retries = [0; WINDOW];
        }
        self.second = self.second.max(second);
        slot_of(self.second)
    }
}

fn slot_of(second: u64) -> usize {
    (second % WINDOW as u64) as usize
}

#[cfg(test)]
mod tests;
