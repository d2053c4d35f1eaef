//! A request body on its way into a stream, no faster than the peer takes it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};
use tokio::time::Instant;

use crate::body::Body;
use crate::error::Failure;
use crate::holdings::{self, Holdings};

pub(super) struct Upload {
    body: Body,
    sending: SendStream<Bytes>,
    /// The client has not sent the next bytes yet: no fault of the peer.
    our_turn: bool,
    /// When the peer took the last frame.
    since: Instant,
    /// Of the client, who may not be polled when the body goes on.
    holdings: Rc<Holdings>,
}

/// An upload that a task goes on with while the answer is read. `None` when it has ended.
pub(super) type Shared = Rc<RefCell<Option<Upload>>>;

// === impl Upload ===

impl Upload {
    pub(super) fn new(body: Body, sending: SendStream<Bytes>) -> Self {
        let (since, holdings) = (Instant::now(), holdings::current());
        Self { body, sending, our_turn: false, since, holdings }
    }

    /// Since when the peer has been expected to do something; `None` while the client is.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        (!self.our_turn).then_some(self.since)
    }

    pub(super) fn into_sending(self) -> SendStream<Bytes> {
        self.sending
    }

    /// Ready when the body was sent or the peer wants no more of it; what the peer says to that is
    /// in its answer.
    ///
    /// # Errors
    ///
    /// The client's failure to bring the body; the stream is still open.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            if self.sending.poll_reset(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            // One byte of room is enough to take a frame: h2 holds the rest of it, and no second
            // frame is taken before that has gone.
            while self.sending.capacity() == 0 {
                self.our_turn = false;
                self.sending.reserve_capacity(1);
                let Some(Ok(_)) = ready!(self.sending.poll_capacity(cx)) else {
                    return Poll::Ready(Ok(()));
                };
            }
            self.our_turn = true;
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?;
            self.our_turn = false;
            self.since = Instant::now();
            // A stream that cannot be written to has ended, which its answer tells.
            let Ok(is_end) = self.send(frame) else { return Poll::Ready(Ok(())) };
            if is_end {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn send(&mut self, frame: Option<Frame<Bytes>>) -> Result<bool, h2::Error> {
        let Some(frame) = frame else {
            self.sending.send_data(Bytes::new(), true)?;
            return Ok(true);
        };
        match frame.into_data() {
            Ok(bytes) => {
                let is_end = self.body.is_end_stream();
                if is_end || !bytes.is_empty() {
                    self.holdings.give(bytes.len());
                    self.sending.send_data(bytes, is_end)?;
                }
                Ok(is_end)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.sending.send_trailers(trailers).map(|()| true),
                Err(_) => Ok(false),
            },
        }
    }
}

/// Goes on with an upload behind the back of the answer.
pub(super) fn poll_shared(shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
    let mut upload = shared.borrow_mut();
    let Some(running) = upload.as_mut() else { return Poll::Ready(()) };
    let outcome = ready!(running.poll(cx));
    let ended = upload.take();
    if let (Err(_), Some(mut ended)) = (outcome, ended) {
        // The client broke off: the instance must not take what it has for the whole.
        ended.sending.send_reset(Reason::CANCEL);
    }
    Poll::Ready(())
}
