//! A client's transport: cleartext or TLS, the same to everything above.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::error::{Code, Failure};

/// A connected client. TLS is boxed: its state is 1.2 KiB, and the task that holds it moves.
pub enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How much of a client has left.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    #[default]
    None,
    /// It sends no more.
    Ended,
    /// It has reset the connection.
    Gone,
}

/// What is thrown away at once; on the stack.
const DISCARD_BYTES: usize = 16 * 1024;

/// What one client may send for nothing before its connection ends.
pub const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;

// === impl Stream ===

impl Stream {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// What the socket knows of the client's leaving, also behind bytes that nobody has read.
    pub fn departure(&self) -> Departure {
        let is = |interest, closed: fn(Ready) -> bool| {
            let ready = self.tcp().ready(interest).now_or_never();
            ready.is_some_and(|ready| ready.is_ok_and(closed))
        };
        if is(Interest::WRITABLE, Ready::is_write_closed) {
            Departure::Gone
        } else if is(Interest::READABLE, Ready::is_read_closed) {
            Departure::Ended
        } else {
            Departure::None
        }
    }

    /// Makes the coming drop a reset: a clean end would make a part look like the whole.
    pub fn reset(&self) {
        // Fails only on a socket that is gone already.
        let _dead = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// As [`Self::reset`] when it was the instance that broke off, or this node.
    pub fn end_after(&self, failure: &Failure) {
        if matches!(failure.code, Code::PU05 | Code::PL05) {
            self.reset();
        }
    }

    /// Whether bytes have arrived, or the client's end, by the word of the kernel: the runtime learns of
    /// them a turn later.
    pub fn has_bytes(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(recv(self.tcp(), &mut [0; 1][..], flags), Err(Errno::AGAIN))
    }

    /// Reads to the client's end, until the socket breaks or `left` bytes have come, and throws them away;
    /// what was encrypted stays so.
    pub fn poll_discard(&self, left: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
        while *left > 0 {
            if ready!(self.tcp().poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            match self.tcp().try_read(&mut [0; DISCARD_BYTES]) {
                Ok(0) => return Poll::Ready(()),
                Ok(read) => *left = left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }

    /// Whether there is something to read that the socket does not know of any more.
    pub fn has_read_ahead(&self) -> bool {
        match self {
            Self::Tcp(_) => false,
            // Either decrypted bytes or the client's close_notify.
            Self::Tls(stream) => !stream.get_ref().1.wants_read(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
