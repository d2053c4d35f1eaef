//! One HTTP/1 connection, from its first byte to its last.
//!
//! hyper serves the requests; this driver decides everything around them: when a connection is
//! idle it is *parked* (hyper's buffers go, the stream and its readiness stay) and rebuilt at the
//! next byte, what the screen refused is answered and closed, deadlines are kept, and after a 101 the
//! bytes are handed to the tunnel. In a drain every answer says `connection: close`, and who does not
//! ask is closed at its [`Departure`].
//!
//! Parking is with stock hyper: `graceful_shutdown` on an idle connection makes it ready without
//! touching the socket (the stream that it shuts down is `Observed`, which ignores that), and
//! `into_parts` gives the stream back.

mod io;
mod service;
mod looks;
mod refuse;

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use self::io::{Observed, Watch};
use self::looks::{BodyRate, Looks};
use self::service::Adapter;
use crate::alarm::{Alarm, Deadline, TICK};
use crate::drain::Departure;
use crate::error::{Code, Failure};
use crate::holdings;
use crate::http::RequestService;
use crate::http::screen::{HeadLimits, Screen};
use crate::http::upgrade::{Slot, Switched};
use crate::io::stream::Stream;
use crate::worker::{Phase, Worker};

/// How a connection ended, with whatever is left to do for its owner.
pub enum End {
    Closed,
    /// A 101 was sent: the bytes that follow belong to the tunnel.
    Switched(Box<Handover>),
}

/// A client's stream after its 101.
pub struct Handover {
    pub stream: Stream,
    /// What the client sent behind its request.
    pub early: Bytes,
    pub switched: Switched,
}

/// Serves requests on `stream` with `service` until the client or the node ends it.
///
/// # Errors
///
/// Why the connection was cut; the client has been told where HTTP can say it.
pub async fn serve<S: RequestService>(
    stream: Stream,
    service: S,
    worker: &Worker,
) -> Result<End, Failure> {
    let alarm = worker.alarms.alarm();
    let departure = Departure::default();
    let mut connection = Connection { worker, alarm, departure, idle_until: None, requests: 0 };
    let service = RefCell::new(service);
    let mut stream = stream;
    loop {
        // A new connection starts parked: many are opened in advance and say nothing for a while.
        match connection.park(&stream).await {
            Parked::Readable => {}
            Parked::Over => break,
            Parked::ToGo => {
                // A request that crosses our end must not meet a reset: what was answered before could
                // be lost to it. A client that reads an end here asks again elsewhere.
                drop(tokio::time::timeout(CLOSE_TIMEOUT, stream.shutdown()).await);
                refuse::linger(&stream, CLOSE_TIMEOUT).await;
                return Ok(End::Closed);
            }
        }
        // Boxed, so that a parked connection does not hold the space of an active one.
        match Box::pin(connection.serve_active(stream, &service)).await? {
            Active::Idle(idle) => stream = idle,
            Active::Over(End::Closed) => return Ok(End::Closed),
            Active::Over(end) => return Ok(end),
        }
    }
    // A client that reads nothing cannot hold the close_notify.
    drop(tokio::time::timeout(CLOSE_TIMEOUT, stream.shutdown()).await);
    Ok(End::Closed)
}

/// Longest wait for the last bytes of a connection that is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often an active connection looks at its deadlines.
const LOOK: Duration = Duration::from_secs(1);

/// How long a connection may be parked while memory is short.
const IDLE_WHILE_SHORT: Duration = Duration::from_secs(1);

struct Connection<'w> {
    worker: &'w Worker,
    alarm: Alarm,
    departure: Departure,
    /// When the wait for a next request ends; what is no request does not move it.
    idle_until: Option<Deadline>,
    requests: u64,
}

enum Parked {
    Readable,
    Over,
    /// The node drains, and the client has nothing to ask.
    ToGo,
}

enum Active {
    Idle(Stream),
    Over(End),
}

/// Why the poll loop of an active connection stopped.
enum Stop {
    /// Over: closed by either side, or switched.
    Done,
    Idle,
    /// Refused by the screen or a deadline, with nothing of an answer written.
    Refuse(Code),
    Cut(Code),
}

type HyperConnection<'s, S> = http1::Connection<TokioIo<Observed>, Adapter<'s, S>>;

// === impl Connection ===

