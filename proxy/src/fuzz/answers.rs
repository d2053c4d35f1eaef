//! An HTTP/1 instance's answers: our reader, however the bytes are cut, against hyper's client.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Version};
use hyper::ext::ReasonPhrase;

use super::cut_in_many_ways;
use crate::config::Limits;
use crate::upstream::framing::Framed;
use crate::upstream::http1::decode::{Broken, Chunked, Decoder, End, Step};
use crate::upstream::http1::head::{self, Found, Head, HeadReader};

mod hypers;

/// However an answer is cut, it is read in the same way; and what is believed of it is what hyper
/// believes. More may be refused, never less.
pub fn answer(bytes: &[u8]) {
    for method in [Method::GET, Method::HEAD] {
        let ours = Read::ours(&mut std::iter::once(bytes), &method);
        cut_in_many_ways(bytes, |pieces| {
            let mut shown = Vec::new();
            let again = Read::ours(&mut pieces.inspect(|piece| shown.push(piece.len())), &method);
            assert_eq!(again, ours, "in pieces of {shown:?}");
        });
        for piece in [usize::MAX, 1, 13] {
            if let Some(hypers) = hypers::read(bytes, piece, &method) {
                assert!(ours.is_at_least_as_strict_as(&hypers), "{ours:?}\nhyper: {hypers:?}");
            }
        }
        let is_reused = hypers::is_reused(bytes, &method);
        assert!(!ours.is_reused() || is_reused, "hyper would not use the connection again");
    }
}

/// A chunked body is the same however it is cut, and what is believed to be whole is framed as
/// httparse reads it.
pub fn chunks(bytes: &[u8]) {
    let limits = head::Limits { bytes_max: 128, fields_max: 4 };
    let decoder = || Decoder::Chunked(Chunked::new(limits));
    let whole = Body::copied(decoder(), &[bytes]);
    cut_in_many_ways(bytes, |pieces| {
        let pieces: Vec<&[u8]> = pieces.collect();
        assert_eq!(Body::copied(decoder(), &pieces), whole, "{pieces:?}");
        assert_eq!(Body::sliced(decoder(), &pieces), whole, "{pieces:?}");
    });
    if whole.is_whole {
        let (read, end) = by_httparse(bytes).expect("httparse finds no end");
        assert_eq!(read, whole.bytes);
        assert_eq!(end == bytes.len(), whole.is_clean, "ends at {end} of {}", bytes.len());
    }
}

/// A chunked body and where it ends.
fn by_httparse(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    use httparse::Status::Complete;
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Ok(Complete((line, size))) = httparse::parse_chunk_size(&bytes[at..]) else {
            return None;
        };
        at += line;
        if size == 0 {
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let Ok(Complete((end, _))) = httparse::parse_headers(&bytes[at..], &mut fields) else {
                return None;
            };
            return Some((body, at + end));
        }
        let end = at + usize::try_from(size).ok()?;
        body.extend_from_slice(bytes.get(at..end)?);
        at = end + 2;
        if bytes.get(end..at)? != b"\r\n" {
            return None;
        }
    }
}

/// What was read of a connection that was closed behind its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Read {
    /// It is no answer.
    Malformed,
    /// It ended before there was an answer.
    Ended,
    Answer(Box<Answer>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    version: Version,
    reason: Option<ReasonPhrase>,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: HeaderMap,
    /// The body came to its end.
    is_whole: bool,
    /// Another request may be sent on the connection, as far as the answer says.
    is_reused: bool,
}

// === impl Read ===

impl Read {
    fn ours(pieces: &mut dyn Iterator<Item = &[u8]>, method: &Method) -> Self {
        let config = Limits::default();
        let limits =
            head::Limits { bytes_max: config.head_bytes_max, fields_max: config.header_fields_max };
        let mut reader = HeadReader::new(limits);
        let mut received = Vec::new();
        while let Some(piece) = pieces.next() {
            received.extend_from_slice(piece);
            loop {
                match reader.read(&received) {
                    Ok(Found::Head(head, bytes)) => {
                        return Self::body(head, &received[bytes..], pieces, method, limits);
                    }
                    Ok(Found::Interim(bytes)) => drop(received.drain(..bytes)),
                    Ok(Found::Partial) => break,
                    Err(_) => return Self::Malformed,
                }
            }
            assert!(received.len() <= limits.bytes_max, "holds {}", received.len());
        }
        if reader.check_part(&received).is_err() { Self::Malformed } else { Self::Ended }
    }

