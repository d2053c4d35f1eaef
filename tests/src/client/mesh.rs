//! Somebody who knocks at a node's mesh port.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::certs::Pair;

/// Whether the node at `address` speaks HTTP/2 to a client that shows `pair`, or nothing.
///
/// # Panics
/// When nobody listens.
pub fn mesh_greets(address: SocketAddr, pair: Option<&Pair>) -> bool {
    let builder = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnybody));
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            builder.with_client_auth_cert(vec![pair.der()], pair.key_der()).expect("a sound pair")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("node.test").expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a sound configuration");
    let socket = TcpStream::connect(address).expect("somebody listens");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("above zero");
    let mut tls = StreamOwned::new(session, socket);
    // The server may refuse in the handshake or, with TLS 1.3, right after it.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    if tls.write_all(preface).and_then(|()| tls.flush()).is_err() {
        return false;
    }
    const SETTINGS: u8 = 4;
    let mut frame = [0; 9];
    tls.read_exact(&mut frame).is_ok() && frame[3] == SETTINGS
}

/// The node's own certificate is not what is tested here.
#[derive(Debug)]
struct TrustAnybody;

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}
