//! Bytes between a client and an instance that nobody looks at: raw TCP, TLS alone, tunnels.
//!
//! Half-close is kept: the end of one direction is passed on, the other goes on. A direction that
//! waits holds no buffer; the worker lends one while bytes move. Only of a WebSocket a little is
//! looked at: where its frames end, so that a drain can say so in between.

mod closing;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use telemetry::event;
use telemetry::record::Record;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use self::closing::{Closing, Farewell, Stand};
use crate::error::{Code, Failure};
use crate::http::upgrade::Kind;
use crate::io::cork::Buffers;
use crate::worker::Worker;

/// Bytes that a copy has read so far, of each side; to be asked at any time, even of a copy that was
/// cut.
#[derive(Default)]
pub struct Moved {
    up: Cell<u64>,
    down: Cell<u64>,
    /// Who spoke last.
    last: Cell<Option<Way>>,
    /// Where every chunk is noted, if it is verbose.
    record: Option<Record>,
}

/// Copies between `client` and `instance` until both directions have ended.
///
/// # Errors
///
/// [`Code::PP09`] or [`Code::PU05`] by the side that broke, [`Code::PP06`] after `idle` without a
/// byte, [`Code::PL05`] when a drain cuts it. The instance's connection ends with the call; the
/// client's is the caller's, who must not end it in order after PU05 or PL05.
pub async fn both_ways<A, B>(
    client: &mut A,
    mut instance: B,
    kind: Kind,
    worker: &Worker,
    moved: &Moved,
) -> Result<(), Failure>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let alarm = worker.alarms.alarm();
    let timeouts = &worker.edge.config.timeouts;
    let idle = if kind == Kind::Raw { timeouts.tcp_idle } else { timeouts.websocket_idle };
    let mut up = Direction::new(&worker.buffers, moved, Way::Up, kind);
    let mut down = Direction::new(&worker.buffers, moved, Way::Down, kind);
    let mut closing = (kind == Kind::WebSocket).then(Closing::default);
    let mut seen = 0;
    poll_fn(|cx| {
        loop {
            let upward =
                up.poll_copy(client, &mut instance, cx).map_err(|broken| match broken {
                    Broken::Source(error) => Failure::new(Code::PP09).because(error),
                    Broken::Sink(error) => Failure::new(Code::PU05).because(error),
                })?;
            let downward =
                down.poll_copy(&mut instance, client, cx).map_err(|broken| match broken {
                    Broken::Source(error) => Failure::new(Code::PU05).because(error),
                    Broken::Sink(error) => Failure::new(Code::PP09).because(error),
                })?;
            if upward.is_ready() && downward.is_ready() {
                return Poll::Ready(Ok(()));
            }
            let class = kind.class();
            if worker.is_over(class) {
                worker.count_cut(class);
                return Poll::Ready(Err(Code::PL05.into()));
            }
            if let Some(closing) = &mut closing {
                match closing.poll(&mut up, &mut down, worker, cx) {
                    Stand::Open => {}
                    // Frames that have become due, and the end, are for another turn.
                    Stand::Changed => continue,
                    Stand::Unanswered => return Poll::Ready(Err(Code::PL05.into())),
                }
            }
            if alarm.is_due() {
                let total = moved.up() + moved.down();
                if total == seen {
                    return Poll::Ready(Err(Code::PP06.into()));
                }
                seen = total;
                alarm.disarm();
            }
            alarm.arm_once(idle, cx);
            return Poll::Pending;
        }
    })
    .await
}

/// One direction of a copy.
struct Direction<'b> {
    buffers: &'b Buffers,
    buffer: Vec<u8>,
    start: usize,
    state: State,
    moved: &'b Moved,
    way: Way,
    /// Of a WebSocket.
    farewell: Option<Farewell>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the instance.
    Up,
    /// To the client.
    Down,
}

