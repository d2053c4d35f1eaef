//! A peer of our own making: shakes hands with whatever certificate a test gives it and counts
//! whether the node then spoke to it.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection};

use super::Scripted;
use crate::certs::{Certs, Pair};

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The peer; stops when dropped.
pub struct MeshServer {
    _listener: Scripted,
    greetings: Arc<AtomicUsize>,
}

impl MeshServer {
    /// Listens on `address` and shows `pair`.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn start(address: SocketAddr, certs: &Certs, pair: &Pair) -> Self {
        let verifier = WebPkiClientVerifier::builder(certs.roots()).build();
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier.expect("sound roots"))
            .with_single_cert(vec![pair.der()], pair.key_der())
            .expect("a sound pair");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let greetings = Arc::new(AtomicUsize::new(0));
        let counted = greetings.clone();
        let listener = Scripted::start_at(address, move |connection| {
            let session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            let mut tls = rustls::StreamOwned::new(session, connection.stream()?);
            let mut said = [0; PREFACE.len()];
            tls.read_exact(&mut said)?;
            if said == PREFACE {
                counted.fetch_add(1, SeqCst);
            }
            Ok(())
        });
        Self { _listener: listener, greetings }
    }

    /// How often a node began to speak HTTP/2 to it.
    pub fn greetings(&self) -> usize {
        self.greetings.load(SeqCst)
    }
}
