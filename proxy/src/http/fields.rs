//! Rules for header fields that hold whichever HTTP version they came in.
//!
//! What a client may not say, what ends at this hop, and what must not be taken from strangers.
//! Framing on the wire is the screen's (HTTP/1) and h2's; here are complete, parsed heads.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version, request};

use crate::config::Limits;
use crate::error::Code;

/// Fields that describe one connection and end with it (RFC 9110 §7.6.1), beyond those that
/// `Connection` names.
static HOP_BY_HOP: [HeaderName; HOP_BY_HOP_FIELDS] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

const HOP_BY_HOP_FIELDS: usize = 9;

/// What says who the client is, or is ours to say; a client's own version never passes.
const RESERVED_PREFIXES: [&str; 3] = ["x-forwarded-", "ferrule-", "fly-"];
const RESERVED: [&str; 4] = ["forwarded", "x-real-ip", "x-request-start", "x-client-ip"];

/// Refuses a head that should not be passed on, whatever its framing.
///
/// # Errors
///
/// The code of the first rule it breaks.
pub fn check_request(head: &request::Parts, limits: &Limits) -> Result<(), Code> {
    if head.method == Method::TRACE
        || (head.method == Method::CONNECT && head.extensions.get::<h2::ext::Protocol>().is_none())
    {
        return Err(Code::PP05);
    }
    if let Some(expectation) = head.headers.get(header::EXPECT)
        && !expectation.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Code::PP08);
    }
    // The screen has bounded and read an HTTP/1 head already.
    if head.version == Version::HTTP_2 { check_h2_request(head, limits) } else { Ok(()) }
}

fn check_h2_request(head: &request::Parts, limits: &Limits) -> Result<(), Code> {
    if head
        .uri
        .path_and_query()
        .is_some_and(|path| path.as_str().len() > limits.request_target_bytes_max)
    {
        return Err(Code::PP03);
    }
    if head.headers.len() > limits.header_fields_max {
        return Err(Code::PP04);
    }
    let mut bytes = 0;
    for (name, value) in &head.headers {
        let field = name.as_str().len() + value.len() + 2;
        bytes += field;
        if field > limits.header_bytes_max || bytes > limits.head_bytes_max {
            return Err(Code::PP04);
        }
        // The http crate lets `"` pass in a name; HTTP/1 behind us has no such token.
        if name.as_str().contains('"') {
            return Err(Code::PP02);
        }
    }
    let lengths = head.headers.get_all(header::CONTENT_LENGTH).iter().count();
    let hosts = head.headers.get_all(header::HOST).iter().count();
    if lengths > 1 || hosts > 1 || head.headers.contains_key("http2-settings") {
        return Err(Code::PP02);
    }
    Ok(())
}

