//! Bodies on HTTP/2 streams of a client: flow control in both directions, and its deadlines.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::share::{Chunk, Holder, Share};
use crate::alarm::{Alarm, TICK};
use crate::body::Body;
use crate::error::{Code, Failure};
use crate::worker::Worker;

/// A request body. Its window opens again as its data is taken, so what waits is bounded by it.
pub(super) struct RequestBody {
    recv: RecvStream,
    data_ended: bool,
    patience: Patience,
}

/// A body must bring 1 KiB/s, averaged over a window; only time spent waiting for it counts.
///
/// Once the answer has begun the two sides converse (gRPC streams do), and silence is no sign of a
/// bad client: from then on only a long one ends the stream.
pub(super) struct Patience {
    pub(super) alarm: Alarm,
    pub(super) window: Duration,
    /// Longest silence in a conversation.
    pub(super) silence: Duration,
    pub(super) answered: Rc<Cell<bool>>,
    pub(super) read: usize,
    /// Nothing has come since it was last asked for.
    pub(super) waiting: bool,
}

const BYTES_PER_SECOND_MIN: f64 = 1024.0;

// === impl RequestBody ===

impl RequestBody {
    pub(super) fn new(recv: RecvStream, patience: Patience) -> Self {
        Self { recv, data_ended: false, patience }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        if !this.data_ended {
            match this.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    this.patience.read += data.len();
                    this.patience.waiting = false;
                    let released = this.recv.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(match released {
                        Ok(()) => Ok(Frame::data(data)),
                        Err(error) => Err(gone(error)),
                    }));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(gone(error)))),
                Poll::Ready(None) => this.data_ended = true,
                Poll::Pending => {
                    return this.patience.poll_slow(cx).map(|failure| Some(Err(failure)));
                }
            }
        }
        match this.recv.poll_trailers(cx) {
            Poll::Ready(Ok(Some(trailers))) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Poll::Ready(Ok(None)) => Poll::Ready(None),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(gone(error)))),
            Poll::Pending => this.patience.poll_slow(cx).map(|failure| Some(Err(failure))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Patience {
    fn poll_slow(&mut self, cx: &Context<'_>) -> Poll<Failure> {
        if self.alarm.is_due() {
            self.alarm.disarm();
            let enough = if self.answered.get() {
                1.0
            } else {
                BYTES_PER_SECOND_MIN * self.window.as_secs_f64()
            };
            // The window may have ended while it was the instance that took nothing.
            if self.waiting && (self.read as f64) < enough {
                return Poll::Ready(Failure::new(Code::PP06));
            }
            self.read = 0;
        }
        self.waiting = true;
        self.alarm.arm_once(if self.answered.get() { self.silence } else { self.window }, cx);
        Poll::Pending
    }
}

/// Sends `body` to its end. A body that fails resets the stream, so that it is not taken for whole.
///
/// # Errors
///
/// [`Code::PP09`] when the client resets the stream, [`Code::PP06`] when it takes nothing for
/// `stall`, and whatever the body fails with.
pub(super) async fn send(
    mut stream: SendStream<Chunk>,
    body: &mut Body,
    share: &Rc<Share>,
    worker: &Worker,
) -> Result<(), Failure> {
    let sent = send_frames(&mut stream, body, &Holder::new(share), worker).await;
    if let Err(failure) = &sent {
        let reason =
            if failure.code == Code::PP06 { Reason::CANCEL } else { Reason::INTERNAL_ERROR };
        stream.send_reset(reason);
    }
    sent
}

async fn send_frames(
    stream: &mut SendStream<Chunk>,
    body: &mut Body,
    holder: &Rc<Holder>,
    worker: &Worker,
) -> Result<(), Failure> {
    let (alarm, stall) = (&worker.alarms.alarm(), worker.edge.config.timeouts.response_write);
    loop {
        wait_for_room(stream, holder, alarm, stall).await?;
        let frame = poll_fn(|cx| {
            if let Poll::Ready(reason) = stream.poll_reset(cx) {
                return Poll::Ready(Err(reset(reason)));
            }
            if worker.withholds() {
                alarm.arm(TICK, cx);
                return Poll::Pending;
            }
            // There is more of it while the instance is waited for, never less than a little.
            let room = ready!(holder.poll_room(cx));
            let poll = || Pin::new(&mut *body).poll_frame(cx);
            Poll::Ready(Ok(ready!(worker.buffers.within(room, poll))))
        })
        .await?;
        match frame.transpose()? {
            None => return stream.send_data(holder.hold(Bytes::new()), true).map_err(gone),
            Some(frame) => match frame.into_data() {
                Ok(data) => {
                    let last = body.is_end_stream();
                    send_data(stream, holder.hold(data), last, alarm, stall).await?;
                    if last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else { continue };
                    return stream.send_trailers(trailers).map_err(gone);
                }
            },
        }
    }
}

async fn send_data(
    stream: &mut SendStream<Chunk>,
    mut data: Chunk,
    last: bool,
    alarm: &Alarm,
    stall: Duration,
) -> Result<(), Failure> {
    if data.is_empty() {
        return if last { stream.send_data(data, true).map_err(gone) } else { Ok(()) };
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = match stream.capacity() {
            0 => wait_for_capacity(stream, alarm, stall).await?,
            capacity => capacity,
        };
        let chunk = data.split_to(capacity.min(data.len()));
        stream.send_data(chunk, last && data.is_empty()).map_err(gone)?;
    }
    Ok(())
}

/// Until more may be taken from the body.
async fn wait_for_room(
    stream: &mut SendStream<Chunk>,
    holder: &Holder,
    alarm: &Alarm,
    stall: Duration,
) -> Result<(), Failure> {
    alarm.disarm();
    let mut before = holder.sent();
    poll_fn(|cx| {
        if holder.poll_room(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(reason) = stream.poll_reset(cx) {
            return Poll::Ready(Err(reset(reason)));
        }
        if alarm.is_due() {
            let sent = std::mem::replace(&mut before, holder.sent());
            if sent == before {
                return Poll::Ready(Err(Code::PP06.into()));
            }
            alarm.disarm();
        }
        alarm.arm_once(stall, cx);
        Poll::Pending
    })
    .await
}

async fn wait_for_capacity(
    stream: &mut SendStream<Chunk>,
    alarm: &Alarm,
    stall: Duration,
) -> Result<usize, Failure> {
    alarm.disarm();
    poll_fn(|cx| {
        loop {
            match stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(0))) => {}
                Poll::Ready(Some(Ok(capacity))) => return Poll::Ready(Ok(capacity)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(gone(error))),
                Poll::Ready(None) => return Poll::Ready(Err(Code::PP09.into())),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(reason) = stream.poll_reset(cx) {
            return Poll::Ready(Err(reset(reason)));
        }
        if alarm.is_due() {
            return Poll::Ready(Err(Code::PP06.into()));
        }
        alarm.arm_once(stall, cx);
        Poll::Pending
    })
    .await
}

fn gone(error: h2::Error) -> Failure {
    Failure::new(Code::PP09).because(error)
}

pub(super) fn reset(reason: Result<Reason, h2::Error>) -> Failure {
    match reason {
        Ok(reason) => Failure::new(Code::PP09).because(h2::Error::from(reason)),
        Err(error) => gone(error),
    }
}

/// When `now` is further than `stall` from `since`.
pub(super) fn is_stalled(since: Option<Instant>, stall: Duration, now: Instant) -> bool {
    since.is_some_and(|since| now - since >= stall)
}
