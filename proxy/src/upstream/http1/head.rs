//! The head of an answer: read in one pass, with one reading or none.
//!
//! The fields' framing is noted as they are read ([`Framing`]), so that what is refused and what is
//! believed come from the same parse. Values are slices of one block of the head's own size: they
//! keep that alive, and neither the body nor a read buffer.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::header::{InvalidHeaderName, InvalidHeaderValue, TRANSFER_ENCODING};
use http::{StatusCode, Version};
use hyper::ext::ReasonPhrase;

use crate::http::screen::{is_field_byte, is_token};
use crate::upstream::framing::{Ambiguous, Framed, Framing};

/// Finds and reads one head in the bytes of a connection.
pub(crate) struct HeadReader {
    limits: Limits,
    /// Where the line begins that has not ended yet.
    line: usize,
    /// Up to where there is no further line end.
    searched: usize,
    /// Lines that have ended and are not empty.
    lines: usize,
    interim: u32,
}

/// Bounds of a head, and of the trailers of a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes_max: usize,
    pub(crate) fields_max: usize,
}

/// What the bytes begin with.
#[allow(clippy::large_enum_variant, reason = "the large one is the usual one, and moves once")]
pub(crate) enum Found {
    /// The answer's head, and how many bytes it is.
    Head(Head, usize),
    /// An interim answer of so many bytes, to be skipped.
    Interim(usize),
    /// Part of a head.
    Partial,
}

/// The head of an answer.
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    /// What the instance says instead of the status' own words.
    pub(crate) reason: Option<ReasonPhrase>,
    pub(crate) headers: HeaderMap,
    /// The instance will take another request on this connection.
    pub(crate) keeps_alive: bool,
    framing: Framing,
}

/// Why a head was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("no status line")]
    StatusLine,
    #[error("a line that is no header field")]
    Field,
    #[error("a header field's name")]
    Name(#[source] InvalidHeaderName),
    #[error("a header field's value")]
    Value(#[source] InvalidHeaderValue),
    #[error("too many header fields")]
    Fields,
    #[error("the head is too long")]
    TooLong,
    #[error("too many interim answers")]
    Interim,
    #[error("a transfer coding in HTTP/1.0")]
    OldCoding,
    #[error(transparent)]
    Framing(#[from] Ambiguous),
}

/// Interim answers (100, 102, 103) before the answer itself. A few early hints are usual; the
/// deadline of the head bounds them as well, but at full speed that is many.
const INTERIM_MAX: u32 = 32;

/// What an answer gets on its way to the client, so that the map grows once.
const ADDED_FIELDS: usize = 4;

// === impl HeadReader ===

impl HeadReader {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, line: 0, searched: 0, lines: 0, interim: 0 }
    }

    /// Looks at all `bytes` that came and were neither a head nor skipped.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Found, Malformed> {
        let is_first_look = self.searched == 0;
        let Some(end) = self.end(bytes) else {
            if bytes.len() >= self.limits.bytes_max {
                return Err(Malformed::TooLong);
            }
            if is_first_look {
                // Who speaks another protocol may wait for us: that is told now.
                self.check_part(bytes)?;
            }
            return Ok(Found::Partial);
        };
        if end > self.limits.bytes_max {
            return Err(Malformed::TooLong);
        }
        let block = Bytes::copy_from_slice(&bytes[..end]);
        let head = Head::read(&block, self.lines, self.limits.fields_max)?;
        *self = Self { interim: self.interim, ..Self::new(self.limits) };
        if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
            self.interim += 1;
            if self.interim > INTERIM_MAX {
                return Err(Malformed::Interim);
            }
            return Ok(Found::Interim(end));
        }
        Ok(Found::Head(head, end))
    }

    /// Refuses `bytes`, which are part of a head, if nothing could make a head of them.
    pub(crate) fn check_part(&self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut has_status = false;
        let mut fields = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            // Behind a CR there is nothing but the LF.
            let is_whole = line.ends_with(b"\n") || line.ends_with(b"\r");
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if has_status {
                fields += usize::from(!line.is_empty());
                check_field(line, is_whole)?;
            } else if !line.is_empty() {
                has_status = true;
                if !is_status_line(line, is_whole) {
                    return Err(Malformed::StatusLine);
                }
            }
        }
        if fields > self.limits.fields_max { Err(Malformed::Fields) } else { Ok(()) }
    }

    /// Where the head ends: behind the first empty line that follows another.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + found;
            let is_empty = matches!(&bytes[self.line..end], b"" | b"\r");
            self.line = end + 1;
            self.searched = end + 1;
            if is_empty && self.lines > 0 {
                return Some(self.line);
            }
            self.lines += usize::from(!is_empty);
        }
        self.searched = bytes.len();
        None
    }
}

