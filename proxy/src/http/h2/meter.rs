//! Counts what an HTTP/2 client sends that is not a request.
//!
//! h2 bounds what costs memory. What only costs CPU (SETTINGS, PING, PRIORITY, WINDOW_UPDATE,
//! unknown frames, RST_STREAM on closed streams) it answers for ever, so the frame headers are
//! followed here as the bytes pass by.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::http::frames::{Frames, Header, flag, kind};
use crate::io::stream::Stream;

/// A transport whose incoming frames are counted.
pub(super) struct Metered {
    stream: Stream,
    meter: Rc<RefCell<Meter>>,
}

/// Follows the frame headers of one connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Meter {
    frames: Frames,
    control: u32,
    resets: u32,
    /// Header blocks since the connection's turn began.
    heads: u32,
    settings_acknowledged: bool,
    /// A header block began and has not ended.
    in_header_block: bool,
    since: Marks,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Marks {
    window: Option<Instant>,
    header_block: Option<Instant>,
}

/// What a connection did too much or too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    ControlFrames,
    Resets,
    HeaderBlock,
    SettingsAck,
}

const PREFACE_BYTES: usize = 24;

/// Header blocks after which a connection reads no more before the requests of it have been looked at.
///
/// h2 decodes all that it can read, and a decoded field takes a hundred bytes where the client sent
/// one (a reference to its table): with this, a read and some more are decoded at a time, and not what
/// a hundred streams may have.
const HEADS_PER_TURN: u32 = 16;

/// Counts are kept for this long.
const WINDOW: Duration = Duration::from_secs(10);

/// Longest wait for the end of a header block and for the acknowledgement of our SETTINGS.
const PATIENCE: Duration = Duration::from_secs(10);

// === impl Metered ===

impl Metered {
    /// Reads to the end and throws away what comes; what was encrypted stays so.
    pub(super) fn poll_discard(&self, left: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_discard(left, cx)
    }
}

// === impl Meter ===

impl Meter {
    pub(crate) fn new() -> Self {
        Self { frames: Frames::after(PREFACE_BYTES), ..Self::default() }
    }

    pub(crate) fn read(&mut self, bytes: &[u8]) {
        let Self { frames, control, resets, heads, settings_acknowledged, in_header_block, .. } =
            self;
        frames.read(bytes, |Header { kind, flags, .. }| match kind {
            kind::DATA => {}
            kind::HEADERS | kind::CONTINUATION => {
                *heads += 1;
                *in_header_block = flags & flag::END_HEADERS == 0;
            }
            kind::RST_STREAM => {
                *resets += 1;
                *control += 1;
            }
            kind::SETTINGS if flags & flag::ACK != 0 => {
                *settings_acknowledged = true;
                *control += 1;
            }
            _ => *control += 1,
        });
    }

    /// The connection is polled from here on.
    pub(super) fn begin_turn(&mut self) {
        self.heads = 0;
    }

    /// Whether others, and the requests that were read, should have their turn first.
    fn has_had_its_turn(&self) -> bool {
        self.heads >= HEADS_PER_TURN
    }

    /// Whether a count is over its bound; cheap enough for every poll.
    pub(crate) fn excess(&self, control_max: u32, resets_max: u32) -> Option<Excess> {
        if self.control > control_max {
            Some(Excess::ControlFrames)
        } else if self.resets > resets_max {
            Some(Excess::Resets)
        } else {
            None
        }
    }

    /// Looks at the time: begins a new window, and finds what takes too long. `age` is the
    /// connection's.
    pub(super) fn look(&mut self, age: Duration, now: Instant) -> Option<Excess> {
        let window = *self.since.window.get_or_insert(now);
        if now - window >= WINDOW {
            self.since.window = Some(now);
            self.control = 0;
            self.resets = 0;
        }
        if !self.in_header_block {
            self.since.header_block = None;
        } else if now - *self.since.header_block.get_or_insert(now) >= PATIENCE {
            return Some(Excess::HeaderBlock);
        }
        (!self.settings_acknowledged && age >= PATIENCE).then_some(Excess::SettingsAck)
    }
}

// === impl Metered ===

impl Metered {
    pub(super) fn new(stream: Stream, meter: Rc<RefCell<Meter>>) -> Self {
        Self { stream, meter }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.meter.borrow().has_had_its_turn() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.meter.borrow_mut().read(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::frames::HEADER_BYTES;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(HEADER_BYTES + payload, 0xff);
        bytes
    }

    /// Shows the meter a preface and `frames`, cut into pieces of `piece` bytes.
    fn metered(frames: &[Vec<u8>], piece: usize) -> Meter {
        let mut meter = Meter::new();
        let bytes = [vec![b'P'; PREFACE_BYTES], frames.concat()].concat();
        bytes.chunks(piece).for_each(|bytes| meter.read(bytes));
        meter
    }

    #[test]
    fn floods_are_counted_however_the_bytes_are_cut() {
        const PING: u8 = 6;
        let request = [frame(kind::HEADERS, 5, 40), frame(kind::DATA, 1, 1000)];
        let requests: Vec<_> = request.iter().cycle().take(200).cloned().collect();
        for piece in [1, 7, 64, 100_000] {
            assert_eq!(metered(&requests, piece).excess(10, 3), None);
            let flood = vec![frame(PING, 0, 8); 11];
            assert_eq!(metered(&flood, piece).excess(10, 3), Some(Excess::ControlFrames));
            let resets = vec![frame(kind::RST_STREAM, 0, 4); 4];
            assert_eq!(metered(&resets, piece).excess(10, 3), Some(Excess::Resets));
        }
    }

    #[test]
    fn a_connection_has_had_its_turn_after_so_many_heads_and_gets_another() {
        let heads = |count| vec![frame(kind::HEADERS, 5, 40); count];
        let few = metered(&heads(HEADS_PER_TURN as usize - 1), 64);
        assert!(!few.has_had_its_turn());
        let mut many = metered(&heads(HEADS_PER_TURN as usize), 64);
        assert!(many.has_had_its_turn());
        many.begin_turn();
        assert!(!many.has_had_its_turn());
        let data = metered(&vec![frame(kind::DATA, 0, 40); 100], 64);
        assert!(!data.has_had_its_turn(), "data is not decoded to more than was sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_window_forgives() {
        let mut meter = metered(&vec![frame(6, 0, 8); 11], 64);
        meter.settings_acknowledged = true;
        assert_eq!(meter.look(Duration::ZERO, Instant::now()), None);
        tokio::time::advance(WINDOW).await;
        assert_eq!(meter.look(WINDOW, Instant::now()), None);
        assert_eq!(meter.excess(10, 3), None);
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_headers_and_unacknowledged_settings_run_out_of_time() {
        let mut meter = metered(&[frame(kind::HEADERS, 0, 10)], 64);
        assert_eq!(meter.look(Duration::ZERO, Instant::now()), None);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(meter.look(PATIENCE, Instant::now()), Some(Excess::HeaderBlock));
        meter.read(&frame(kind::CONTINUATION, flag::END_HEADERS, 3));
        assert_eq!(meter.look(PATIENCE, Instant::now()), Some(Excess::SettingsAck));
        meter.read(&frame(kind::SETTINGS, flag::ACK, 0));
        assert_eq!(meter.look(PATIENCE, Instant::now()), None);
    }
}
