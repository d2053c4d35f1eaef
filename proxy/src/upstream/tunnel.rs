//! A stream of bytes to an instance: a socket, or an HTTP/2 stream after a CONNECT.
//!
//! Shutting it down ends one direction (FIN, END_STREAM) and leaves the other; dropping it before
//! both have ended breaks it visibly (RST, RST_STREAM).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connect::{Open, Stream};
use super::http2;
use crate::holdings;

/// Bytes both ways.
pub enum Tunnel {
    Tcp(TcpTunnel),
    H2(H2Tunnel),
}

/// A connection of its own.
pub struct TcpTunnel {
    socket: Socket,
    /// What the instance sent behind its 101, before the socket was ours.
    first: Bytes,
    _open: Open,
}

/// Dropped before its side was shut down it resets the connection, so that the instance does not
/// take what it has for the whole.
struct Socket {
    tcp: TcpStream,
    sent_end: bool,
}

/// One stream of a shared connection.
pub struct H2Tunnel {
    stream: http2::Stream,
    received: Bytes,
    sent_end: bool,
}

/// Bytes written at once to a stream: a copy of them is made.
const WRITE_BYTES_MAX: usize = 64 * 1024;

// === impl Tunnel ===

impl Tunnel {
    pub(super) fn tcp(Stream { tcp, open }: Stream, first: Bytes) -> Self {
        Self::Tcp(TcpTunnel { socket: Socket { tcp, sent_end: false }, first, _open: open })
    }

    pub(super) fn h2(stream: http2::Stream) -> Self {
        Self::H2(H2Tunnel { stream, received: Bytes::new(), sent_end: false })
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tunnel) => tunnel.poll_read(cx, buf),
            Self::H2(tunnel) => tunnel.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tunnel) => Pin::new(&mut tunnel.socket.tcp).poll_write(cx, bytes),
            Self::H2(tunnel) => tunnel.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tunnel) => Pin::new(&mut tunnel.socket.tcp).poll_flush(cx),
            // What was written leaves at the end of the connection's turn.
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tunnel) => {
                tunnel.socket.sent_end = true;
                Pin::new(&mut tunnel.socket.tcp).poll_shutdown(cx)
            }
            Self::H2(tunnel) => Poll::Ready(tunnel.shutdown()),
        }
    }
}

// === impl TcpTunnel ===

impl TcpTunnel {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.socket.tcp).poll_read(cx, buf);
        }
        take(&mut self.first, buf);
        Poll::Ready(Ok(()))
    }
}

// === impl Socket ===

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.sent_end {
            // Fails only on a socket that is gone already.
            let _reset = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

// === impl H2Tunnel ===

impl H2Tunnel {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.received.is_empty() {
            let Some(receiving) = self.stream.receiving() else { return Poll::Ready(Ok(())) };
            match ready!(receiving.poll_data(cx)) {
                Some(bytes) => {
                    self.received = bytes.map_err(broken)?;
                    holdings::current().take(self.received.len());
                }
                None => {
                    self.stream.end_receiving();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let taken = take(&mut self.received, buf);
        if let Some(receiving) = self.stream.receiving() {
            receiving.flow_control().release_capacity(taken).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Some(sending) = self.stream.sending() else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        sending.reserve_capacity(bytes.len().min(WRITE_BYTES_MAX));
        let mut room = sending.capacity();
        while room == 0 {
            match ready!(sending.poll_capacity(cx)) {
                Some(capacity) => room = capacity.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let written = bytes.len().min(room).min(WRITE_BYTES_MAX);
        sending.send_data(Bytes::copy_from_slice(&bytes[..written]), false).map_err(broken)?;
        holdings::current().give(written);
        Poll::Ready(Ok(written))
    }

    fn shutdown(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.sent_end, true) {
            return Ok(());
        }
        let Some(sending) = self.stream.sending() else { return Ok(()) };
        let sent = sending.send_data(Bytes::new(), true).map_err(broken);
        self.stream.end_sending();
        sent
    }
}

/// Moves what fits.
fn take(bytes: &mut Bytes, buf: &mut ReadBuf<'_>) -> usize {
    let taken = bytes.len().min(buf.remaining());
    buf.put_slice(&bytes[..taken]);
    bytes.advance(taken);
    taken
}

fn broken(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() || error.is_go_away() {
        io::ErrorKind::ConnectionReset
    } else {
        io::ErrorKind::BrokenPipe
    };
    io::Error::new(kind, error)
}