impl Connection<'_> {
    /// Waits for the next byte, holding nothing but the stream.
    async fn park(&mut self, stream: &Stream) -> Parked {
        // A TLS handshake may have read the first request along with the client's last message.
        // Afterwards nothing is left in there: hyper's last read was Pending.
        if stream.has_read_ahead() {
            return Parked::Readable;
        }
        let timeouts = &self.worker.edge.config.timeouts;
        let idle = if self.requests == 0 { timeouts.request_head } else { timeouts.h1_idle };
        let deadline = *self.idle_until.get_or_insert_with(|| self.alarm.deadline_in(idle));
        let brief = self.alarm.deadline_in(IDLE_WHILE_SHORT);
        self.alarm.disarm();
        holdings::current().settle();
        poll_fn(|cx| {
            // Readable first: a request that has arrived is served, even in a drain.
            match stream.tcp().poll_read_ready(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Parked::Readable),
                Poll::Ready(Err(_)) => return Poll::Ready(Parked::Over),
                Poll::Pending => {}
            }
            // One that has never asked was opened for a request that may be on its way.
            let departure = self.departure.at(self.worker, &self.alarm);
            let departure = departure.filter(|_| self.requests > 0);
            if departure.is_some_and(|at| self.alarm.is_over(at)) {
                // The runtime may not have heard of bytes that are there already.
                let has_asked = stream.has_bytes();
                return Poll::Ready(if has_asked { Parked::Readable } else { Parked::ToGo });
            }
            let is_short = self.worker.is_short_of_memory();
            let patience = if is_short { deadline.min(brief) } else { deadline };
            if self.alarm.is_over(patience) {
                if patience < deadline {
                    self.worker.metrics.pressure.close.increment();
                }
                return Poll::Ready(Parked::Over);
            }
            self.alarm.arm_at(departure.map_or(patience, |at| at.min(patience)), cx);
            Poll::Pending
        })
        .await
    }

    /// Serves requests until nothing is left to serve.
    async fn serve_active<S: RequestService>(
        &mut self,
        stream: Stream,
        service: &RefCell<S>,
    ) -> Result<Active, Failure> {
        let limits = &self.worker.edge.config.limits;
        let watch = Rc::new(Watch::new(Screen::new(HeadLimits::from(limits))));
        let slot = Slot::default();
        let (mut stream, mut rewind) = (stream, Bytes::new());
        loop {
            let adapter = Adapter { service, watch: watch.clone(), slot: slot.clone() };
            let io = TokioIo::new(Observed::new(stream, rewind, watch.clone()));
            let mut hyper = builder(limits).serve_connection(io, adapter);
            self.alarm.disarm();
            let mut looks = Looks::default();
            let stop = poll_fn(|cx| self.poll_active(&mut hyper, &watch, &mut looks, cx)).await;
            let parts = hyper.into_parts();
            self.requests = self.requests.max(watch.calls.get());
            if watch.called.get() {
                self.idle_until = None;
            }
            let early = parts.read_buf;
            stream = parts.io.into_inner().into_stream();
            match stop {
                Ok(Stop::Idle) if early.is_empty() => return Ok(Active::Idle(stream)),
                Ok(Stop::Idle) => rewind = early,
                Ok(Stop::Refuse(code)) => {
                    let failure = Failure::new(code);
                    refuse::refuse(stream, &failure).await;
                    return Err(failure);
                }
                Ok(Stop::Cut(code)) => return Err(cut(&stream, &watch, Failure::new(code))),
                Err(failure) => return Err(cut(&stream, &watch, failure)),
                Ok(Stop::Done) => {
                    if let Some(switched) = slot.take() {
                        let early = concat(early, watch.refused.take());
                        let handover = Handover { stream, early, switched };
                        return Ok(Active::Over(End::Switched(Box::new(handover))));
                    }
                    close(stream, &watch).await;
                    return Ok(Active::Over(End::Closed));
                }
            }
        }
    }

    fn poll_active<S: RequestService>(
        &self,
        hyper: &mut HyperConnection<'_, S>,
        watch: &Watch,
        looks: &mut Looks,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stop, Failure>> {
        // While hyper has bytes it cannot use yet it reads no further, not to a client's end either.
        watch.look.set(self.alarm.is_due() && watch.is_answering());
        watch.says_close.set(self.worker.phase() != Phase::Serving);
        match Pin::new(&mut *hyper).poll(cx) {
            // After an upgrade hyper does not wait for its last flush; it goes on when polled.
            Poll::Ready(Ok(())) if watch.unflushed.get() => {}
            Poll::Ready(done) => return Poll::Ready(self.done(done, watch)),
            Poll::Pending => {}
        }
        if watch.is_quiet() && looks.have_rested(&self.alarm, cx) {
            Pin::new(&mut *hyper).graceful_shutdown();
            match Pin::new(&mut *hyper).poll(cx) {
                Poll::Ready(Ok(())) if !watch.ended.get() => return Poll::Ready(Ok(Stop::Idle)),
                Poll::Ready(done) => return Poll::Ready(self.done(done, watch)),
                Poll::Pending => {}
            }
        }
        if let Some(violation) = watch.violation.get()
            && !violation.in_body
            && watch.is_answered()
        {
            return Poll::Ready(Ok(Stop::Refuse(violation.code)));
        }
        if looks.poll_departed(watch, cx).is_ready() {
            return Poll::Ready(Ok(Stop::Cut(Code::PP09)));
        }
        looks.stir(&self.alarm, watch);
        if self.alarm.is_due() {
            if let Some(stop) = self.overdue(watch, &mut looks.body) {
                return Poll::Ready(Ok(stop));
            }
            self.alarm.disarm();
        }
        self.alarm.arm_once(LOOK.max(TICK), cx);
        Poll::Pending
    }

    /// What hyper's end means.
    fn done(&self, done: hyper::Result<()>, watch: &Watch) -> Result<Stop, Failure> {
        let Err(error) = done else { return Ok(Stop::Done) };
        if let Some(violation) = watch.violation.get() {
            return Ok(Stop::Cut(violation.code));
        }
        // Whatever the screen let pass and hyper does not take is malformed too.
        if error.is_parse() {
            return Ok(Stop::Refuse(if error.is_parse_too_large() {
                Code::PP04
            } else {
                Code::PP02
            }));
        }
        // An answer that could not be completed is not the client's fault.
        let code = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<Failure>())
            .map_or(Code::PP09, |failure| failure.code);
        Err(Failure::new(code).because(error))
    }

    /// A deadline that has passed, if any.
    fn overdue(&self, watch: &Watch, body: &mut BodyRate) -> Option<Stop> {
        let timeouts = &self.worker.edge.config.timeouts;
        let now = Instant::now();
        let passed =
            |since: Option<Instant>, timeout| since.is_some_and(|since| now - since >= timeout);
        if passed(watch.blocked_since.get(), timeouts.response_write) {
            return Some(Stop::Cut(Code::PP06));
        }
        if watch.is_answering() {
            // Behind a request that is being answered hyper reads no further.
            watch.head_since.set(None);
        } else if watch.screen.borrow().in_head() {
            watch.head_since.set(watch.head_since.get().or(Some(now)));
            if passed(watch.head_since.get(), timeouts.request_head) {
                // Nobody asked for anything, so there is nothing to answer.
                let silent = watch.screen.borrow().in_empty_lines();
                return Some(if silent { Stop::Done } else { Stop::Refuse(Code::PP06) });
            }
        }
        // Only waiting for the client counts: a full pipe upstream is not its fault.
        // Once the answer has begun the two sides converse, and only a long silence ends that.
        let (window, least) = if watch.conversing.get() {
            (timeouts.websocket_idle, 1)
        } else {
            (timeouts.request_body, BodyRate::least(timeouts.request_body))
        };
        if !watch.drained.get() || watch.ended.get() || !watch.is_in_body() {
            *body = BodyRate::default();
        } else if body.is_too_slow(watch.read.get(), window, least, now) {
            return Some(Stop::Cut(Code::PP06));
        }
        None
    }
}