    fn body(
        mut head: Head,
        first: &[u8],
        pieces: &mut dyn Iterator<Item = &[u8]>,
        method: &Method,
        limits: head::Limits,
    ) -> Self {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Self::Malformed; // nobody asked
        }
        let Ok(framed) = head.framed() else { return Self::Malformed };
        let fields = |name| head.headers.get_all(name).iter().count();
        assert!(fields(CONTENT_LENGTH) + fields(TRANSFER_ENCODING) <= 1, "framed in two ways");
        let is_bodiless = *method == Method::HEAD
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let decoder = || match framed {
            _ if is_bodiless => Decoder::Length(0),
            Framed::Length { bytes, .. } => Decoder::Length(bytes),
            Framed::Chunked => Decoder::Chunked(Chunked::new(limits)),
            Framed::Open => Decoder::Open,
        };
        let mut pieces: Vec<&[u8]> = pieces.collect();
        pieces.insert(0, first);
        let copied = Body::copied(decoder(), &pieces);
        assert_eq!(copied, Body::sliced(decoder(), &pieces), "copied and sliced");
        if let (Framed::Length { bytes, .. }, true, false) = (framed, copied.is_whole, is_bodiless)
        {
            assert_eq!(copied.bytes.len() as u64, bytes);
        }
        Self::Answer(Box::new(Answer {
            status: head.status,
            version: head.version,
            reason: head.reason,
            headers: head.headers,
            is_whole: copied.is_whole,
            is_reused: head.keeps_alive && copied.is_clean,
            body: copied.bytes,
            trailers: copied.trailers,
        }))
    }

    fn is_reused(&self) -> bool {
        matches!(self, Self::Answer(answer) if answer.is_reused)
    }

    /// Whether nothing of this is believed that `other` does not say as well.
    fn is_at_least_as_strict_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Malformed, _) | (Self::Ended, Self::Ended) => true,
            // What may be asked again must not be more than was.
            (Self::Ended, _) | (Self::Answer(_), Self::Malformed | Self::Ended) => false,
            (Self::Answer(ours), Self::Answer(theirs)) => ours.is_at_least_as_strict_as(theirs),
        }
    }
}

impl Answer {
    fn is_at_least_as_strict_as(&self, other: &Self) -> bool {
        let says_the_same = self.status == other.status
            && self.version == other.version
            && self.reason == other.reason
            && self.headers == other.headers;
        let reads_the_same = match (self.is_whole, other.is_whole) {
            (true, true) => self.body == other.body && self.trailers == other.trailers,
            (true, false) => false,
            (false, true) => other.body.starts_with(&self.body),
            (false, false) => {
                other.body.starts_with(&self.body) || self.body.starts_with(&other.body)
            }
        };
        says_the_same && reads_the_same
    }
}

// === Body ===

/// What the decoder made of the bytes behind a head.
#[derive(Debug, Default, PartialEq, Eq)]
struct Body {
    bytes: Vec<u8>,
    trailers: HeaderMap,
    is_whole: bool,
    /// It ended by itself, and nothing was behind it.
    is_clean: bool,
}

impl Body {
    /// As a body is read that comes a little at a time.
    fn copied(mut decoder: Decoder, pieces: &[&[u8]]) -> Self {
        let mut body = Self::default();
        for (at, piece) in pieces.iter().enumerate() {
            let part = decoder.read(piece);
            body.bytes.extend_from_slice(&part.data);
            match part.end {
                Some(End::Whole { trailers, is_clean }) => {
                    body.end(trailers, is_clean && pieces[at + 1..].concat().is_empty());
                    return body;
                }
                Some(End::Broken(_)) => return body,
                None => {}
            }
        }
        body.is_whole = decoder.end().is_ok();
        body
    }

    /// As a body is read that comes in large pieces.
    fn sliced(mut decoder: Decoder, pieces: &[&[u8]]) -> Self {
        let mut body = Self::default();
        for (at, piece) in pieces.iter().enumerate() {
            let mut rest = *piece;
            loop {
                match decoder.step(rest) {
                    Ok(Step::Data { skip, data }) => {
                        body.bytes.extend_from_slice(&rest[skip..skip + data]);
                        rest = &rest[skip + data..];
                    }
                    Ok(Step::More) => break,
                    Ok(Step::End { skip, trailers }) => {
                        let is_clean = skip == rest.len() && pieces[at + 1..].concat().is_empty();
                        body.end(trailers, is_clean);
                        return body;
                    }
                    Err(Broken::Truncated) => panic!("the connection has not ended"),
                    Err(_) => return body,
                }
            }
        }
        body.is_whole = decoder.end().is_ok();
        body
    }

    fn end(&mut self, trailers: Option<HeaderMap>, is_clean: bool) {
        self.trailers = trailers.unwrap_or_default();
        self.is_whole = true;
        self.is_clean = is_clean;
    }
}

#[cfg(test)]
mod tests;
