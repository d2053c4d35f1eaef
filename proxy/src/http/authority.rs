//! The name a request is for: read strictly, from one place.
//!
//! Three sources can name it (request target, `:authority`, `Host`). They must agree, and the name
//! must be one name: `a, b`, `a/b`, user information and whitespace are refused, because an instance
//! behind us could read another name out of them than we did.

use std::net::Ipv6Addr;

use http::header::{HOST, HeaderValue};
use http::request;
use http::uri::Authority;

use crate::error::Code;

/// The authority of a request, with its host in lower case and without a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub authority: Authority,
    /// Set when it differs from `authority.host()`.
    normal: Option<Box<str>>,
}

// === impl Named ===

impl Named {
    /// The host to look up.
    pub fn host(&self) -> &str {
        self.normal.as_deref().unwrap_or_else(|| self.authority.host())
    }

    fn new(authority: Authority) -> Result<Self, Code> {
        let text = authority.as_str();
        if !text.bytes().all(is_authority_byte) || authority.host().is_empty() {
            return Err(Code::PP02);
        }
        // `host:` and `host:99999` parse as an authority; they are no place to go.
        let after_host = &text[authority.host().len()..];
        if !after_host.is_empty() && authority.port_u16().is_none() {
            return Err(Code::PP02);
        }
        let host = authority.host();
        let trimmed = host.strip_suffix('.').unwrap_or(host);
        if !is_address(trimmed) && !trimmed.split('.').all(is_label) {
            return Err(Code::PP02);
        }
        let normal = (trimmed.len() < host.len() || host.bytes().any(|b| b.is_ascii_uppercase()))
            .then(|| trimmed.to_ascii_lowercase().into_boxed_str());
        Ok(Self { authority, normal })
    }
}

/// The authority of `head`.
///
/// # Errors
///
/// [`Code::PP02`] when there is none, when it is not one valid name, or when two sources differ.
pub fn of(head: &request::Parts) -> Result<Named, Code> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(Code::PP02);
    }
    match (head.uri.authority(), host) {
        (None, None) => Err(Code::PP02),
        (Some(target), None) => Named::new(target.clone()),
        (None, Some(host)) => Named::new(parse(host)?),
        //= https://www.rfc-editor.org/rfc/rfc9113#section-8.3.1
        //# A server SHOULD treat a request as malformed if it contains a Host header field that
        //# identifies an entity that differs from the entity in the ":authority" pseudo-header
        (Some(target), Some(host))
            if host.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes()) =>
        {
            Named::new(target.clone())
        }
        (Some(_), Some(_)) => Err(Code::PP02),
    }
}

fn parse(host: &HeaderValue) -> Result<Authority, Code> {
    Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(host.as_bytes()))
        .map_err(|_| Code::PP02)
}

/// An IPv6 address in brackets. An IPv4 address has the form of a name.
fn is_address(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Without this `a..` would become `a.`, which others read as `a`, and `.` no name at all.
fn is_label(label: &str) -> bool {
    !label.is_empty() && !label.contains(['[', ']', ':'])
}

/// Letters, digits, `-`, `.`, `_`, and `[ ] :` of addresses and ports.
fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(target: &str, host: Option<&str>) -> Result<String, Code> {
        let mut builder = http::Request::builder().uri(target);
        if let Some(host) = host {
            builder = builder.header("host", host);
        }
        let (head, ()) = builder.body(()).unwrap().into_parts();
        of(&head).map(|named| named.host().to_owned())
    }

    #[test]
    fn one_valid_name_is_read() {
        assert_eq!(named("/", Some("a.test")).as_deref(), Ok("a.test"));
        assert_eq!(named("/", Some("A.Test.:8080")).as_deref(), Ok("a.test"));
        assert_eq!(named("/", Some("[2001:db8::1]:80")).as_deref(), Ok("[2001:db8::1]"));
        assert_eq!(named("http://a.test/", None).as_deref(), Ok("a.test"));
        assert_eq!(named("http://a.test/", Some("A.test")).as_deref(), Ok("a.test"));
    }

    #[test]
    fn anything_else_is_refused() {
        for host in [
            "",
            "a.test evil.test",
            "a, b",
            "a.test/x",
            "a\tb",
            "me@a.test",
            "a.test:",
            "a.test:x",
            "a.test:99999",
            ":80",
            "a.test?x",
            "a.test#x",
            "[::1",
            "[zz]",
            ".",
            "a..",
            "a..b",
            ".a",
            "a%2etest",
        ] {
            assert_eq!(named("/", Some(host)), Err(Code::PP02), "{host:?}");
        }
        assert_eq!(named("/", None), Err(Code::PP02));
        assert_eq!(named("http://a.test/", Some("b.test")), Err(Code::PP02));
    }
}
