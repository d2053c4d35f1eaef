//! Where the body of an answer is in the bytes of its connection, and where it ends.
//!
//! Nothing is held here but the lines of a trailer section: what is framing is skipped, what is body
//! stays where it was read.

use bytes::Bytes;
use http::HeaderMap;

use super::head::{Limits, Malformed, read_trailers};
use crate::http::screen::is_field_byte;

/// Follows one body.
pub(crate) enum Decoder {
    /// So many bytes more.
    Length(u64),
    Chunked(Chunked),
    /// All that comes until the instance closes.
    Open,
}

/// Follows the chunks of one body and its trailers.
pub(crate) struct Chunked {
    state: State,
    limits: Limits,
    /// Bytes of the current line.
    line: usize,
    /// Bytes of lines that were neither a size nor its end, in the whole body.
    beside: usize,
    trailers: Vec<u8>,
    /// Where the current line of the trailers begins.
    trailer: usize,
    fields: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The size of a chunk, as far as it was read.
    Size(u64),
    /// Spaces behind a size.
    Spaces(u64),
    Extension(u64),
    /// The LF of a size's line.
    SizeEnd(u64),
    Data(u64),
    /// CR and LF behind a chunk.
    DataCr,
    DataLf,
    Trailers,
}

/// A part of a body, in a block of its own.
pub(crate) struct Part {
    pub(crate) data: Bytes,
    /// What is behind it, when nothing more comes.
    pub(crate) end: Option<End>,
}

/// How a body ended.
pub(crate) enum End {
    Whole {
        trailers: Option<HeaderMap>,
        /// Nothing that was read is behind it.
        is_clean: bool,
    },
    Broken(Broken),
}

/// What comes next in the bytes that were shown.
#[derive(Debug)]
pub(crate) enum Step {
    /// `skip` bytes of framing, then `data` bytes of the body.
    Data { skip: usize, data: usize },
    /// All of it was framing, or there is nothing.
    More,
    /// `skip` bytes of framing, then the body is over.
    End { skip: usize, trailers: Option<HeaderMap> },
}

/// Why a body is not believed any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection ended before the body did")]
    Truncated,
    #[error("a chunk's size")]
    Size,
    #[error("a chunk that is longer than it says")]
    Chunk,
    #[error("chunks with too much beside their data")]
    Beside,
    #[error("trailers that are too long")]
    LongTrailers,
    #[error("trailers")]
    Trailers(#[source] Option<Malformed>),
}

/// Longest line of a chunk's size, extensions included; the screen's bound for clients.
const SIZE_LINE_BYTES_MAX: usize = 1024;

/// Spaces and extensions in one body. They cost time and carry nothing.
const BESIDE_BYTES_MAX: usize = 16 * 1024;

// === impl Decoder ===

impl Decoder {
    /// Bytes still to come, where that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Open => None,
        }
    }

    /// Reads on. What it says is framing or body will not be shown again.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, Broken> {
        match self {
            Self::Length(0) => Ok(Step::End { skip: 0, trailers: None }),
            _ if bytes.is_empty() => Ok(Step::More),
            Self::Length(left) => Ok(Step::Data { skip: 0, data: take(left, bytes.len()) }),
            Self::Open => Ok(Step::Data { skip: 0, data: bytes.len() }),
            Self::Chunked(chunked) => chunked.step(bytes),
        }
    }

    /// Reads all of `bytes` and copies what is body: pieces that are small anyway become one.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Part {
        match self {
            Self::Open => Part { data: Bytes::copy_from_slice(bytes), end: None },
            Self::Length(left) => {
                let data = Bytes::copy_from_slice(&bytes[..take(left, bytes.len())]);
                let is_clean = data.len() == bytes.len();
                let end = (*left == 0).then_some(End::Whole { trailers: None, is_clean });
                Part { data, end }
            }
            Self::Chunked(_) => self.read_chunks(bytes),
        }
    }

    fn read_chunks(&mut self, bytes: &[u8]) -> Part {
        let mut data = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        let end = loop {
            match self.step(rest) {
                Ok(Step::Data { skip, data: piece }) => {
                    data.extend_from_slice(&rest[skip..skip + piece]);
                    rest = &rest[skip + piece..];
                }
                Ok(Step::More) => break None,
                Ok(Step::End { skip, trailers }) => {
                    break Some(End::Whole { trailers, is_clean: skip == rest.len() });
                }
                Err(broken) => break Some(End::Broken(broken)),
            }
        };
        Part { data: data.into(), end }
    }

    /// The instance has closed its side.
    pub(crate) fn end(&self) -> Result<(), Broken> {
        match self {
            Self::Open | Self::Length(0) => Ok(()),
            Self::Length(_) | Self::Chunked(_) => Err(Broken::Truncated),
        }
    }
}