// === impl Head ===

impl Head {
    /// Reads `block`, which ends with an empty line and has about so many fields.
    fn read(block: &Bytes, fields: usize, fields_max: usize) -> Result<Self, Malformed> {
        let mut lines = Lines { bytes: block, at: 0 };
        let mut status_line = lines.next();
        while status_line.is_some_and(|(start, end)| start == end) {
            status_line = lines.next();
        }
        let (start, end) = status_line.ok_or(Malformed::StatusLine)?;
        let line = &block[start..end];
        if !is_status_line(line, true) {
            return Err(Malformed::StatusLine);
        }
        let version = if line[7] == b'1' { Version::HTTP_11 } else { Version::HTTP_10 };
        let status = StatusCode::from_bytes(&line[9..12]).map_err(|_| Malformed::StatusLine)?;
        let mut head = Self {
            status,
            version,
            reason: reason(status, line.get(13..).unwrap_or_default()),
            headers: HeaderMap::with_capacity(fields.min(fields_max) + ADDED_FIELDS),
            keeps_alive: false,
            framing: Framing::default(),
        };
        head.read_fields(block, lines, fields_max)?;
        Ok(head)
    }

    fn read_fields(
        &mut self,
        block: &Bytes,
        lines: Lines<'_>,
        fields_max: usize,
    ) -> Result<(), Malformed> {
        let Self { headers, framing, .. } = self;
        let (mut says_close, mut says_keep_alive) = (false, false);
        read_fields(block, lines, fields_max, headers, |name, value| {
            if *name == CONTENT_LENGTH {
                framing.length(value);
            } else if *name == TRANSFER_ENCODING {
                framing.coding(value);
            } else if *name == CONNECTION {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    says_close |= option.eq_ignore_ascii_case(b"close");
                    says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
        })?;
        self.keeps_alive = !says_close && (self.version == Version::HTTP_11 || says_keep_alive);
        Ok(())
    }

    /// How the body of a final answer is framed; a length that was repeated becomes one.
    pub(crate) fn framed(&mut self) -> Result<Framed, Malformed> {
        let framed = self.framing.verdict()?;
        match framed {
            //= https://www.rfc-editor.org/rfc/rfc9112#section-6.1
            //# A server or client that receives an HTTP/1.0 message containing a Transfer-Encoding
            //# header field MUST treat the message as if the framing is faulty
            Framed::Chunked if self.version == Version::HTTP_10 => Err(Malformed::OldCoding),
            Framed::Length { bytes, is_repeated: true } => {
                self.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
                Ok(framed)
            }
            framed => Ok(framed),
        }
    }
}

/// Whether `line` is a status line, or the beginning of one: `HTTP/1.1 200`, and behind a space
/// whatever is visible.
fn is_status_line(line: &[u8], is_whole: bool) -> bool {
    let is_whole_enough = !is_whole || line.len() >= 12;
    is_whole_enough
        && line.iter().enumerate().all(|(at, byte)| match at {
            0..=6 => *byte == b"HTTP/1."[at],
            7 => matches!(byte, b'0' | b'1'),
            8 | 12 => *byte == b' ',
            9..=11 => byte.is_ascii_digit(),
            _ => is_field_byte(*byte),
        })
}

/// A reason phrase that says something else than the status does.
fn reason(status: StatusCode, phrase: &[u8]) -> Option<ReasonPhrase> {
    if status.canonical_reason().is_some_and(|usual| usual.as_bytes() == phrase) {
        return None;
    }
    // Not of ASCII: nobody could tell in which encoding.
    let phrase = if phrase.is_ascii() { phrase } else { b"" };
    ReasonPhrase::try_from(phrase).ok()
}

// === Fields ===

/// Lines without their ends, up to the first empty one.
#[derive(Clone, Copy)]
struct Lines<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Iterator for Lines<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        let start = self.at;
        let end = start + memchr::memchr(b'\n', &self.bytes[start..])?;
        self.at = end + 1;
        let has_cr = end > start && self.bytes[end - 1] == b'\r';
        Some((start, end - usize::from(has_cr)))
    }
}

