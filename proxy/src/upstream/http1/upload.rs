//! A request on its way to the instance, and whose turn it is.
//!
//! Head, chunk sizes and small data gather in a buffer that the worker lends; a large piece of the
//! body leaves from where it is, in the same write. Nothing is held while the client is waited for.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::request;
use http_body::Body as _;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::ask::{Framing, encode, write_chunk_size, write_end};
use crate::body::Body;
use crate::error::{Code, Failure};
use crate::io::cork::Buffers;

pub(super) struct Upload {
    body: Body,
    framing: Framing,
    /// What leaves before `data`; lent, unless it is empty.
    buffer: Vec<u8>,
    start: usize,
    data: Bytes,
    /// What leaves behind `data`.
    tail: &'static [u8],
    /// All of it is in the buffer, or gone.
    has_ended: bool,
    waits_for_client: bool,
    /// When the client's last bytes came.
    since: Option<Instant>,
    buffers: Buffers,
}

/// Who broke off.
#[derive(Debug)]
pub(super) enum Broken {
    Body(Failure),
    Socket(io::Error),
}

/// Gathered before a write is tried.
const GATHER_BYTES_MAX: usize = 16 * 1024;

/// Data up to this is copied, so that it leaves in one piece with what is around it.
const COPY_BYTES_MAX: usize = 4 * 1024;

/// Writes in one turn, after which the answer is looked at: it may be there already.
const WRITES_MAX: usize = 16;

// === impl Upload ===

impl Upload {
    /// The request of `head` and `body`, of which nothing has been sent.
    pub(super) fn new(
        head: &request::Parts,
        body: Body,
        buffers: &Buffers,
    ) -> Result<Self, Failure> {
        let mut buffer = buffers.lend();
        let encoded = encode(head, &body, &mut buffer);
        let has_ended = matches!(encoded, Ok(Framing::Length(0)));
        let framing = encoded.inspect_err(|_| buffers.take_back(std::mem::take(&mut buffer)))?;
        Ok(Self {
            body: if has_ended { Body::Empty } else { body },
            framing,
            buffer,
            start: 0,
            data: Bytes::new(),
            tail: b"",
            has_ended,
            waits_for_client: false,
            since: (!has_ended).then(Instant::now),
            buffers: buffers.clone(),
        })
    }

    /// The kernel has taken the whole request.
    pub(super) fn is_sent(&self) -> bool {
        self.has_ended && self.is_written()
    }

    /// Everything that came was sent, and the next is for the client to send: no fault of the
    /// instance.
    pub(super) fn waits_for_client(&self) -> bool {
        self.waits_for_client
    }

    /// When the client's last bytes came, if the request has a body.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Sends what there is. Ready when the request has been sent.
    pub(super) fn poll_send(
        &mut self,
        socket: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..WRITES_MAX {
            let fill = self.fill(cx).map_err(Broken::Body)?;
            if !self.is_written() {
                let written = ready!(self.poll_write(socket, cx)).map_err(Broken::Socket)?;
                self.advance(written);
            }
            if self.is_written() && (self.has_ended || fill.is_pending()) {
                self.give_back();
                self.waits_for_client = !self.has_ended;
                return fill.map(Ok);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes what the body has. Ready when there is enough for a write, or nothing more comes.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        self.waits_for_client = false;
        while !self.has_ended && self.has_room() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return Ok(Poll::Pending);
            };
            self.since = Some(Instant::now());
            if self.buffer.capacity() == 0 {
                self.buffer = self.buffers.lend();
            }
            match frame.transpose()?.map(http_body::Frame::into_data) {
                Some(Ok(data)) => self.add(data)?,
                Some(Err(frame)) => self.end(frame.trailers_ref())?,
                None => self.end(None)?,
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Whether what comes next can be added behind what is there.
    fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty() && self.buffer.len() < GATHER_BYTES_MAX
    }

    fn add(&mut self, data: Bytes) -> Result<(), Failure> {
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.framing {
            Framing::Length(left) => {
                let size = data.len() as u64;
                *left = left.checked_sub(size).ok_or_else(|| {
                    Failure::new(Code::PP02).because("a body that is longer than it says")
                })?;
                // Its end is known without asking for it.
                self.has_ended = *left == 0;
            }
            Framing::Chunked { .. } => {
                write_chunk_size(data.len(), &mut self.buffer);
                self.tail = b"\r\n";
            }
        }
        if data.len() <= COPY_BYTES_MAX {
            self.buffer.extend_from_slice(&data);
            self.buffer.extend_from_slice(std::mem::take(&mut self.tail));
        } else {
            self.data = data;
        }
        if self.has_ended {
            self.body = Body::Empty;
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&http::HeaderMap>) -> Result<(), Failure> {
        match &self.framing {
            Framing::Length(_) => {
                return Err(Failure::new(Code::PP09).because("a body that is shorter than it says"));
            }
            Framing::Chunked { trailers: announced } => {
                write_end(trailers, announced, &mut self.buffer);
            }
        }
        self.has_ended = true;
        self.body = Body::Empty;
        Ok(())
    }

    fn is_written(&self) -> bool {
        self.start == self.buffer.len() && self.data.is_empty() && self.tail.is_empty()
    }

    fn poll_write(
        &self,
        socket: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let head = &self.buffer[self.start..];
        let written = if self.data.is_empty() && self.tail.is_empty() {
            ready!(Pin::new(socket).poll_write(cx, head))?
        } else {
            let pieces = [head, &self.data, self.tail].map(IoSlice::new);
            ready!(Pin::new(socket).poll_write_vectored(cx, &pieces))?
        };
        let is_taken = if written > 0 { Ok(written) } else { Err(io::ErrorKind::WriteZero.into()) };
        Poll::Ready(is_taken)
    }

    fn advance(&mut self, written: usize) {
        let of_buffer = written.min(self.buffer.len() - self.start);
        self.start += of_buffer;
        let of_data = (written - of_buffer).min(self.data.len());
        self.data.advance(of_data);
        self.tail = &self.tail[written - of_buffer - of_data..];
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    fn give_back(&mut self) {
        self.start = 0;
        self.buffers.take_back(std::mem::take(&mut self.buffer));
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests;
