//! A client's HTTP/2 stream as bytes both ways: the end of one side is END_STREAM, a drop is a reset.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::share::{Chunk, Holder, Share};

/// One stream whose head has been answered.
pub(super) struct Duplex {
    send: SendStream<Chunk>,
    holder: Rc<Holder>,
    recv: RecvStream,
    received: Bytes,
    sent_end: bool,
}

/// Bytes taken for one write: they are copied, and wait in h2 until the window lets them go.
const WRITE_BYTES_MAX: usize = 16 * 1024;

// === impl Duplex ===

impl Duplex {
    pub(super) fn new(send: SendStream<Chunk>, recv: RecvStream, share: &Rc<Share>) -> Self {
        Self { send, holder: Holder::new(share), recv, received: Bytes::new(), sent_end: false }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.received.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                Some(data) => this.received = data.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let take = this.received.len().min(buf.remaining());
        buf.put_slice(&this.received[..take]);
        this.received.advance(take);
        // The window opens again only for what has been passed on.
        this.recv.flow_control().release_capacity(take).map_err(broken)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Poll::Ready(reason) = this.send.poll_reset(cx) {
            return Poll::Ready(Err(broken(reason.map_or_else(|error| error, h2::Error::from))));
        }
        let room = ready!(this.holder.poll_room(cx)).min(WRITE_BYTES_MAX);
        this.send.reserve_capacity(bytes.len().min(room));
        let mut capacity = this.send.capacity();
        while capacity == 0 {
            capacity = match ready!(this.send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let take = capacity.min(bytes.len()).min(room);
        let chunk = this.holder.hold(Bytes::copy_from_slice(&bytes[..take]));
        this.send.send_data(chunk, false).map_err(broken)?;
        Poll::Ready(Ok(take))
    }

    /// What was written leaves at the end of the connection's turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_end {
            self.sent_end = true;
            let end = self.holder.hold(Bytes::new());
            self.send.send_data(end, true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        if !self.sent_end {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
