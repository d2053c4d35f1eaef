//! The body of an answer from a stream; what is read makes room for more.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;

use crate::error::{Code, Failure};
use crate::holdings;
use crate::upstream::patience::Patience;

use super::cancel::Receiving;
use super::stream::Exchange;

/// Dropped before its end it cancels the request.
pub(super) struct Download {
    exchange: Exchange,
    patience: Patience,
    /// What [`poll_whole`](Self::poll_whole) read and could not give out.
    ahead: Option<Result<Frame<Bytes>, Failure>>,
    data_ended: bool,
}

type Item = Option<Result<Frame<Bytes>, Failure>>;

// === impl Download ===

impl Download {
    pub(super) fn new(exchange: Exchange, stall: Duration) -> Self {
        Self { exchange, patience: Patience::new(stall), ahead: None, data_ended: false }
    }

    /// The whole body if it came with the head.
    pub(super) fn poll_whole(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        if self.exchange.ends_here() {
            self.exchange.finish();
            return Some(Bytes::new());
        }
        match self.poll_next(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) if self.exchange.ends_here() => return Some(bytes),
                Ok(bytes) => self.ahead = Some(Ok(Frame::data(bytes))),
                Err(trailers) => self.ahead = Some(Ok(trailers)),
            },
            Poll::Ready(Some(Err(failure))) => self.ahead = Some(Err(failure)),
            Poll::Ready(None) => return Some(Bytes::new()),
            Poll::Pending => {}
        }
        None
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        let Poll::Ready(item) = self.poll_stream(cx) else {
            ready!(self.patience.poll_spent(cx));
            // A stream of events may be silent for long.
            let failure = Failure::new(Code::PU05).because("no byte in time").excused();
            return Poll::Ready(Some(Err(failure)));
        };
        self.patience.renew();
        Poll::Ready(match item {
            Some(Err(error)) => {
                self.exchange.broke();
                Some(Err(broken(error)))
            }
            Some(Ok(frame)) => {
                if self.exchange.ends_here() {
                    self.exchange.finish();
                }
                Some(Ok(frame))
            }
            None => {
                self.exchange.finish();
                None
            }
        })
    }

    fn poll_stream(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Receiving::Body(body) = &mut self.exchange.receiving else { return Poll::Ready(None) };
        if !self.data_ended {
            match ready!(body.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    body.flow_control().release_capacity(bytes.len())?;
                    holdings::current().take(bytes.len());
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(body.poll_trailers(cx)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }
}

fn broken(error: h2::Error) -> Failure {
    // CANCEL is what we say when a client breaks its request off, and what a node says when it is
    // the client behind us that takes nothing.
    let is_excused = error.reason() == Some(h2::Reason::CANCEL);
    let failure = Failure::new(Code::PU05).because(error);
    if is_excused { failure.excused() } else { failure }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Item> {
        match self.ahead.take() {
            Some(item) => Poll::Ready(Some(item)),
            None => self.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && self.exchange.ends_here()
    }
}
