//! Bytes that were read and not used yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut as _;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

use crate::io::cork::Buffers;

/// In a buffer that the worker lends for one turn; what has to wait for more is moved to a block of
/// its own size, so that nobody keeps a large one while the instance is silent.
pub(super) struct Received {
    bytes: Vec<u8>,
    start: usize,
    is_lent: bool,
    buffers: Buffers,
}

/// Bytes of one read into a lent buffer.
pub(super) const LENT_BYTES: usize = 16 * 1024;

/// Bytes of one read behind what waited for more.
const MORE_BYTES: usize = 4 * 1024;

// === impl Received ===

impl Received {
    pub(super) fn new(buffers: &Buffers) -> Self {
        Self { bytes: Vec::new(), start: 0, is_lent: false, buffers: buffers.clone() }
    }

    /// Reads once; how many bytes came, and 0 at the end of the connection.
    pub(super) fn poll_read(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() == 0 {
            self.bytes = self.buffers.lend();
            self.is_lent = true;
        }
        let room = if self.is_lent { LENT_BYTES } else { MORE_BYTES };
        let room = room.min(self.buffers.room());
        let read = poll_read_buf(Pin::new(socket), cx, &mut (&mut self.bytes).limit(room));
        if read.is_pending() {
            self.settle();
        }
        read
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn skip(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// More is waited for.
    fn settle(&mut self) {
        if self.is_lent {
            let rest = self.bytes().to_vec();
            self.give_back();
            self.bytes = rest;
        } else {
            self.bytes.drain(..self.start);
        }
        self.start = 0;
    }

    fn give_back(&mut self) {
        if std::mem::take(&mut self.is_lent) {
            self.buffers.take_back(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.give_back();
    }
}
