//! The socket as hyper sees it, remembering what decides whether it may be used again.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Progress;
use crate::upstream::connect::Stream;

pub(super) struct Wire {
    stream: Stream,
    /// All that hyper had to say has been taken by the kernel. hyper flushes after its last write,
    /// but goes on when that flush has to wait.
    flushed: bool,
    /// The instance has closed its side.
    closed: bool,
    heard: bool,
    progress: Option<Rc<Progress>>,
}

// === impl Wire ===

impl Wire {
    pub(super) fn new(stream: Stream, progress: Option<Rc<Progress>>) -> Self {
        Self { stream, flushed: true, closed: false, heard: false, progress }
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    pub(super) fn is_clean(&self) -> bool {
        self.flushed && !self.closed
    }

    /// The instance has sent a byte.
    pub(super) fn has_heard(&self) -> bool {
        self.heard
    }

    fn set_flushed(&mut self, flushed: bool) {
        self.flushed = flushed;
        if let Some(progress) = &self.progress {
            progress.set_flushed(flushed);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining();
        ready!(Pin::new(&mut self.stream.tcp).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard = true;
        } else if room > 0 {
            self.closed = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.set_flushed(false);
        Pin::new(&mut self.stream.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.set_flushed(false);
        Pin::new(&mut self.stream.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream.tcp).poll_flush(cx))?;
        self.set_flushed(true);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream.tcp).poll_shutdown(cx)
    }
}
