use http::{HeaderValue, Request};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

use super::*;

/// A body of which only this much is known.
struct Promised(Option<u64>);

impl http_body::Body for Promised {
    type Data = bytes::Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Failure>>> {
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        self.0.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn of(method: &str, target: &str, fields: &[(&str, &str)]) -> request::Parts {
    let mut builder = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn encoded(head: &request::Parts, body: &Body) -> Result<String, Code> {
    let mut out = Vec::new();
    let framing = encode(head, body, &mut out).map_err(|failure| failure.code)?;
    let text = String::from_utf8(out).unwrap();
    assert_eq!(matches!(framing, Framing::Chunked { .. }), text.contains("chunked"), "{text}");
    Ok(text)
}

#[test]
fn the_target_is_in_origin_form_and_the_host_is_named_once() {
    for (target, fields, expected) in [
        ("/a?b", &[("host", "a.test")][..], "GET /a?b HTTP/1.1\r\nhost: a.test\r\n\r\n"),
        ("http://a.test/x", &[], "GET /x HTTP/1.1\r\nhost: a.test\r\n\r\n"),
        ("http://a.test", &[], "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"),
        ("http://a.test?q", &[], "GET /?q HTTP/1.1\r\nhost: a.test\r\n\r\n"),
        ("http://a.test/", &[("host", "b.test")], "GET / HTTP/1.1\r\nhost: b.test\r\n\r\n"),
        ("*", &[("host", "a.test")], "GET * HTTP/1.1\r\nhost: a.test\r\n\r\n"),
    ] {
        assert_eq!(
            encoded(&of("GET", target, fields), &Body::Empty).unwrap(),
            expected,
            "{target}"
        );
    }
}

#[test]
fn a_body_is_framed_in_one_way() {
    let promised = |bytes| Body::boxed(Promised(bytes));
    let (length, chunked) = ("content-length: 7\r\n", "transfer-encoding: chunked\r\n");
    for (method, fields, body, expected) in [
        ("GET", &[][..], Body::Empty, ""),
        ("POST", &[], Body::Empty, "content-length: 0\r\n"),
        ("DELETE", &[], Body::Empty, ""),
        ("GET", &[], promised(Some(7)), length),
        ("POST", &[], promised(Some(7)), length),
        ("POST", &[], Body::full("7 bytes"), length),
        ("POST", &[("content-length", "7")], promised(None), length),
        ("POST", &[("content-length", "7")], promised(Some(7)), length),
        ("GET", &[], promised(None), chunked),
        ("POST", &[], promised(None), chunked),
        // Whatever an earlier hop has said of its own body.
        ("POST", &[("transfer-encoding", "gzip")], promised(None), chunked),
        ("POST", &[("transfer-encoding", "chunked")], promised(Some(7)), length),
        ("GET", &[("transfer-encoding", "chunked")], Body::Empty, ""),
    ] {
        let text = encoded(&of(method, "/", fields), &body).unwrap();
        let (_, framing) = text.split_once("\r\n").unwrap();
        assert_eq!(framing, format!("{expected}\r\n"), "{method} {fields:?}");
    }
}

#[test]
fn a_length_that_is_not_the_bodys_is_not_sent() {
    for (lengths, body) in [
        (&["5"][..], Body::Empty),
        (&["5"], Body::full("hello!")),
        (&["5", "5"], Body::full("hello")),
        (&["5, 5"], Body::full("hello")),
        (&["x"], Body::boxed(Promised(None))),
        (&["+5"], Body::full("hello")),
        (&["5 "], Body::full("hello!")),
    ] {
        let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
        assert_eq!(encoded(&of("POST", "/", &fields), &body), Err(Code::PP02), "{lengths:?}");
    }
    assert_eq!(encoded(&of("CONNECT", "a.test:1", &[]), &Body::Empty), Err(Code::PP05));
}

#[test]
fn values_pass_byte_for_byte() {
    let mut head = of("GET", "/", &[]);
    let odd = HeaderValue::from_bytes(b"\xe9\t \xff").unwrap();
    head.headers.append("x", odd);
    let mut out = Vec::new();
    encode(&head, &Body::Empty, &mut out).unwrap();
    assert_eq!(out, b"GET / HTTP/1.1\r\nx: \xe9\t \xff\r\n\r\n");
}

#[test]
fn trailers_are_those_that_were_announced_and_may_be() {
    let head = of("POST", "/", &[("trailer", "Sum, host, not a name"), ("trailer", "other")]);
    let announced = announced(&head.headers);
    let fields = [("sum", "1"), ("host", "evil"), ("hidden", "2"), ("other", "3")];
    let fields = fields
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut out = Vec::new();
    write_end(Some(&HeaderMap::from_iter(fields)), &announced, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), "0\r\nsum: 1\r\nother: 3\r\n\r\n");
}

#[test]
fn sizes_of_chunks_are_hexadecimal() {
    for size in [0, 1, 9, 10, 15, 16, 255, 256, 4096, 65_535, 65_536, usize::MAX] {
        let mut out = Vec::new();
        write_chunk_size(size, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{size:X}\r\n"));
        let mut out = Vec::new();
        write_decimal(size as u64, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), size.to_string());
    }
}
