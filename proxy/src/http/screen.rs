//! The screen: follows the bytes of an HTTP/1 client and refuses what two parsers could read twice.
//!
//! hyper repairs some ambiguous messages (it drops a Content-Length beside Transfer-Encoding, say);
//! behind a proxy a repaired message is a smuggled one. The screen sees every byte before hyper
//! does, follows heads and bodies from message to message, changes nothing, and stops at the first
//! violation. It also knows where messages begin, which is what idle detection and deadlines need.
//!
//! It holds at most one unfinished line of `header_bytes_max`; complete lines are read in place.

use crate::config::Limits;
use crate::error::Code;

/// Follows one client connection from its first byte.
pub struct Screen {
    limits: HeadLimits,
    state: State,
    /// The unfinished line that earlier reads left.
    partial: Vec<u8>,
    head: Head,
    heads: u64,
}

/// Bounds of a head, in bytes and fields.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    pub target_bytes_max: usize,
    pub field_bytes_max: usize,
    pub head_bytes_max: usize,
    pub fields_max: usize,
}

/// Bytes up to `admitted` of what was shown are fine; what follows must not be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    pub admitted: usize,
    pub code: Code,
    /// The body was broken, not a head: the message is already on its way.
    pub in_body: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between messages, or in the empty lines before one.
    Start,
    Fields,
    Body {
        left: u64,
    },
    ChunkSize,
    ChunkData {
        left: u64,
    },
    /// The CRLF after a chunk's data.
    ChunkEnd,
    Trailers,
    Refused,
}

/// What the lines of the current head have said so far.
#[derive(Debug, Default)]
struct Head {
    bytes: usize,
    fields: usize,
    hosts: usize,
    content_length: Option<u64>,
    chunked: bool,
    http10: bool,
}

/// What a request line may have beside its target: method, spaces, version and CR.
const AROUND_TARGET_BYTES_MAX: usize = 32;

/// Longest chunk-size line, extensions included. Nobody uses extensions; 1 KiB is generous.
const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// Empty lines tolerated before a request.
const EMPTY_LINES_BYTES_MAX: usize = 16;

// === impl Screen ===

impl Screen {
    pub fn new(limits: HeadLimits) -> Self {
        Self { limits, state: State::Start, partial: Vec::new(), head: Head::default(), heads: 0 }
    }

    /// Whether the client has sent nothing of a next message yet.
    pub fn at_boundary(&self) -> bool {
        self.state == State::Start && self.partial.is_empty() && self.head.bytes == 0
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        matches!(self.state, State::Start | State::Fields) && !self.at_boundary()
    }

    /// Whether all that came of a next message is empty lines; some clients send one behind a body.
    pub fn in_empty_lines(&self) -> bool {
        self.in_head() && self.state == State::Start && matches!(&self.partial[..], b"" | b"\r")
    }

    /// Whether a body has begun and not ended.
    pub fn in_body(&self) -> bool {
        use State::{Body, ChunkData, ChunkEnd, ChunkSize, Trailers};
        matches!(self.state, Body { .. } | ChunkSize | ChunkData { .. } | ChunkEnd | Trailers)
    }

    /// Complete heads seen.
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// Memory that the unfinished line takes, in bytes.
    pub fn held(&self) -> usize {
        self.partial.capacity()
    }

