//! Requests to an HTTP/1 instance: what is written is what was meant, and nothing behind it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Uri};
use http_body::{Frame, SizeHint};

use super::header_map;
use crate::body::Body;
use crate::error::Failure;
use crate::http::screen::{HeadLimits, Screen};
use crate::upstream::http1::ask::{self, Framing};

/// The first lines are method, target and the length of the body (`-`: not known); the others are
/// fields. The head that is written passes the screen for clients where the request had a Host, and
/// httparse reads its fields back.
pub fn encode(bytes: &[u8]) {
    let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, target, length, fields) = (line(), line(), line(), line());
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(target)) else { return };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = header_map(fields);
    let (head, ()) = request.into_parts();
    let length = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
    let body = if length == Some(0) { Body::Empty } else { Body::boxed(Promised(length)) };
    let mut written = Vec::new();
    let Ok(framing) = ask::encode(&head, &body, &mut written) else { return };

    let mut slots = vec![httparse::EMPTY_HEADER; 400];
    let mut read = httparse::Request::new(&mut slots);
    let parsed = read.parse(&written);
    if head.headers.keys().any(|name| name.as_str().contains('"')) {
        return; // the http crate lets it pass in a name, and HTTP/1 has no such token
    }
    assert_eq!(
        parsed,
        Ok(httparse::Status::Complete(written.len())),
        "the head ends where it ends"
    );
    assert_eq!(read.method, Some(head.method.as_str()));
    let values = |name: &str| {
        let named = read.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value).collect::<Vec<_>>()
    };
    for name in head.headers.keys().filter(|name| *name != TRANSFER_ENCODING) {
        let meant: Vec<_> = head.headers.get_all(name).iter().map(|it| it.as_bytes()).collect();
        let is_length = *name == CONTENT_LENGTH;
        assert!(is_length || values(name.as_str()) == meant, "{name}");
    }
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    match framing {
        Framing::Chunked { .. } => assert_eq!((lengths.len(), codings), (0, vec![&b"chunked"[..]])),
        Framing::Length(bytes) => {
            assert!(codings.is_empty() && lengths.len() <= 1);
            let said =
                lengths.first().map_or("0", |length| std::str::from_utf8(length).unwrap_or(""));
            assert_eq!(said.parse(), Ok(bytes));
            assert!(length.is_none_or(|length| length == bytes), "another length than the body's");
        }
    }
    if head.headers.get_all(HOST).iter().count() <= 1 && !values("host").is_empty() {
        let is_screened = head.uri.path_and_query().is_none_or(|path| path.as_str().is_ascii());
        let mut screen = Screen::new(limits());
        let verdict = screen.admit(&written);
        assert!(!is_screened || verdict.is_ok(), "{verdict:?}");
        assert!(!is_screened || screen.heads() == 1);
    }
}

fn limits() -> HeadLimits {
    const ANY: usize = 1 << 20;
    HeadLimits { target_bytes_max: ANY, field_bytes_max: ANY, head_bytes_max: ANY, fields_max: ANY }
}

/// A body that is never read.
struct Promised(Option<u64>);

impl http_body::Body for Promised {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        self.0.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
