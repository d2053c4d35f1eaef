//! What hyper's HTTP/1 connection reads from and writes to: the client's stream, screened and
//! observed, so that its driver knows when nothing is going on.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::http::screen::{Screen, Violation};
use crate::io::stream::{Departure, Stream};

/// The stream as hyper sees it.
pub(super) struct Observed {
    stream: Stream,
    /// Bytes of a pipelined request that an earlier hyper connection had read; screened already.
    rewind: Bytes,
    watch: Rc<Watch>,
}

/// What the driver of the connection wants to know.
pub(super) struct Watch {
    pub(super) screen: RefCell<Screen>,
    pub(super) violation: Cell<Option<Violation>>,
    /// What came behind the violation in the same read.
    pub(super) refused: RefCell<Bytes>,
    /// Calls of the service, and those of them whose response is not over.
    pub(super) calls: Cell<u64>,
    pub(super) busy: Cell<usize>,
    /// Whether anything was read, or the service called, since hyper's connection was built.
    pub(super) touched: Cell<bool>,
    pub(super) called: Cell<bool>,
    /// The answer to the present request has begun: a silent body is no bad sign any more.
    pub(super) conversing: Cell<bool>,
    /// The last read found nothing more.
    pub(super) drained: Cell<bool>,
    /// An answer was given to hyper, or bytes to the stream, and no flush has succeeded since.
    pub(super) unflushed: Cell<bool>,
    /// The client has sent its last byte, and it was read.
    pub(super) ended: Cell<bool>,
    /// The driver wants to know of a departure that nobody has read up to.
    pub(super) look: Cell<bool>,
    pub(super) departure: Cell<Departure>,
    /// Answers say that they are the last: the node drains.
    pub(super) says_close: Cell<bool>,
    /// The end of an answer to an HTTP/1.0 client may be the end of the connection.
    pub(super) until_close: Cell<bool>,
    /// Since when the client has taken nothing of what there is to write.
    pub(super) blocked_since: Cell<Option<Instant>>,
    /// Since when a head has been incomplete.
    pub(super) head_since: Cell<Option<Instant>>,
    /// Bytes read and written in all.
    pub(super) read: Cell<u64>,
    pub(super) written: Cell<u64>,
}

// === impl Observed ===

