//! The body of an answer, read from its connection as it is asked for.
//!
//! A little at a time is read into a buffer that the worker lends, and copied to a block of its own
//! size. Once a read fills that buffer the next ones go to blocks of their own, larger while they are
//! filled, and nothing is copied. While the instance is waited for there is neither.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BufMut as _;
use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::Home;
use super::decode::{Broken, Decoder, End, Part, Step};
use super::received::LENT_BYTES;
use super::socket::Socket;
use crate::error::{BoxError, Code, Failure};
use crate::io::cork::Buffers;
use crate::upstream::patience::Patience;
use crate::upstream::pool::{Look, is_quiet};

/// Ends with the socket going back to the pool; dropped before its end it closes the socket.
pub(super) struct Download {
    /// `None` once nothing more is read.
    socket: Option<Socket>,
    decoder: Decoder,
    /// Body that has not been given out.
    data: Bytes,
    /// What comes behind it, and is the last.
    last: Option<Result<HeaderMap, Broken>>,
    /// Read and not decoded yet.
    read: Bytes,
    /// How much the next read asks for.
    read_bytes: usize,
    patience: Patience,
    /// Where the socket goes if the exchange leaves it clean.
    home: Home,
    buffers: Buffers,
}

/// Bytes of one read at most.
const READ_BYTES_MAX: usize = 256 * 1024;

type Item = Option<Result<Frame<Bytes>, Failure>>;

/// Gives the socket of an exchange that is over back, if there is a pool for it and nothing on it that
/// nobody asked for.
pub(super) fn recycle(socket: Socket, home: &Home) {
    let Some((pool, address)) = home else { return };
    if let Some(stream) = socket.into_stream()
        && is_quiet(&stream.tcp, Look::Glance)
    {
        pool.put(*address, stream, Instant::now());
    }
}

// === impl Download ===

impl Download {
    /// The rest of a body of which `part` came with the head.
    pub(super) fn new(
        socket: Socket,
        decoder: Decoder,
        part: Part,
        stall: Duration,
        home: Home,
        buffers: Buffers,
    ) -> Self {
        let mut download = Self {
            socket: Some(socket),
            decoder,
            data: Bytes::new(),
            last: None,
            read: Bytes::new(),
            read_bytes: LENT_BYTES,
            patience: Patience::new(stall),
            home,
            buffers,
        };
        download.take(part);
        // The next byte is waited for from here on, whenever it is asked for.
        download.patience.count_from(Instant::now());
        download
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        loop {
            if !self.data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.data)))));
            }
            if let Some(last) = self.last.take() {
                let last = last.map(Frame::trailers);
                return Poll::Ready(Some(last.map_err(failed)));
            }
            let Some(socket) = &self.socket else { return Poll::Ready(None) };
            if socket.is_interrupted(cx) {
                self.socket = None;
                // It is the client who broke it off.
                let failure = failed("the request was not sent to its end").excused();
                return Poll::Ready(Some(Err(failure)));
            }
            if self.decode() {
                self.patience.renew();
                continue;
            }
            match self.poll_read(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => {
                    self.last = self.decoder.end().err().map(Err);
                    self.socket = None;
                }
                Poll::Ready(Err(error)) => {
                    self.socket = None;
                    return Poll::Ready(Some(Err(failed(error))));
                }
                Poll::Pending => {
                    ready!(self.patience.poll_spent(cx));
                    self.socket = None;
                    // A stream of events may be silent for long.
                    return Poll::Ready(Some(Err(failed("no byte in time").excused())));
                }
            }
        }
    }

    /// Takes the next piece from what was read; whether there was one, or an end.
    fn decode(&mut self) -> bool {
        match self.decoder.step(&self.read) {
            Ok(Step::Data { skip, data }) => {
                self.read.advance(skip);
                self.data = self.read.split_to(data);
                if self.decoder.left() == Some(0) {
                    self.end(End::Whole { trailers: None, is_clean: self.read.is_empty() });
                }
                true
            }
            Ok(Step::More) => {
                self.read = Bytes::new();
                false
            }
            Ok(Step::End { skip, trailers }) => {
                self.end(End::Whole { trailers, is_clean: skip == self.read.len() });
                true
            }
            Err(broken) => {
                self.end(End::Broken(broken));
                true
            }
        }
    }

    fn take(&mut self, Part { data, end }: Part) {
        if !data.is_empty() {
            self.patience.renew();
        }
        self.data = data;
        if let Some(end) = end {
            self.end(end);
        }
    }

    fn end(&mut self, end: End) {
        let socket = self.socket.take();
        self.read = Bytes::new();
        match (end, socket) {
            (End::Whole { trailers, is_clean }, Some(socket)) => {
                self.last = trailers.map(Ok);
                if is_clean {
                    recycle(socket, &self.home);
                }
            }
            (End::Whole { trailers, .. }, None) => self.last = trailers.map(Ok),
            (End::Broken(broken), _) => self.last = Some(Err(broken)),
        }
    }

    /// Reads once; whether the connection goes on.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(socket) = &mut self.socket else { return Poll::Ready(Ok(false)) };
        // Nothing is allocated before something can be read.
        ready!(socket.poll_read_ready(cx))?;
        let asked = self.buffers.room();
        if self.read_bytes <= LENT_BYTES {
            let mut lent = self.buffers.lend();
            let room = LENT_BYTES.min(asked);
            let read = poll_read_buf(Pin::new(socket), cx, &mut (&mut lent).limit(room));
            let part = self.decoder.read(&lent);
            self.buffers.take_back(lent);
            let read = ready!(read)?;
            if read == LENT_BYTES {
                self.read_bytes = 2 * LENT_BYTES;
            }
            self.take(part);
            return Poll::Ready(Ok(read > 0));
        }
        let left = self.decoder.left().and_then(|left| usize::try_from(left).ok());
        let room = left.unwrap_or(usize::MAX).min(self.read_bytes).min(asked);
        let mut block = BytesMut::with_capacity(room);
        let read = ready!(poll_read_buf(Pin::new(socket), cx, &mut (&mut block).limit(room)))?;
        if read == self.read_bytes {
            self.read_bytes = (2 * read).min(READ_BYTES_MAX);
        } else if read < room / 4 {
            // A few bytes must not keep a large block.
            self.read_bytes = LENT_BYTES;
            block = block[..].into();
        }
        self.read = block.freeze();
        Poll::Ready(Ok(read > 0))
    }
}

fn failed(why: impl Into<BoxError>) -> Failure {
    Failure::new(Code::PU05).because(why)
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Item> {
        self.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.socket.is_none() && self.data.is_empty() && self.last.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.decoder.left() {
            Some(left) => SizeHint::with_exact(left + self.data.len() as u64),
            None => SizeHint::default(),
        }
    }
}