/// Removes what ends at this hop. `te: trailers` is kept, for it asks for something we pass on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most heads have one such field or none; looking at each name once is cheaper than asking
    // the map for all of them.
    let mut found = [false; HOP_BY_HOP_FIELDS];
    for name in headers.keys() {
        // Most names are decided by their first byte.
        if matches!(name.as_str().as_bytes().first(), Some(b'c' | b'h' | b'k' | b'p' | b't' | b'u'))
            && let Some(index) = HOP_BY_HOP.iter().position(|hop_by_hop| hop_by_hop == name)
        {
            found[index] = true;
        }
    }
    if !found.contains(&true) {
        return;
    }
    let wants_trailers = wants_trailers(headers);
    strip_named_by_connection(headers);
    for (name, found) in HOP_BY_HOP.iter().zip(found) {
        if found {
            headers.remove(name);
        }
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether the sender of `headers` will read trailer fields.
pub fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get(header::TE).is_some_and(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

fn strip_named_by_connection(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // A sender cannot make us forget where the message goes or how long it is.
        .filter(|name| name != header::HOST && name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Makes one `cookie` field of several.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(_), Some(_)) = (crumbs.next(), crumbs.next()) else { return };
    //= https://www.rfc-editor.org/rfc/rfc9113#section-8.2.3
    //# If there are multiple Cookie header fields after decompression, these MUST be concatenated
    //# into a single octet string using the two-octet delimiter of 0x3b, 0x20
    let crumbs: Vec<_> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = crumbs.join(&b"; "[..]);
    if let Ok(cookie) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// Removes every field that only this edge may set, in any spelling: some servers read `_` as `-`.
pub fn strip_reserved(headers: &mut HeaderMap) {
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| is_reserved(name.as_str())).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

fn is_reserved(name: &str) -> bool {
    // Most names are decided by their first byte.
    if !matches!(name.as_bytes().first(), Some(b'x' | b'f')) {
        return false;
    }
    if name.contains('_') {
        return is_reserved_name(&name.replace('_', "-"));
    }
    is_reserved_name(name)
}

fn is_reserved_name(name: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || RESERVED.contains(&name)
}

/// Makes every value a slice of one exact-size block.
///
/// An HPACK decoder's values share its blocks with those of other heads, and an encoder keeps values:
/// without this a few bytes in its table pin whole buffers.
pub fn detach(headers: &mut HeaderMap) {
    let bytes = headers.values().map(HeaderValue::len).sum();
    let mut block = bytes::BytesMut::with_capacity(bytes);
    for value in headers.values_mut() {
        block.extend_from_slice(value.as_bytes());
        let copy = block.split().freeze();
        let sensitive = value.is_sensitive();
        if let Ok(mut detached) = HeaderValue::from_maybe_shared(copy) {
            detached.set_sensitive(sensitive);
            *value = detached;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        fields.iter().map(pair).collect()
    }

    #[test]
    fn what_ends_at_this_hop_is_removed() {
        let mut map = headers(&[
            ("connection", "keep-alive, x-one"),
            ("connection", "X-Two , host, content-length"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("proxy-connection", "close"),
            ("host", "a"),
            ("content-length", "0"),
        ]);
        strip_hop_by_hop(&mut map);
        let expected = headers(&[
            ("te", "trailers"),
            ("x-three", "3"),
            ("host", "a"),
            ("content-length", "0"),
        ]);
        assert_eq!(map, expected);
    }

    #[test]
    fn cookie_crumbs_become_one_cookie() {
        let mut map = headers(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2; c=3")]);
        join_cookies(&mut map);
        assert_eq!(map.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
        let mut one = headers(&[("cookie", "a=1")]);
        join_cookies(&mut one);
        assert_eq!(one, headers(&[("cookie", "a=1")]));
    }

    #[test]
    fn a_client_cannot_say_who_it_is() {
        let mut map = headers(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("X-Forwarded-For", "5.6.7.8"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded_proto", "https"),
            ("forwarded", "for=1.2.3.4"),
            ("ferrule-client-ip", "1.2.3.4"),
            ("ferrule_client_ip", "1.2.3.4"),
            ("ferrule-mesh-app", "other"),
            ("ferrule-trace", "v1.k.e30.AAAA"),
            ("ferrule_trace", "v1.k.e30.AAAA"),
            ("fly-client-ip", "1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-request-id", "mine"),
            ("from", "me"),
        ]);
        strip_reserved(&mut map);
        assert_eq!(map, headers(&[("x-request-id", "mine"), ("from", "me")]));
    }

    proptest! {
        #[test]
        fn stripping_is_idempotent_and_never_adds(
            fields in proptest::collection::vec(
                ("(connection|te|upgrade|x-[a-c]|x_forwarded_for|host)", "[a-z,: -]{0,12}"), 0..8)
        ) {
            let mut once: HeaderMap = fields.iter().map(|(name, value)| (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )).collect();
            let before = once.len();
            strip_hop_by_hop(&mut once);
            strip_reserved(&mut once);
            prop_assert!(once.len() <= before);
            prop_assert!(!once.contains_key(header::CONNECTION) && !once.contains_key(header::UPGRADE));
            let mut twice = once.clone();
            strip_hop_by_hop(&mut twice);
            strip_reserved(&mut twice);
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn detaching_changes_no_value(values in proptest::collection::vec("[ -~]{0,20}", 0..10)) {
            let mut map = HeaderMap::new();
            for value in &values {
                map.append("x", HeaderValue::from_str(value).unwrap());
            }
            let before = map.clone();
            detach(&mut map);
            prop_assert_eq!(before, map);
        }
    }
}
