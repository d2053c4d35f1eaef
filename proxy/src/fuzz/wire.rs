//! A connection without a network: bytes to read, a place to write, and no waiting for anything.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Hands out its bytes in pieces; what is written to it is only counted.
pub(super) struct Wire<R> {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
    reading: R,
    written: Rc<Cell<usize>>,
    /// Who reads before something was written, where that comes first.
    waiting: Option<Waker>,
}

/// What happens to bytes on their way to the reader, and at their end.
pub(super) trait Reading: Unpin {
    /// How many of `bytes` may be read; fewer than all of them are the last ones ever.
    fn admit(&mut self, bytes: &[u8]) -> usize;

    /// What comes behind the last byte: the end of the connection, an error, or nothing for ever.
    fn poll_end(&self) -> Poll<io::Result<()>>;

    /// Whether nothing can be read before something was written: the other side is asked first.
    fn is_answer(&self) -> bool {
        false
    }
}

/// Everything can be read, then the connection is closed.
pub(super) struct Plain;

impl Reading for Plain {
    fn admit(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn poll_end(&self) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The same, once something was written.
pub(super) struct Asked;

impl Reading for Asked {
    fn admit(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn poll_end(&self) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn is_answer(&self) -> bool {
        true
    }
}

/// Once something was written everything can be read, then nothing comes for ever.
pub(super) struct Silent;

impl Reading for Silent {
    fn admit(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn poll_end(&self) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn is_answer(&self) -> bool {
        true
    }
}

// === impl Wire ===

impl<R: Reading> Wire<R> {
    pub(super) fn new(bytes: &[u8], piece: usize, reading: R) -> Self {
        Self { bytes: bytes.to_vec(), at: 0, piece, reading, written: Rc::default(), waiting: None }
    }

    /// Counts the bytes written.
    pub(super) fn written(&self) -> Rc<Cell<usize>> {
        self.written.clone()
    }

    /// How much has been read.
    pub(super) fn read(&self) -> usize {
        self.at
    }
}

impl<R: Reading> AsyncRead for Wire<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.reading.is_answer() && this.written.get() == 0 {
            this.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let left = &this.bytes[this.at..];
        if left.is_empty() {
            return this.reading.poll_end();
        }
        let piece = &left[..this.piece.min(left.len()).min(buf.remaining())];
        let admitted = this.reading.admit(piece);
        if admitted < piece.len() {
            this.bytes.truncate(this.at + admitted);
        }
        if admitted == 0 {
            return this.reading.poll_end();
        }
        buf.put_slice(&this.bytes[this.at..this.at + admitted]);
        this.at += admitted;
        Poll::Ready(Ok(()))
    }
}

impl<R: Reading> AsyncWrite for Wire<R> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(reader) = self.waiting.take() {
            reader.wake();
        }
        self.written.set(self.written.get() + bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls `future` until it is ready or waits for what never comes.
pub(super) fn run<F: Future>(future: F) -> Option<F::Output> {
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    const POLLS_MAX: usize = 100_000;
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        if !woken.0.swap(false, Ordering::Relaxed) {
            return None;
        }
    }
    panic!("it wakes itself for ever");
}
