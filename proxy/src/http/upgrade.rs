//! Upgrades: what asks for one, and how the tunnel gets from the request to its connection.
//!
//! WebSocket comes as an HTTP/1 `Upgrade` or as an HTTP/2 extended CONNECT (RFC 8441); both become
//! one [`Request`] with a slot. Whoever answers the request puts the upstream's tunnel into the
//! slot; whoever owns the client's bytes takes it out once the answer has been sent.

use std::cell::RefCell;
use std::rc::Rc;

use http::{Method, Version, header, request};

use crate::body::Body;
use crate::drain::Class;
use crate::http::screen::is_token;
use crate::limit::Held;
use crate::upstream::Tunnel;

/// The wish to speak another protocol on this connection or stream.
#[derive(Clone)]
pub struct Request {
    /// One token, in lower case.
    pub protocol: Box<str>,
    pub slot: Slot,
}

/// The protocol of a raw TCP tunnel between nodes; no token of HTTP can spell it.
pub const RAW: &str = "raw tcp";

/// Where the tunnel waits for the client's side.
#[derive(Clone, Default)]
pub struct Slot(Rc<RefCell<Option<Switched>>>);

/// The upstream's side of an upgraded connection, and what must live as long as it.
pub struct Switched {
    pub tunnel: Tunnel,
    pub held: Held,
    pub kind: Kind,
}

/// What is spoken through a tunnel, as far as anybody here understands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    WebSocket,
    /// Something that HTTP was upgraded to.
    Other,
    /// Raw TCP, of a client or of another node's.
    Raw,
}

// === impl Kind ===

impl Kind {
    /// What `protocol` is, by its token.
    pub fn of(protocol: &str) -> Self {
        match protocol {
            "websocket" => Self::WebSocket,
            RAW => Self::Raw,
            _ => Self::Other,
        }
    }

    /// Whose deadline ends it in a drain.
    pub fn class(self) -> Class {
        match self {
            Self::WebSocket | Self::Other => Class::WebSocket,
            Self::Raw => Class::Tcp,
        }
    }
}

// === impl Slot ===

impl Slot {
    pub fn put(&self, switched: Switched) {
        *self.0.borrow_mut() = Some(switched);
    }

    pub fn take(&self) -> Option<Switched> {
        self.0.borrow_mut().take()
    }
}

/// The protocol an HTTP/1 request asks to switch to.
///
/// `None` also for what is ignored, which RFC 9110 §7.8 allows: a request with a body (its bytes
/// could be taken for the new protocol's), `h2c`, and a list of protocols.
pub fn requested(head: &request::Parts, body: &Body) -> Option<Box<str>> {
    if head.version != Version::HTTP_11
        || head.method != Method::GET
        || !matches!(body, Body::Empty)
    {
        return None;
    }
    if !head.headers.contains_key(header::UPGRADE) {
        return None; // nearly always
    }
    let asks = head.headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let mut upgrades = head.headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (upgrades.next(), upgrades.next()) else { return None };
    let protocol = protocol.to_str().ok()?.trim().to_ascii_lowercase();
    //= https://www.rfc-editor.org/rfc/rfc9110#section-7.8
    //# protocol          = protocol-name ["/" protocol-version]
    let is_one = protocol.split('/').all(|token| !token.is_empty() && token.bytes().all(is_token));
    (asks && is_one && protocol != "h2c").then(|| protocol.into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(fields: &[(&str, &str)], body: Body) -> Option<Box<str>> {
        let mut builder = http::Request::builder();
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        requested(&builder.body(()).unwrap().into_parts().0, &body)
    }

    #[test]
    fn one_named_protocol_is_an_upgrade() {
        let fields = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        assert_eq!(protocol(&fields, Body::Empty).as_deref(), Some("websocket"));
    }

    #[test]
    fn everything_else_is_an_ordinary_request() {
        let body = || Body::full("GET /smuggled");
        assert_eq!(protocol(&[("connection", "upgrade"), ("upgrade", "websocket")], body()), None);
        for fields in [
            &[("upgrade", "websocket")][..],
            &[("connection", "upgrade")],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "a, b")],
            &[("connection", "upgrade"), ("upgrade", "raw\ttcp")],
            &[("connection", "upgrade"), ("upgrade", "a/")],
            &[("connection", "upgrade"), ("upgrade", "a"), ("upgrade", "b")],
        ] {
            assert_eq!(protocol(fields, Body::Empty), None, "{fields:?}");
        }
    }
}