impl Observed {
    pub(super) fn new(stream: Stream, rewind: Bytes, watch: Rc<Watch>) -> Self {
        watch.touched.set(!rewind.is_empty());
        watch.called.set(false);
        watch.drained.set(false);
        Self { stream, rewind, watch }
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.rewind.is_empty() {
            let take = self.rewind.len().min(buf.remaining());
            buf.put_slice(&self.rewind[..take]);
            self.rewind.advance(take);
            return Poll::Ready(Ok(()));
        }
        match self.watch.violation.get() {
            // The request is on its way: its body ends in an error, never as if complete.
            Some(Violation { in_body: true, .. }) => {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            Some(_) => return Poll::Pending, // the driver answers, and wakes nobody for more
            None => {}
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.watch.drained.set(read.is_pending());
        ready!(read)?;
        self.watch.observe_read(buf, before)
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.watch.is_hypers_own_answer() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch.observe_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.watch.is_hypers_own_answer() {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch.observe_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes in every poll.
        if self.watch.look.take() {
            self.watch.departure.set(self.stream.departure());
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        match &flushed {
            Poll::Ready(Ok(())) => {
                self.watch.unflushed.set(false);
                self.watch.blocked_since.set(None);
            }
            Poll::Ready(Err(_)) => {}
            // TLS has taken everything and the socket has not: what is left there must leave in the
            // time of one stalled write, for how much it is cannot be seen.
            Poll::Pending => self.watch.observe_blocked(),
        }
        flushed
    }

    /// The stream is the driver's to end; hyper flushes before it asks for this.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(screen: Screen) -> Self {
        Self {
            screen: RefCell::new(screen),
            violation: Cell::default(),
            refused: RefCell::default(),
            calls: Cell::default(),
            busy: Cell::default(),
            touched: Cell::default(),
            called: Cell::default(),
            conversing: Cell::default(),
            drained: Cell::default(),
            unflushed: Cell::default(),
            ended: Cell::default(),
            look: Cell::default(),
            departure: Cell::default(),
            says_close: Cell::default(),
            until_close: Cell::default(),
            blocked_since: Cell::default(),
            head_since: Cell::default(),
            read: Cell::default(),
            written: Cell::default(),
        }
    }

    /// Whether a request was read to which the answer is not over.
    pub(super) fn is_answering(&self) -> bool {
        // hyper may stop for a turn between two requests that it has in its buffer.
        self.busy.get() > 0 || self.calls.get() < self.screen.borrow().heads()
    }

    /// Whether a client that is being answered seems to have left.
    pub(super) fn seems_gone(&self) -> bool {
        // What it still has to send, or to take, comes first: it may be there all the same.
        let busy = self.is_in_body() || self.blocked_since.get().is_some();
        let ended = self.ended.get() || self.departure.get() == Departure::Ended;
        self.is_answering() && ended && !busy
    }

    /// Whether everything that was to be answered was, and has left.
    pub(super) fn is_answered(&self) -> bool {
        !self.is_answering() && !self.unflushed.get()
    }

    /// Whether the connection holds nothing of a message: it may be taken apart.
    ///
    /// A partial head counts as something only once it was read; hyper treats a connection that
    /// has read one as busy, and taking it apart then would cost the next request its keep-alive.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_answered()
            && (self.called.get() || !self.touched.get())
            && self.drained.get()
            && self.violation.get().is_none()
            && self.screen.borrow().at_boundary()
    }

    /// Whether the client owes bytes of the request that is being answered.
    pub(super) fn is_in_body(&self) -> bool {
        self.calls.get() == self.screen.borrow().heads() && self.is_reading_body()
    }

    fn is_reading_body(&self) -> bool {
        self.screen.borrow().in_body() || self.violation.get().is_some_and(|found| found.in_body)
    }

    /// What hyper writes while nobody has given it an answer is its own word on a head that it does
    /// not take. The driver has a better one, so that one is dropped.
    fn is_hypers_own_answer(&self) -> bool {
        self.busy.get() == 0 && !self.unflushed.get()
    }

    fn observe_read(&self, buf: &mut ReadBuf<'_>, before: usize) -> Poll<io::Result<()>> {
        let read = buf.filled().len() - before;
        if read == 0 {
            return self.observe_end();
        }
        self.touched.set(true);
        self.read.set(self.read.get() + read as u64);
        let mut screen = self.screen.borrow_mut();
        let heads = screen.heads();
        let verdict = screen.admit(&buf.filled()[before..]);
        if !screen.in_head() {
            self.head_since.set(None);
        } else if self.head_since.get().is_none() || screen.heads() > heads {
            self.head_since.set(Some(Instant::now()));
        }
        let Err(violation) = verdict else { return Poll::Ready(Ok(())) };
        self.violation.set(Some(violation));
        let admitted = before + violation.admitted;
        // After an upgrade it is the tunnel's; one read is what bounds it.
        *self.refused.borrow_mut() = Bytes::copy_from_slice(&buf.filled()[admitted..]);
        buf.set_filled(admitted);
        match violation {
            Violation { admitted: 1.., .. } => Poll::Ready(Ok(())),
            Violation { in_body: true, .. } => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            Violation { .. } => Poll::Pending,
        }
    }

    /// hyper takes the client's end for its departure, and would drop the answers that are due; it
    /// is not told before they are over. How long that may take is the driver's to say.
    fn observe_end(&self) -> Poll<io::Result<()>> {
        self.ended.set(true);
        if !self.is_answered() && self.screen.borrow().at_boundary() {
            self.drained.set(true);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn observe_write(&self, written: &Poll<io::Result<usize>>) {
        self.unflushed.set(true);
        match written {
            Poll::Ready(written) => {
                let bytes = written.as_ref().map_or(0, |bytes| *bytes);
                self.written.set(self.written.get() + bytes as u64);
                self.blocked_since.set(None);
            }
            Poll::Pending => self.observe_blocked(),
        }
    }

    fn observe_blocked(&self) {
        if self.blocked_since.get().is_none() {
            self.blocked_since.set(Some(Instant::now()));
        }
    }
}
