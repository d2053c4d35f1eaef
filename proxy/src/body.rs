//! The one body type that requests and responses are made of, in both directions.
//!
//! An enum where the kind is common, a box where it is large: no body is copied or collected here.
//! Whatever must live exactly as long as a body (a permit, a gauge) wraps it, see [`crate::limit`].

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::error::{Code, Failure};

/// Bytes on their way. An error from it ends the message visibly: the connection is closed or the
/// stream reset, so that a truncated body is never taken for a complete one.
pub enum Body {
    Empty,
    /// A whole body; `None` once it was taken.
    Full(Option<Bytes>),
    /// From a hyper server connection.
    Incoming(hyper::body::Incoming),
    /// Everything else.
    Boxed(Pin<Box<dyn http_body::Body<Data = Bytes, Error = Failure>>>),
}

// === impl Body ===

impl Body {
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(Some(bytes)) }
    }

    pub fn boxed(body: impl http_body::Body<Data = Bytes, Error = Failure> + 'static) -> Self {
        Self::Boxed(Box::pin(body))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Incoming(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|error| Failure::new(Code::PP09).because(error)),
            Self::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_none(),
            Self::Incoming(body) => body.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Incoming(body) => body.size_hint(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}
