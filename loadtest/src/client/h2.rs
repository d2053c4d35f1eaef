//! HTTP/2 by the frame: what is sent is not looked at, so it can break every rule.
//!
//! Header fields are written as literals; the node is told to use no dynamic table, so that of its
//! answers the status can be read without keeping one.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Stream, is_timeout};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// SETTINGS_HEADER_TABLE_SIZE and SETTINGS_INITIAL_WINDOW_SIZE.
const TABLE_SIZE: u16 = 1;
pub(crate) const WINDOW_SIZE: u16 = 4;

pub(crate) struct H2 {
    stream: Stream,
    /// Read and not yet a frame.
    buffer: Vec<u8>,
    next: u32,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What the next moment brings.
#[derive(Debug)]
pub(crate) enum Event {
    Frame(Frame),
    /// Nothing within the time one would wait.
    Silence,
    Closed,
}

/// What became of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: u16,
    pub bytes: usize,
    pub reset: Option<u32>,
}

impl H2 {
    /// Says the preface; frames of the other side are answered as they are read.
    pub(crate) fn start(mut stream: Stream, settings: &[(u16, u32)]) -> Result<Self> {
        let mut payload = Vec::new();
        for (key, value) in [(TABLE_SIZE, 0)].iter().chain(settings) {
            payload.extend(key.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat())?;
        Ok(Self { stream, buffer: Vec::new(), next: 1 })
    }

    pub(crate) fn raw(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// The id of a new stream.
    pub(crate) fn open(&mut self) -> u32 {
        let id = self.next;
        self.next += 2;
        id
    }

    /// Within the stream's patience.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame; PINGs and SETTINGS are acknowledged on the way.
    pub(crate) fn event(&mut self, patience: Duration) -> io::Result<Event> {
        let event = self.unanswered(patience)?;
        if let Event::Frame(Frame { kind: kind @ (PING | SETTINGS), flags, payload, .. }) = &event
            && flags & ACK == 0
        {
            let payload: &[u8] = if *kind == PING { payload } else { &[] };
            let answer = frame(*kind, ACK, 0, payload);
            // Whoever has closed meanwhile is found closed by the next read.
            drop(self.stream.write_all(&answer));
        }
        Ok(event)
    }

    /// The next frame, and nobody is told.
    pub(crate) fn unanswered(&mut self, patience: Duration) -> io::Result<Event> {
        const CHUNK: usize = 16 * 1024;
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.buffered() {
                return Ok(Event::Frame(frame));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream.set_patience(left)?;
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Event::Closed),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if is_timeout(&error) => return Ok(Event::Silence),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Reset, or ended without the farewell of TLS.
                Err(_) => return Ok(Event::Closed),
            }
        }
    }

    fn buffered(&mut self) -> Option<Frame> {
        let head = self.buffer.first_chunk::<9>()?;
        let [a, b, c, kind, flags, stream @ ..] = *head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff, payload })
    }

    /// One request without a body, as a good client does it.
    pub(crate) fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        let id = self.open();
        self.send(&request(id, "GET", host, path, &[], true))?;
        let mut answers = self.answers(&[id], super::PATIENCE)?;
        answers.remove(&id).context("no answer")
    }

    /// Reads until all of these streams have ended. What was read of a body may be sent again.
    pub(crate) fn answers(
        &mut self,
        ids: &[u32],
        patience: Duration,
    ) -> Result<BTreeMap<u32, Answer>> {
        let deadline = Instant::now() + patience;
        let mut answers: BTreeMap<u32, Answer> =
            ids.iter().map(|id| (*id, Answer::default())).collect();
        let mut open = ids.len();
        while open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = match self.event(left)? {
                Event::Frame(frame) => frame,
                Event::Silence => bail!("{open} streams without an end after {patience:?}"),
                Event::Closed => bail!("closed with {open} streams open"),
            };
            if frame.kind == GOAWAY {
                ensure!(frame.code() == Some(0), "GOAWAY {:?}", frame.code());
            }
            let Some(answer) = answers.get_mut(&frame.stream) else { continue };
            let mut ended = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
            match frame.kind {
                HEADERS if answer.status == 0 => {
                    answer.status = status(&frame.payload).context("no status")?;
                }
                DATA if !frame.payload.is_empty() => {
                    answer.bytes += frame.payload.len();
                    let more = u32::try_from(frame.payload.len())?.to_be_bytes();
                    let connection = self::frame(WINDOW_UPDATE, 0, 0, &more);
                    let stream = self::frame(WINDOW_UPDATE, 0, frame.stream, &more);
                    let both = if ended { connection } else { [connection, stream].concat() };
                    self.send(&both)?;
                }
                RST_STREAM => {
                    answer.reset = frame.code();
                    ended = true;
                }
                _ => {}
            }
            open -= usize::from(ended);
        }
        Ok(answers)
    }
}

