//! The cork: HTTP/2 frames gather while a connection is polled and leave in one write afterwards.
//!
//! h2 flushes after nearly every frame; on a connection with many streams that is one record and
//! one syscall each. [`Cork`] sits between h2 and the transport and only appends; whoever polls the
//! connection calls [`Handle::poll_drain`] after *every* poll, the last one included. While nothing
//! is pending no buffer is held: the worker lends one from [`Buffers`].
//!
//! Bounded: with `CORK_BYTES_MAX` pending, writes first drain and are otherwise `Pending`, so a slow
//! reader holds that much and no more.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes one connection may have gathered before its writes wait.
pub const CORK_BYTES_MAX: usize = 64 * 1024;

/// Spare buffers one worker keeps for its connections.
const SPARE_MAX: usize = 8;

/// The transport as HTTP/2 sees it.
pub struct Cork<T> {
    inner: Rc<RefCell<Inner<T>>>,
}

/// The side of the cork that the driver of the connection holds.
pub struct Handle<T> {
    inner: Rc<RefCell<Inner<T>>>,
}

struct Inner<T> {
    io: T,
    buffer: Vec<u8>,
    /// Where in `buffer` the unwritten part begins.
    start: usize,
    /// All was written, but the transport (TLS) has not said that it was sent.
    flushing: bool,
    buffers: Buffers,
}

/// The buffers one worker lends to its connections.
#[derive(Clone, Default)]
pub struct Buffers {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    spare: RefCell<Vec<Vec<u8>>>,
    /// What a read may bring for whoever is polled now.
    room: Cell<Option<usize>>,
}

/// Puts back what was there, also after a panic.
struct Within<'b> {
    room: &'b Cell<Option<usize>>,
    before: Option<usize>,
}

/// A corked transport and the handle that drains it.
pub fn cork<T>(io: T, buffers: Buffers) -> (Cork<T>, Handle<T>) {
    let inner =
        Rc::new(RefCell::new(Inner { io, buffer: Vec::new(), start: 0, flushing: false, buffers }));
    (Cork { inner: inner.clone() }, Handle { inner })
}

// === impl Handle ===

impl<T: AsyncWrite + Unpin> Handle<T> {
    /// Writes what was gathered. `Pending` means the transport is full and wakes the current task.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.borrow_mut().poll_drain(cx)
    }

    /// Bytes that wait for the transport.
    pub fn pending(&self) -> usize {
        let inner = self.inner.borrow();
        inner.buffer.len() - inner.start
    }

    /// Looks at the transport.
    pub fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.inner.borrow_mut().io)
    }
}

// === impl Cork ===

impl<T: AsyncRead + Unpin> AsyncRead for Cork<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner.borrow_mut().io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cork<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_room(cx))?;
        if inner.buffer.capacity() == 0 {
            inner.buffer = inner.buffers.lend();
        }
        let before = inner.buffer.len();
        for slice in slices {
            // No more than the bound, or the buffer would double to hold the end of a frame.
            let room = CORK_BYTES_MAX - (inner.buffer.len() - inner.start);
            inner.buffer.extend_from_slice(&slice[..slice.len().min(room)]);
            if slice.len() >= room {
                break;
            }
        }
        Poll::Ready(Ok(inner.buffer.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Says yes at once: the driver drains after the poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

// === impl Inner ===

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.buffer.len() - self.start >= CORK_BYTES_MAX {
            ready!(self.poll_write_some(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.buffer.len() {
            ready!(self.poll_write_some(cx))?;
        }
        if self.buffer.capacity() > 0 {
            self.start = 0;
            self.flushing = true;
            self.buffers.take_back(std::mem::take(&mut self.buffer));
        }
        if self.flushing {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flushing = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer[self.start..]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.start += written;
        // Move what is left to the front once the written part is the larger one: amortised O(1),
        // and the buffer never grows past twice its bound.
        if self.start >= CORK_BYTES_MAX / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T> Drop for Inner<T> {
    fn drop(&mut self) {
        self.buffers.take_back(std::mem::take(&mut self.buffer));
    }
}

// === impl Buffers ===

impl Buffers {
    /// An empty buffer, a used one if there is any.
    pub fn lend(&self) -> Vec<u8> {
        self.shared.spare.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(16 * 1024))
    }

    /// Keeps `buffer` for the next connection, unless there are enough or it has grown too large.
    pub fn take_back(&self, mut buffer: Vec<u8>) {
        let mut spare = self.shared.spare.borrow_mut();
        let usable = 0 < buffer.capacity() && buffer.capacity() <= 4 * CORK_BYTES_MAX;
        if usable && spare.len() < SPARE_MAX {
            buffer.clear();
            spare.push(buffer);
        }
    }

    /// Calls `poll`, for which a read of an answer should bring `room` bytes at most. Nobody else is
    /// polled meanwhile: it is the worker's only thread.
    pub fn within<R>(&self, room: usize, poll: impl FnOnce() -> R) -> R {
        let before = self.shared.room.replace(Some(room));
        let _within = Within { room: &self.shared.room, before };
        poll()
    }

    /// What a read of an answer may bring now.
    pub fn room(&self) -> usize {
        self.shared.room.get().unwrap_or(usize::MAX)
    }

    /// Buffers that nobody has.
    #[cfg(test)]
    pub(crate) fn spare_count(&self) -> usize {
        self.shared.spare.borrow().len()
    }
}

impl Drop for Within<'_> {
    fn drop(&mut self) {
        self.room.set(self.before);
    }
}

#[cfg(test)]
mod tests;
