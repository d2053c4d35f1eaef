//! The body of an answer, which drives the connection it comes from.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::JoinHandle;

use super::Exchange;
use crate::error::{Code, Failure};
use crate::upstream::patience::Patience;

/// Ends with the socket going back to the pool; dropped before its end it closes the socket.
pub(super) struct Download {
    incoming: Incoming,
    driver: Driver,
    patience: Patience,
    /// What [`poll_whole`](Self::poll_whole) read and could not give out, in order.
    ahead: [Option<Result<Frame<Bytes>, Failure>>; 2],
    /// Nothing comes any more.
    ended: bool,
}

#[allow(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a body is boxed whole"
)]
enum Driver {
    /// Whoever reads the body drives the connection.
    Inline(Exchange),
    /// A task drives it, because the upload goes on; dropped with the body.
    Task {
        _task: AbortOnDrop,
    },
    Gone,
}

struct AbortOnDrop(JoinHandle<()>);

type Item = Option<Result<Frame<Bytes>, Failure>>;

// === impl Download ===

impl Download {
    pub(super) fn inline(incoming: Incoming, exchange: Exchange, stall: Duration) -> Self {
        Self::new(incoming, Driver::Inline(exchange), stall)
    }

    pub(super) fn driven(incoming: Incoming, task: JoinHandle<()>, stall: Duration) -> Self {
        Self::new(incoming, Driver::Task { _task: AbortOnDrop(task) }, stall)
    }

    fn new(incoming: Incoming, driver: Driver, stall: Duration) -> Self {
        let patience = Patience::new(stall);
        Self { incoming, driver, patience, ahead: [None, None], ended: false }
    }

    /// The whole body if it came with the head: most are small, and then neither a box is needed for
    /// the body nor a connection while the client takes it.
    pub(super) fn poll_whole(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        if self.incoming.is_end_stream() {
            self.end();
            return Some(Bytes::new());
        }
        let bytes = match self.poll_next(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) => bytes,
                Err(trailers) => {
                    self.ahead[0] = Some(Ok(trailers));
                    return None;
                }
            },
            Poll::Ready(Some(Err(failure))) => {
                self.ahead[0] = Some(Err(failure));
                return None;
            }
            Poll::Ready(None) => return Some(Bytes::new()),
            Poll::Pending => return None,
        };
        if self.ended {
            return Some(bytes);
        }
        // Behind the last chunk of a chunked body there is still its end.
        match self.poll_next(cx) {
            Poll::Ready(None) => return Some(bytes),
            Poll::Ready(second) => self.ahead[1] = second,
            Poll::Pending => {}
        }
        self.ahead[0] = Some(Ok(Frame::data(bytes)));
        None
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Poll::Ready(item) = self.poll_incoming(cx) else {
            if self.patience.poll_spent(cx).is_pending() {
                return Poll::Pending;
            }
            self.give_up();
            return Poll::Ready(Some(Err(Failure::new(Code::PU05).because("no byte in time"))));
        };
        self.patience.renew();
        Poll::Ready(match item {
            Some(Ok(frame)) => {
                if self.incoming.is_end_stream() || frame.is_trailers() {
                    self.end();
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.give_up();
                Some(Err(Failure::new(Code::PU05).because(error)))
            }
            None => {
                self.end();
                None
            }
        })
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Asking first tells hyper that the next bytes are wanted; it reads none before.
        let first = Pin::new(&mut self.incoming).poll_frame(cx);
        let Driver::Inline(exchange) = &mut self.driver else { return first };
        if first.is_ready() {
            return first;
        }
        // Over or not, what it read shows in the body.
        let _is_over = exchange.poll(cx);
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    /// The body came to its end: the socket is free.
    fn end(&mut self) {
        self.ended = true;
        match std::mem::replace(&mut self.driver, Driver::Gone) {
            Driver::Inline(exchange) => exchange.recycle(),
            // The task has given the socket back already, unless the upload still goes on. Then it
            // ends with this body.
            task => self.driver = task,
        }
    }

    fn give_up(&mut self) {
        self.ended = true;
        self.driver = Driver::Gone;
    }

    fn ahead_bytes(&self) -> u64 {
        let frames = self.ahead.iter().flatten().flatten();
        frames.filter_map(Frame::data_ref).map(|bytes| bytes.len() as u64).sum()
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Item> {
        for ahead in &mut self.ahead {
            if let Some(item) = ahead.take() {
                return Poll::Ready(Some(item));
            }
        }
        self.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.ahead.iter().all(Option::is_none)
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.incoming.size_hint();
        let ahead = self.ahead_bytes();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + ahead);
        }
        hint.set_lower(hint.lower() + ahead);
        hint
    }
}

// === impl AbortOnDrop ===

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
