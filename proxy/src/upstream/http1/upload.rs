//! The request body on its way to the instance, and whose turn it is.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::body::Body;
use crate::error::Failure;

pub(super) struct Upload {
    body: Body,
    progress: Option<Rc<Progress>>,
}

/// How far an upload is, for those who wait for the answer to it.
pub(super) struct Progress {
    /// The client has not sent the next bytes yet: no fault of the instance.
    our_turn: Cell<bool>,
    /// When the instance took the last frame.
    since: Cell<Instant>,
    ended: Cell<bool>,
    flushed: Cell<bool>,
    failure: RefCell<Option<Failure>>,
}

/// Stands for the client's [`Failure`], which waits in [`Progress`] because hyper only boxes errors.
#[derive(Debug, thiserror::Error)]
#[error("the request body failed")]
pub(super) struct Interrupted;

// === impl Upload ===

impl Upload {
    pub(super) fn new(body: Body, progress: Option<Rc<Progress>>) -> Self {
        Self { body, progress }
    }

    pub(super) fn into_body(mut self) -> Body {
        std::mem::replace(&mut self.body, Body::Empty)
    }
}

impl Drop for Upload {
    /// hyper drops a body as soon as its announced length is reached, without asking for its end.
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.ended.set(true);
        }
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let this = &mut *self;
        let Some(progress) = &this.progress else { return Poll::Ready(None) };
        progress.our_turn.set(true);
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        progress.our_turn.set(false);
        progress.since.set(Instant::now());
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                progress.ended.set(this.body.is_end_stream() || frame.is_trailers());
                Some(Ok(frame))
            }
            Some(Err(failure)) => {
                *progress.failure.borrow_mut() = Some(failure);
                Some(Err(Interrupted))
            }
            None => {
                progress.ended.set(true);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Progress ===

impl Default for Progress {
    fn default() -> Self {
        Self {
            our_turn: Cell::new(false),
            since: Cell::new(Instant::now()),
            ended: Cell::new(false),
            flushed: Cell::new(false),
            failure: RefCell::default(),
        }
    }
}

impl Progress {
    pub(super) fn is_our_turn(&self) -> bool {
        self.our_turn.get()
    }

    pub(super) fn since(&self) -> Instant {
        self.since.get()
    }

    /// The kernel has taken the whole request.
    pub(super) fn is_sent(&self) -> bool {
        self.ended.get() && self.flushed.get()
    }

    pub(super) fn set_flushed(&self, flushed: bool) {
        self.flushed.set(flushed);
    }

    pub(super) fn take_failure(&self) -> Option<Failure> {
        self.failure.borrow_mut().take()
    }
}
