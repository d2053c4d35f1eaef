//! Counts the frames by which a peer makes h2 end a connection.
//!
//! An empty DATA frame that ends no stream means nothing. h2 (0.4.20) takes the 101st in the life of a
//! connection for an attack, and ends it with everything on it. From clients they are one; but hyper's
//! server sends one for each empty piece of a body, an echo of calls of gRPC one for each call. h2 does
//! not tell of them, so they are counted as they pass by, and the connection is retired in time.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::frames::{Frames, Header, flag, kind};

/// Empty DATA frames of one connection so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Empties(Rc<Cell<u32>>);

/// A transport whose incoming frames are looked at.
pub(super) struct Watched<T> {
    io: T,
    frames: Frames,
    empties: Empties,
}

/// A connection with so many takes no further stream. As many again are left to those that go on.
const EMPTIES_MAX: u32 = 50;

// === impl Empties ===

impl Empties {
    pub(super) fn are_too_many(&self) -> bool {
        self.0.get() >= EMPTIES_MAX
    }

    fn see(&self, Header { length, kind, flags }: Header) {
        if kind == kind::DATA && length == 0 && flags & flag::END_STREAM == 0 {
            self.0.update(|n| n.saturating_add(1));
        }
    }
}

// === impl Watched ===

impl<T> Watched<T> {
    /// A server sends no preface but its first frame.
    pub(super) fn new(io: T) -> (Self, Empties) {
        let empties = Empties::default();
        (Self { io, frames: Frames::after(0), empties: empties.clone() }, empties)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, frames, empties } = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(io).poll_read(cx, buf))?;
        frames.read(&buf.filled()[before..], |header| empties.see(header));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_data_that_ends_no_stream_counts_however_it_is_cut() {
        let frame = |kind, flags, length: u8| {
            let header = [0, 0, length, kind, flags, 0, 0, 0, 1];
            [&header[..], &vec![0; usize::from(length)]].concat()
        };
        let harmless = [
            frame(kind::DATA, flag::END_STREAM, 0),
            frame(kind::DATA, 0, 9),
            frame(kind::SETTINGS, 0, 0),
        ]
        .concat();
        let empty = frame(kind::DATA, 0, 0);
        for piece in [1, 4, 1000] {
            let (mut frames, empties) = (Frames::after(0), Empties::default());
            for n in 0..EMPTIES_MAX {
                assert_eq!((empties.0.get(), empties.are_too_many()), (n, false));
                for bytes in [&harmless, &empty].into_iter().flat_map(|bytes| bytes.chunks(piece)) {
                    frames.read(bytes, |header| empties.see(header));
                }
            }
            assert!(empties.are_too_many());
        }
    }
}