    /// Reads on.
    ///
    /// # Errors
    ///
    /// The first violation; afterwards nothing is admitted any more.
    pub fn admit(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        let mut at = 0;
        // Where the message that is being read began, if it began in these bytes.
        let mut message = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let step = match self.state {
                State::Body { left } => Ok(self.skip_body(left, rest.len())),
                State::ChunkData { left } => Ok(self.skip_chunk(left, rest.len())),
                State::Refused => Err(Code::PP02),
                _ => self.read_line(rest),
            };
            match step {
                Ok(read) => at += read,
                Err(code) => {
                    let in_body = !matches!(self.state, State::Start | State::Fields);
                    self.state = State::Refused;
                    let admitted = if in_body { at } else { message };
                    return Err(Violation { admitted, code, in_body });
                }
            }
            if self.state == State::Start && self.partial.is_empty() && self.head.bytes == 0 {
                message = at;
            }
        }
        Ok(())
    }

    fn skip_body(&mut self, left: u64, available: usize) -> usize {
        let read = left.min(available as u64);
        self.state = match left - read {
            0 => State::Start,
            left => State::Body { left },
        };
        read as usize
    }

    fn skip_chunk(&mut self, left: u64, available: usize) -> usize {
        let read = left.min(available as u64);
        self.state = match left - read {
            0 => State::ChunkEnd,
            left => State::ChunkData { left },
        };
        read as usize
    }

    /// Takes one line, or the unfinished rest of the bytes.
    fn read_line(&mut self, rest: &[u8]) -> Result<usize, Code> {
        let end = memchr::memchr(b'\n', rest);
        self.check_line_bytes(self.partial.len() + end.unwrap_or(rest.len()))?;
        let Some(end) = end else {
            self.partial.extend_from_slice(rest);
            return Ok(rest.len());
        };
        if self.partial.is_empty() {
            self.line(&rest[..end])?;
        } else {
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(&rest[..end]);
            self.line(&line)?;
        }
        Ok(end + 1)
    }

    /// A line is bounded before it ends and before anything else is said of it, so that the verdict
    /// does not depend on how the bytes were cut. `bytes` is without the LF, with the CR.
    fn check_line_bytes(&self, bytes: usize) -> Result<(), Code> {
        let (bytes_max, code) = match self.state {
            State::Start => (self.limits.target_bytes_max + AROUND_TARGET_BYTES_MAX, Code::PP03),
            State::Fields | State::Trailers => (self.limits.field_bytes_max + 1, Code::PP04),
            State::ChunkSize => (CHUNK_LINE_BYTES_MAX + 1, Code::PP02),
            State::ChunkEnd => (1, Code::PP02),
            State::Body { .. } | State::ChunkData { .. } | State::Refused => return Ok(()),
        };
        if bytes > bytes_max { Err(code) } else { Ok(()) }
    }

    /// One line without its LF; the CR must be there.
    fn line(&mut self, line: &[u8]) -> Result<(), Code> {
        //= https://www.rfc-editor.org/rfc/rfc9112#section-2.2
        //# a recipient MAY recognize a single LF as a line terminator and ignore any preceding CR.
        // We do not: a peer behind us may, or may not.
        let Some((b'\r', line)) = line.split_last() else { return Err(Code::PP02) };
        match self.state {
            State::Start => self.request_line(line),
            State::Fields if line.is_empty() => self.end_of_head(),
            State::Fields => self.field(line),
            State::ChunkSize => self.chunk_size(line),
            State::ChunkEnd if line.is_empty() => {
                self.state = State::ChunkSize;
                Ok(())
            }
            State::Trailers if line.is_empty() => {
                self.end_of_message();
                Ok(())
            }
            State::Trailers => self.trailer(line),
            State::ChunkEnd | State::Body { .. } | State::ChunkData { .. } | State::Refused => {
                Err(Code::PP02)
            }
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Code> {
        self.head.bytes += line.len() + 2;
        if line.is_empty() {
            //= https://www.rfc-editor.org/rfc/rfc9112#section-2.2
            //# a server that is expecting to receive and parse a request-line SHOULD ignore at
            //# least one empty line (CRLF) received prior to the request-line
            return if self.head.bytes > EMPTY_LINES_BYTES_MAX { Err(Code::PP02) } else { Ok(()) };
        }
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Code::PP02);
        };
        if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
            return Err(Code::PP02);
        }
        if target.len() > self.limits.target_bytes_max {
            return Err(Code::PP03);
        }
        if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
            return Err(Code::PP02);
        }
        self.head.http10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(Code::PP02),
        };
        self.state = State::Fields;
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Code> {
        let (name, value) = self.check_field(line)?;
        if name.eq_ignore_ascii_case(b"host") {
            self.head.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            //= https://www.rfc-editor.org/rfc/rfc9110#section-8.6
            //# a recipient MUST either reject the message as invalid or replace the duplicated
            //# field values with a single valid Content-Length
            // Rejected, also when both say the same.
            let length = decimal(value).ok_or(Code::PP02)?;
            if self.head.content_length.replace(length).is_some() {
                return Err(Code::PP02);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.head.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Code::PP02);
            }
            self.head.chunked = true;
        }
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), Code> {
        self.check_field(line).map(|_| ())
    }

    fn check_field<'l>(&mut self, line: &'l [u8]) -> Result<(&'l [u8], &'l [u8]), Code> {
        self.head.bytes += line.len() + 2;
        self.head.fields += 1;
        if self.head.bytes > self.limits.head_bytes_max || self.head.fields > self.limits.fields_max
        {
            return Err(Code::PP04);
        }
        //= https://www.rfc-editor.org/rfc/rfc9112#section-5.1
        //# No whitespace is allowed between the field name and colon.
        // Neither before the name: obs-fold is refused by the same rule.
        let colon = memchr::memchr(b':', line).ok_or(Code::PP02)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err(Code::PP02);
        }
        if !value.iter().all(|byte| is_field_byte(*byte)) {
            return Err(Code::PP02);
        }
        Ok((name, value.trim_ascii()))
    }

    fn end_of_head(&mut self) -> Result<(), Code> {
        let head = &self.head;
        //= https://www.rfc-editor.org/rfc/rfc9112#section-3.2
        //# A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request
        //# message that lacks a Host header field and to any request message that contains more
        //# than one Host header field line
        if head.hosts > 1 || (head.hosts == 0 && !head.http10) {
            return Err(Code::PP02);
        }
        //= https://www.rfc-editor.org/rfc/rfc9112#section-6.1
        //# A server MAY reject a request that contains both Content-Length and Transfer-Encoding
        if head.chunked && (head.content_length.is_some() || head.http10) {
            return Err(Code::PP02);
        }
        self.heads += 1;
        match (head.chunked, head.content_length) {
            (true, _) => {
                self.head.bytes = 0;
                self.head.fields = 0;
                self.state = State::ChunkSize;
            }
            (false, Some(left)) if left > 0 => {
                self.end_of_message();
                self.state = State::Body { left };
            }
            (false, _) => self.end_of_message(),
        }
        Ok(())
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<(), Code> {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        let size = hexadecimal(size).ok_or(Code::PP02)?;
        // An extension begins with `;`; whitespace before it is tolerated by nobody strict.
        let extension_is_fine = extension.first().is_none_or(|byte| *byte == b';')
            && extension.iter().all(|byte| is_field_byte(*byte));
        if !extension_is_fine {
            return Err(Code::PP02);
        }
        self.state = match size {
            0 => State::Trailers,
            left => State::ChunkData { left },
        };
        Ok(())
    }

    fn end_of_message(&mut self) {
        self.state = State::Start;
        self.head = Head::default();
    }
}

impl From<&Limits> for HeadLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            target_bytes_max: limits.request_target_bytes_max,
            field_bytes_max: limits.header_bytes_max,
            head_bytes_max: limits.head_bytes_max,
            fields_max: limits.header_fields_max,
        }
    }
}

/// RFC 9110 §5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 §5.5: visible characters, obs-text, space and tab.
pub(crate) fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    digits.iter().try_fold(0, |sum, digit| {
        char::from(*digit).to_digit(16).map(|digit| sum * 16 + u64::from(digit))
    })
}

#[cfg(test)]
mod tests;
