//! What comes before a key is agreed on, and the certificate of whoever says to be a node.

use rustls_pki_types::CertificateDer;

use super::wire::{Plain, Wire, run};
use crate::tls::handshake::client_hello as read_client_hello;
use crate::tls::mesh::identity::node_of;
use crate::tls::offer::normal;

/// However a ClientHello is cut, it is the same one or none, and the client cannot send for ever.
pub fn client_hello(bytes: &[u8]) {
    let mut before = None;
    for piece in [usize::MAX, 1, 5, 300] {
        let mut wire = Wire::new(bytes, piece, Plain);
        let written = wire.written();
        let result = run(read_client_hello(&mut wire)).expect("nothing to wait for");
        // One read more than the bound of the handshake.
        assert!(wire.read() <= 16 * 1024 + 2048, "read {}", wire.read());
        let hello = match result {
            Ok(accepted) => {
                assert_eq!(written.get(), 0, "answered before anything is decided");
                let hello = accepted.client_hello();
                let name = hello.server_name().map(|name| normal(name).to_owned());
                assert!(
                    !name.as_ref().is_some_and(|name| name.bytes().any(|b| b.is_ascii_uppercase()))
                );
                Some((
                    name,
                    hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect::<Vec<_>>()),
                ))
            }
            Err(_) => {
                assert!(written.get() <= 64, "an alert, not {} bytes", written.get());
                None
            }
        };
        assert_eq!(*before.get_or_insert_with(|| hello.clone()), hello, "in pieces of {piece}");
    }
}

/// A certificate names one valid node or none.
pub fn node_certificate(bytes: &[u8]) {
    let certificate = CertificateDer::from(bytes);
    let Ok(node) = node_of(&certificate, "ferrule") else { return };
    assert!(control::names::node(node.as_str()).is_ok(), "{node} is no node id");
}
