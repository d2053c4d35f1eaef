//! TLS of a client that trusts one certificate.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::Result;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::connect as connect_tcp;

pub(crate) type Config = Arc<ClientConfig>;

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn config(certificate: &CertificateDer<'static>, protocols: &[&str]) -> Result<Config> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// Connects and shakes hands.
pub(crate) fn connect(address: SocketAddr, name: &str, config: &Config) -> Result<Tls> {
    let session = ClientConnection::new(config.clone(), name.to_owned().try_into()?)?;
    let mut stream = StreamOwned::new(session, connect_tcp(address)?);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}