/// Reads the lines of a trailer section, which ends with an empty one.
pub(super) fn read_trailers(block: &Bytes, limits: Limits) -> Result<HeaderMap, Malformed> {
    let mut trailers = HeaderMap::new();
    let lines = Lines { bytes: block, at: 0 };
    read_fields(block, lines, limits.fields_max, &mut trailers, |_, _| {})?;
    Ok(trailers)
}

/// Reads fields up to an empty line and shows each to `note`.
fn read_fields(
    block: &Bytes,
    lines: Lines<'_>,
    fields_max: usize,
    headers: &mut HeaderMap,
    mut note: impl FnMut(&HeaderName, &[u8]),
) -> Result<(), Malformed> {
    let mut fields = 0;
    for (start, end) in lines.take_while(|(start, end)| start < end) {
        fields += 1;
        if fields > fields_max {
            return Err(Malformed::Fields);
        }
        let line = &block[start..end];
        let colon = colon(line)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(Malformed::Name)?;
        let value = trim(block, start + colon + 1, end);
        let value = HeaderValue::from_maybe_shared(value).map_err(Malformed::Value)?;
        note(&name, value.as_bytes());
        headers.try_append(name, value).map_err(|_| Malformed::Fields)?;
    }
    Ok(())
}

/// Where a field's name ends. Whitespace before the colon belongs to no name, and a line that goes on
/// from the one before (obs-fold) has none.
fn colon(line: &[u8]) -> Result<usize, Malformed> {
    let colon = memchr::memchr(b':', line).ok_or(Malformed::Field)?;
    let is_name = colon > 0 && line[..colon].iter().all(|byte| is_token(*byte));
    if is_name { Ok(colon) } else { Err(Malformed::Field) }
}

/// A value without the spaces and tabs around it.
fn trim(block: &Bytes, mut start: usize, mut end: usize) -> Bytes {
    let is_space = |at: usize| matches!(block[at], b' ' | b'\t');
    while start < end && is_space(start) {
        start += 1;
    }
    while start < end && is_space(end - 1) {
        end -= 1;
    }
    block.slice(start..end)
}

/// What [`read_fields`] would refuse of one line, or of its beginning.
fn check_field(line: &[u8], is_whole: bool) -> Result<(), Malformed> {
    let Some(at) = memchr::memchr(b':', line) else {
        let may_be_name = !is_whole && line.iter().all(|byte| is_token(*byte));
        let is_fine = may_be_name || line.is_empty();
        return if is_fine { Ok(()) } else { Err(Malformed::Field) };
    };
    colon(line)?;
    let is_value = line[at + 1..].iter().all(|byte| is_field_byte(*byte));
    if is_value { Ok(()) } else { Err(Malformed::Field) }
}

#[cfg(test)]
mod tests;