#[derive(PartialEq, Eq)]
enum State {
    Open,
    /// The source has ended; the end is being passed on.
    Ending,
    Ended,
}

/// What one read may bring; also what a lent buffer holds.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Which end of a direction broke.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

// === impl Moved ===

impl Moved {
    /// Notes in `record` what is moved, if that is verbose.
    pub fn noted(record: Option<Record>) -> Self {
        Self { record, ..Self::default() }
    }

    /// Bytes the client sent.
    pub fn up(&self) -> u64 {
        self.up.get()
    }

    /// Bytes the instance sent.
    pub fn down(&self) -> u64 {
        self.down.get()
    }

    /// The client has said something, and nothing has come back since.
    fn owes_answer(&self) -> bool {
        self.last.get() == Some(Way::Up)
    }

    fn add(&self, way: Way, bytes: u64) {
        let sum = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        sum.set(sum.get() + bytes);
        self.last.set(Some(way));
        if let Some(record) = self.record.as_ref().filter(|record| record.is_verbose()) {
            match way {
                Way::Up => event!(record, TRACE, "request chunk", bytes = bytes),
                Way::Down => event!(record, TRACE, "response chunk", bytes = bytes),
            }
        }
    }
}

// === impl Direction ===

impl<'b> Direction<'b> {
    fn new(buffers: &'b Buffers, moved: &'b Moved, way: Way, kind: Kind) -> Self {
        let farewell = (kind == Kind::WebSocket).then(Farewell::default);
        Self { buffers, buffer: Vec::new(), start: 0, state: State::Open, moved, way, farewell }
    }

    /// Has the close frame of a WebSocket sent as soon as one may be.
    fn tell(&mut self) {
        if let Some(farewell) = &mut self.farewell {
            farewell.tell();
        }
    }

    /// The sink knows that this is the end.
    fn is_told(&self) -> bool {
        self.state != State::Open || self.farewell.as_ref().is_some_and(Farewell::has_said)
    }

    /// The source has said its last word.
    fn has_heard_all(&self) -> bool {
        self.state != State::Open || self.farewell.as_ref().is_some_and(Farewell::has_heard)
    }

    /// Nothing more is to be read: what there is goes, then the end.
    fn hang_up(&mut self) {
        if self.state == State::Open {
            self.state = State::Ending;
        }
    }

    fn poll_copy<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            ready!(self.poll_write_all(to, cx)).map_err(Broken::Sink)?;
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broken::Sink)?;
                    self.state = State::Ended;
                }
                State::Open => {
                    let way = self.way;
                    if let Some(close) = self.farewell.as_mut().and_then(|it| it.take_due(way)) {
                        (self.buffer, self.start) = (close, 0);
                        continue;
                    }
                    ready!(self.poll_read_some(from, to, cx))?;
                }
            }
        }
    }

    fn poll_write_all<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.start < self.buffer.len() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += written;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_some<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.buffer.capacity() == 0 {
            self.buffer = self.buffers.lend();
            self.buffer.reserve(READ_BYTES_MAX);
        }
        self.buffer.clear();
        self.start = 0;
        match poll_read_buf(Pin::new(from), cx, &mut self.buffer) {
            Poll::Ready(Ok(read)) => {
                if read == 0 {
                    self.state = State::Ending;
                    self.give_back();
                } else {
                    self.moved.add(self.way, read as u64);
                    if let Some(farewell) = &mut self.farewell {
                        farewell.pass(&mut self.buffer, self.way);
                    }
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(Broken::Source(error))),
            Poll::Pending => {
                self.give_back();
                // What a TLS or HTTP/2 transport has buffered must leave before we wait.
                ready!(Pin::new(to).poll_flush(cx)).map_err(Broken::Sink)?;
                Poll::Pending
            }
        }
    }

    fn give_back(&mut self) {
        self.start = 0;
        self.buffers.take_back(std::mem::take(&mut self.buffer));
    }
}

impl Drop for Direction<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}