/// The end of a connection in the middle of something.
fn cut(stream: &Stream, watch: &Watch, failure: Failure) -> Failure {
    if watch.until_close.get() {
        stream.reset();
    }
    failure
}

fn concat(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, false) => second,
        (false, false) => [first, second].concat().into(),
    }
}

/// Ends the connection in order: what hyper wrote has gone, the client reads our end.
async fn close(mut stream: Stream, watch: &Watch) {
    let ended = watch.ended.get();
    drop(tokio::time::timeout(CLOSE_TIMEOUT, stream.shutdown()).await);
    if !ended {
        refuse::linger(&stream, refuse::LINGER).await;
    }
}

fn builder(limits: &crate::config::Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .keep_alive(true)
        // With half-closes hyper would not look for the client's end while it answers; the watch
        // keeps the end from it instead, see `DEPARTURE`.
        .half_close(false)
        // The screen bounds heads; this bounds what hyper reads ahead.
        .max_buf_size(limits.head_bytes_max.max(MIN_BUFFER_BYTES))
        // Deadlines are this driver's: hyper's own would need a timer per connection.
        .header_read_timeout(None);
    // hyper's own 100 sit on the stack; any other number costs an allocation per head.
    if limits.header_fields_max > HYPERS_FIELDS_MAX {
        builder.max_headers(limits.header_fields_max);
    }
    builder
}

/// What hyper takes unless it is told.
const HYPERS_FIELDS_MAX: usize = 100;

/// hyper does not take less.
const MIN_BUFFER_BYTES: usize = 8192;
