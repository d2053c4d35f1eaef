//! A request as an HTTP/1 instance reads it: the head in origin form, the body framed in one way.

use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE};
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TE, TRAILER, TRANSFER_ENCODING};
use http::header::{MAX_FORWARDS, SET_COOKIE};
use http::{Method, request};
use http_body::Body as _;

use crate::body::Body;
use crate::error::{Code, Failure};
use crate::upstream::framing::number;

/// How the body of a request is told from what follows it.
#[derive(Debug)]
pub(crate) enum Framing {
    /// So many bytes more.
    Length(u64),
    Chunked {
        /// The trailer fields that the head has announced.
        trailers: Vec<HeaderName>,
    },
}

/// What the head says of the body beyond its own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Nothing,
    Length(u64),
    Chunked,
}

/// A buffer has room for this much of a head before it has to grow.
const FIELD_BYTES: usize = 40;

/// Writes `head` into `out` and says how the body is to be framed.
///
/// # Errors
///
/// PP05 for a CONNECT, which is no request of this kind, and PP02 for a head that contradicts its
/// body: the instance would take what follows for something else.
pub(crate) fn encode(
    head: &request::Parts,
    body: &Body,
    out: &mut Vec<u8>,
) -> Result<Framing, Failure> {
    if head.method == Method::CONNECT {
        return Err(Failure::new(Code::PP05));
    }
    let (framing, says) = frame(head, body)?;
    out.reserve(head.headers.len() * FIELD_BYTES);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    write_target(head, out);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = head.uri.authority()
        && !head.headers.contains_key(HOST)
    {
        write_field(b"host", authority.as_str().as_bytes(), out);
    }
    for (name, value) in &head.headers {
        // What it says of the body is said below.
        if *name != TRANSFER_ENCODING {
            write_field(name.as_str().as_bytes(), value.as_bytes(), out);
        }
    }
    match says {
        Says::Nothing => {}
        Says::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            write_decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Says::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
    Ok(framing)
}

fn frame(head: &request::Parts, body: &Body) -> Result<(Framing, Says), Failure> {
    let known = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
    let contradiction = || Failure::new(Code::PP02).because("a length that is not the body's");
    let mut declared = head.headers.get_all(CONTENT_LENGTH).iter();
    match (declared.next(), declared.next(), known) {
        (Some(length), None, known) => {
            let length = number(length.as_bytes()).ok_or_else(contradiction)?;
            if known.is_some_and(|known| known != length) {
                return Err(contradiction());
            }
            Ok((Framing::Length(length), Says::Nothing))
        }
        (Some(_), Some(_), _) => Err(contradiction()),
        // Servers answer 411 to a POST that does not say that it has no body.
        (None, _, Some(0)) => {
            let expects = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
            Ok((Framing::Length(0), if expects { Says::Length(0) } else { Says::Nothing }))
        }
        (None, _, Some(known)) => Ok((Framing::Length(known), Says::Length(known))),
        (None, _, None) => {
            Ok((Framing::Chunked { trailers: announced(&head.headers) }, Says::Chunked))
        }
    }
}

/// The trailer fields that may be sent: announced, and not of those that change how the message is
/// read (RFC 9110 §6.5.1).
fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    static NEVER: [HeaderName; 12] = [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TRAILER,
        TRANSFER_ENCODING,
        TE,
    ];
    let values = headers.get_all(TRAILER).iter();
    let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    names.filter(|name| !NEVER.contains(name)).collect()
}

fn write_target(head: &request::Parts, out: &mut Vec<u8>) {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    // A target in absolute form may have a query and no path.
    if !path.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
}

fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while number > 0 || at == digits.len() {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits[at..]);
}

/// The line before a chunk of `bytes` bytes.
pub(super) fn write_chunk_size(bytes: usize, out: &mut Vec<u8>) {
    let digits = (bytes.max(1).ilog2() / 4) as usize;
    for digit in (0..=digits).rev() {
        out.push(b"0123456789ABCDEF"[bytes >> (4 * digit) & 0xf]);
    }
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body: those of `fields` that were `announced`.
pub(super) fn write_end(fields: Option<&HeaderMap>, announced: &[HeaderName], out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in fields.into_iter().flatten() {
        if announced.contains(name) {
            write_field(name.as_str().as_bytes(), value.as_bytes(), out);
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
