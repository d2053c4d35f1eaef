//! The opening handshake of WebSocket towards an instance (RFC 6455 §4.1).
//!
//! An HTTP/1 client brings its own key, and it is the client that checks the answer. RFC 8441 has no
//! key: then one is made here, and checked here.

pub mod frames;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};

use crate::error::{Code, Failure};

/// A handshake that was begun.
pub struct Handshake {
    /// What the instance must answer; `None` when the client checks.
    accept: Option<String>,
}

/// RFC 6455 §1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

// === impl Handshake ===

impl Handshake {
    /// Adds a key to `headers` if the protocol needs one and the client brought none.
    pub fn begin(protocol: &str, headers: &mut HeaderMap) -> Self {
        if protocol != "websocket" || headers.contains_key(SEC_WEBSOCKET_KEY) {
            return Self { accept: None };
        }
        let mut nonce = [0; 16];
        if rand::fill(&mut nonce).is_err() {
            return Self { accept: None }; // the instance will refuse a handshake without a key
        }
        let key = STANDARD.encode(nonce);
        let accept = accept(&key);
        if let Ok(key) = HeaderValue::try_from(key) {
            headers.insert(SEC_WEBSOCKET_KEY, key);
        }
        Self { accept: Some(accept) }
    }

    /// Checks the instance's answer and removes what the client did not ask for.
    ///
    /// # Errors
    ///
    /// [`Code::PU07`] when the instance did not understand the key.
    pub fn verify(&self, headers: &mut HeaderMap) -> Result<(), Failure> {
        let Some(expected) = &self.accept else { return Ok(()) };
        match headers.remove(SEC_WEBSOCKET_ACCEPT) {
            Some(accept) if accept.as_bytes() == expected.as_bytes() => Ok(()),
            _ => Err(Code::PU07.into()),
        }
    }
}

/// What answers `key`: RFC 6455 §4.2.2, step 5.4.
pub fn accept(key: &str) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_holds() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_of_ours_is_checked_by_us() {
        let mut headers = HeaderMap::new();
        let handshake = Handshake::begin("websocket", &mut headers);
        let key = headers[SEC_WEBSOCKET_KEY].to_str().unwrap().to_owned();
        assert!(handshake.verify(&mut HeaderMap::new()).is_err());
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept(&key).parse().unwrap());
        assert!(handshake.verify(&mut headers).is_ok());
        assert!(!headers.contains_key(SEC_WEBSOCKET_ACCEPT));
    }

    #[test]
    fn a_clients_key_is_the_clients_to_check() {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(Handshake::begin("websocket", &mut headers).verify(&mut HeaderMap::new()).is_ok());
    }
}
