//! A strict HTTP/1.1 response parser: the oracle. What it takes is what RFC 9112 allows a server
//! to send and nothing that a lenient peer might read differently.

use std::io::{self, Read};

/// Bytes of a head or line that are read before giving up.
const HEAD_MAX: usize = 256 * 1024;

/// A response, complete to its last byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Field names as sent, with values, in order.
    pub headers: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// Fields after a chunked body.
    pub trailers: Vec<(String, String)>,
    /// How the end of the body was told.
    pub framing: Framing,
    /// Status codes of the interim responses that came before.
    pub interim: Vec<u16>,
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none: HEAD, 1xx, 204, 304.
    None,
    /// `content-length`.
    Length,
    /// `transfer-encoding: chunked`.
    Chunked,
    /// The connection closes.
    Close,
}

/// Why bytes are not a response.
#[derive(Debug)]
pub enum Error {
    /// The connection closed before the first byte.
    Closed,
    /// The connection closed in the middle.
    Truncated,
    /// The bytes break the grammar.
    Malformed(String),
    /// Reading failed; a timeout is `WouldBlock`.
    Io(io::Error),
}

/// Reads responses from a stream, keeping what came too early.
pub struct Reader<S> {
    stream: S,
    buffer: Vec<u8>,
}

// === impl Response ===

impl Response {
    /// The only value of a field, or `None`.
    ///
    /// # Panics
    /// When there are several.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.header_all(name);
        assert!(values.len() < 2, "{name} more than once: {values:?}");
        values.first().copied()
    }

    /// Every value of a field.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(held, _)| held.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// The failure code the edge gave, if it gave one.
    pub fn error_code(&self) -> Option<&str> {
        self.header("ferrule-error")
    }

    /// Asserts a refusal or failure by the edge itself.
    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) {
        let said = (self.status, self.error_code());
        assert_eq!(said, (status, Some(code)), "{}", String::from_utf8_lossy(&self.body));
        assert!(!self.body.is_empty(), "the body says what happened");
    }

    /// Whether the server said that the connection ends here.
    pub fn says_close(&self) -> bool {
        self.header_all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the connection closed before the first byte"),
            Self::Truncated => f.write_str("the connection closed in the middle"),
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::Io(error) => write!(f, "reading failed: {error}"),
        }
    }
}

impl std::error::Error for Error {}

// === impl Reader ===

impl<S: Read> Reader<S> {
    /// A reader with nothing read.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The stream; what was read ahead stays here.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Reads one final response to a request with `method`.
    ///
    /// # Errors
    /// Whatever is not exactly one complete response.
    pub fn response(&mut self, method: &str) -> Result<Response, Error> {
        let mut interim = Vec::new();
        loop {
            let (status, headers) = self.head()?;
            if status == 101 {
                let framing = Framing::None;
                let (body, trailers) = (Vec::new(), Vec::new());
                return Ok(Response { status, headers, body, trailers, framing, interim });
            }
            if status < 200 {
                interim.push(status);
                continue;
            }
            let framing = framing(method, status, &headers)?;
            let mut trailers = Vec::new();
            let body = match framing {
                Framing::None => Vec::new(),
                Framing::Length => {
                    let length = headers.iter().find(|(name, _)| is(name, "content-length"));
                    let length = length.and_then(|(_, value)| value.parse().ok());
                    self.exactly(length.ok_or_else(|| malformed("content-length"))?)?
                }
                Framing::Chunked => {
                    let body = self.chunks()?;
                    trailers = self.fields()?;
                    body
                }
                Framing::Close => self.to_end()?,
            };
            return Ok(Response { status, headers, body, trailers, framing, interim });
        }
    }