impl Frame {
    /// Of RST_STREAM and GOAWAY.
    pub(crate) fn code(&self) -> Option<u32> {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        Some(u32::from_be_bytes(*self.payload.get(at..)?.first_chunk()?))
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are small").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A HEADERS frame with the four pseudo-fields, and these.
pub(crate) fn request(
    id: u32,
    method: &str,
    host: &str,
    path: &str,
    more: &[(&str, &str)],
    ends: bool,
) -> Vec<u8> {
    let mut block =
        fields(&[(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]);
    block.extend(fields(more));
    frame(HEADERS, END_HEADERS | if ends { END_STREAM } else { 0 }, id, &block)
}

/// Literals without indexing and without Huffman's code, whatever is in them.
pub(crate) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// With a prefix of seven bits (RFC 7541, 5.1).
fn integer(block: &mut Vec<u8>, mut value: usize) {
    if value < 0x7f {
        block.push(value as u8);
        return;
    }
    block.push(0x7f);
    value -= 0x7f;
    while value >= 0x80 {
        block.push(value as u8 | 0x80);
        value >>= 7;
    }
    block.push(value as u8);
}

/// The status, which comes first in an answer (RFC 9113, 8.3.2).
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let mut block = block;
    // The table's new size may be said first.
    while let [first, rest @ ..] = block
        && first & 0xe0 == 0x20
    {
        block = rest;
    }
    let (&first, rest) = block.split_first()?;
    if first & 0x80 != 0 {
        return INDEXED.get(usize::from(first & 0x7f).checked_sub(8)?).copied();
    }
    // A literal whose name is that of an entry of the static table with the name :status.
    let index = if first & 0x40 != 0 { first & 0x3f } else { first & 0x0f };
    if !(8..=14).contains(&index) {
        return None;
    }
    let (&length, rest) = rest.split_first()?;
    let value = rest.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return std::str::from_utf8(value).ok()?.parse().ok();
    }
    digits(value)
}

/// Three digits in Huffman's code: 0 to 2 have five bits, the others six.
fn digits(value: &[u8]) -> Option<u16> {
    let bits = value.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let mut left = 8 * value.len() as u32;
    let mut number = 0;
    for _ in 0..3 {
        let five = (bits >> left.checked_sub(5)?) & 0x1f;
        let digit = if five <= 2 {
            left -= 5;
            five
        } else {
            left = left.checked_sub(6)?;
            ((bits >> left) & 0x3f).checked_sub(0x19)? + 3
        };
        number = number * 10 + u16::try_from(digit).ok()?;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_each_form() {
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x20, 0x8d]), Some(404));
        assert_eq!(status(&[0x08, 3, b'5', b'0', b'2']), Some(502));
        // 503 and 431 as Huffman's code: 011011 00000 011001, 011010 011001 00001.
        assert_eq!(status(&[0x48, 0x83, 0b0110_1100, 0b0000_1100, 0b1111_1111]), Some(503));
        assert_eq!(status(&[0x48, 0x83, 0b0110_1001, 0b1001_0000, 0b1111_1111]), Some(431));
    }

    #[test]
    fn long_values_have_long_lengths() {
        let mut block = Vec::new();
        integer(&mut block, 1337);
        assert_eq!(block, [0x7f, 0xba, 0x09]);
    }
}