// === impl Chunked ===

impl Chunked {
    pub(crate) fn new(limits: Limits) -> Self {
        let state = State::Size(0);
        Self { state, limits, line: 0, beside: 0, trailers: Vec::new(), trailer: 0, fields: 0 }
    }

    fn step(&mut self, bytes: &[u8]) -> Result<Step, Broken> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match &mut self.state {
                State::Data(left) => {
                    let data = take(left, bytes.len() - at);
                    if *left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Step::Data { skip: at, data });
                }
                State::Trailers => {
                    let (read, is_over) = self.read_trailer(&bytes[at..])?;
                    at += read;
                    if is_over {
                        return Ok(Step::End { skip: at, trailers: self.take_trailers()? });
                    }
                }
                _ => {
                    self.state = self.read_byte(*byte)?;
                    at += 1;
                }
            }
        }
        Ok(Step::More)
    }

    fn read_byte(&mut self, byte: u8) -> Result<State, Broken> {
        self.line += 1;
        if self.line > SIZE_LINE_BYTES_MAX {
            return Err(Broken::Size);
        }
        match (self.state, byte) {
            (State::Size(size), _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).ok_or(Broken::Size)?;
                let size = size.checked_mul(16).ok_or(Broken::Size)?;
                Ok(State::Size(size + u64::from(digit)))
            }
            // A line has at least one digit.
            (State::Size(_), _) if self.line == 1 => Err(Broken::Size),
            (State::Size(size) | State::Spaces(size), b' ' | b'\t') => {
                self.beside()?;
                Ok(State::Spaces(size))
            }
            (State::Size(size) | State::Spaces(size), b';') => Ok(State::Extension(size)),
            (State::Size(size) | State::Spaces(size) | State::Extension(size), b'\r') => {
                Ok(State::SizeEnd(size))
            }
            (State::Extension(size), _) if is_field_byte(byte) => {
                self.beside()?;
                Ok(State::Extension(size))
            }
            (State::SizeEnd(size), b'\n') => {
                self.line = 0;
                Ok(if size == 0 { State::Trailers } else { State::Data(size) })
            }
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => {
                self.line = 0;
                Ok(State::Size(0))
            }
            (State::DataCr | State::DataLf, _) => Err(Broken::Chunk),
            _ => Err(Broken::Size),
        }
    }

    fn beside(&mut self) -> Result<(), Broken> {
        self.beside += 1;
        if self.beside >= BESIDE_BYTES_MAX { Err(Broken::Beside) } else { Ok(()) }
    }

    /// Keeps one line, or the beginning of one; how much that was, and whether the line is the last.
    fn read_trailer(&mut self, bytes: &[u8]) -> Result<(usize, bool), Broken> {
        let end = memchr::memchr(b'\n', bytes);
        let read = end.map_or(bytes.len(), |end| end + 1);
        // Nearly all sections are empty, and then they need no memory.
        let is_empty = self.trailers.is_empty() && bytes.starts_with(b"\r\n");
        if is_empty {
            return Ok((read, true));
        }
        self.trailers.extend_from_slice(&bytes[..read]);
        if self.trailers.len() >= self.limits.bytes_max {
            return Err(Broken::LongTrailers);
        }
        if end.is_none() {
            return Ok((read, false));
        }
        let line = &self.trailers[self.trailer..];
        if !line.ends_with(b"\r\n") {
            return Err(Broken::Trailers(None));
        }
        let is_over = line.len() == 2;
        self.trailer = self.trailers.len();
        self.fields += usize::from(!is_over);
        if self.fields > self.limits.fields_max {
            return Err(Broken::LongTrailers);
        }
        Ok((read, is_over))
    }

    fn take_trailers(&mut self) -> Result<Option<HeaderMap>, Broken> {
        if self.trailers.len() <= 2 {
            return Ok(None);
        }
        let block = Bytes::from(std::mem::take(&mut self.trailers));
        let trailers = read_trailers(&block, self.limits);
        trailers.map(Some).map_err(|malformed| Broken::Trailers(Some(malformed)))
    }
}

/// Takes what is there of what is left.
fn take(left: &mut u64, available: usize) -> usize {
    let taken = usize::try_from(*left).map_or(available, |left| left.min(available));
    *left -= taken as u64;
    taken
}

#[cfg(test)]
mod tests;