    /// Reads exactly `count` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn exactly(&mut self, count: usize) -> Result<Vec<u8>, Error> {
        while self.buffer.len() < count {
            self.more()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads what there is now, at least one byte; empty at the end.
    ///
    /// # Errors
    /// When reading fails.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.buffer.is_empty() {
            self.fill()?;
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// When the stream ends in another way than a clean close.
    pub fn to_end(&mut self) -> Result<Vec<u8>, Error> {
        while self.fill().map_err(Error::Io)? > 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Reads a response's head: status line and fields.
    ///
    /// # Errors
    /// Whatever is not exactly a head.
    pub fn head(&mut self) -> Result<(u16, Vec<(String, String)>), Error> {
        if self.buffer.is_empty() && self.fill().map_err(Error::Io)? == 0 {
            return Err(Error::Closed);
        }
        let line = self.line()?;
        let rest = line.strip_prefix("HTTP/1.1 ").ok_or_else(|| malformed(&line))?;
        let (status, _reason) = rest.split_once(' ').ok_or_else(|| malformed(&line))?;
        let digits = status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit());
        let status = status.parse().ok().filter(|status| digits && (100..600).contains(status));
        Ok((status.ok_or_else(|| malformed(&line))?, self.fields()?))
    }

    fn fields(&mut self) -> Result<Vec<(String, String)>, Error> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(malformed(&line));
            }
            fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let hex = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
            let size = usize::from_str_radix(&line, 16).ok().filter(|_| hex && line.len() <= 8);
            let size = size.ok_or_else(|| malformed(&format!("chunk size {line:?}")))?;
            if size == 0 {
                return Ok(body);
            }
            body.extend(self.exactly(size)?);
            if !self.line()?.is_empty() {
                return Err(malformed("no CRLF after a chunk"));
            }
        }
    }

    /// One line without its CRLF; no other control character is allowed in it.
    fn line(&mut self) -> Result<String, Error> {
        let end = loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(malformed("a line without end"));
            }
            self.more()?;
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        let line = line.strip_suffix(b"\r\n").ok_or_else(|| malformed("a bare LF"))?;
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(malformed("a control character in the head"));
        }
        String::from_utf8(line.to_vec()).map_err(|_| malformed("a head that is not ASCII"))
    }

    fn more(&mut self) -> Result<(), Error> {
        match self.fill() {
            Ok(0) => Err(Error::Truncated),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Error::Truncated),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Truncated),
            Err(error) => Err(Error::Io(error)),
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 64 * 1024];
        let count = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

fn framing(method: &str, status: u16, headers: &[(String, String)]) -> Result<Framing, Error> {
    let all = |wanted: &str| {
        let matching = headers.iter().filter(|(name, _)| is(name, wanted));
        matching.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    let (lengths, encodings) = (all("content-length"), all("transfer-encoding"));
    let digits = |value: &str| !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match (lengths.as_slice(), encodings.as_slice()) {
        ([], []) | ([_], []) | ([], ["chunked"]) => {}
        _ => return Err(malformed(&format!("framing: {lengths:?} {encodings:?}"))),
    }
    if !lengths.iter().all(|length| digits(length)) {
        return Err(malformed(&format!("content-length {lengths:?}")));
    }
    let bodiless = method == "HEAD" || status == 204 || status == 304;
    Ok(match (bodiless, lengths.len(), encodings.len()) {
        (true, _, _) => Framing::None,
        (_, 1, _) => Framing::Length,
        (_, _, 1) => Framing::Chunked,
        _ => Framing::Close,
    })
}

fn is(name: &str, wanted: &str) -> bool {
    name.eq_ignore_ascii_case(wanted)
}

fn malformed(what: &str) -> Error {
    Error::Malformed(what.to_owned())
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &str) -> Result<Response, Error> {
        Reader::new(bytes.as_bytes()).response("GET")
    }

    #[test]
    fn a_sound_response_is_read() {
        let response = parse("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nt: u\r\n\r\n").unwrap();
        assert_eq!((response.status, response.text()), (200, "hi"));
        assert_eq!(response.interim, [100]);
        assert_eq!(response.trailers, [("t".to_owned(), "u".to_owned())]);
    }

    #[test]
    fn what_a_lenient_peer_might_read_is_refused() {
        for bytes in [
            "HTTP/1.1 200 OK\nA: b\r\n\r\n",
            "HTTP/1.1 200\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
            "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\na",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi!\r\n0\r\n\r\n",
        ] {
            assert!(matches!(parse(bytes), Err(Error::Malformed(_))), "{bytes:?}");
        }
    }

    #[test]
    fn half_a_response_is_told_apart_from_a_whole_one() {
        for bytes in [
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n",
        ] {
            assert!(matches!(parse(bytes), Err(Error::Truncated)), "{bytes:?}");
        }
        assert!(matches!(parse(""), Err(Error::Closed)));
    }
}
