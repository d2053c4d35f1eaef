//! Clients that do what they should not.

use std::sync::Mutex;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::{DigitallySignedStruct, Error, NamedGroup, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::tls::provider;

/// Remembers sessions without regard to the server's name.
#[derive(Debug)]
pub(super) struct OneForAllNames {
    cache: ClientSessionMemoryCache,
    pub(super) stored: Mutex<usize>,
}

impl OneForAllNames {
    pub(super) fn new() -> Self {
        Self { cache: ClientSessionMemoryCache::new(8), stored: Mutex::new(0) }
    }
}

fn everybody() -> ServerName<'static> {
    ServerName::try_from("everybody.invalid").unwrap()
}

impl ClientSessionStore for OneForAllNames {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(everybody(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.kx_hint(&everybody())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        *self.stored.lock().unwrap() += 1;
        self.cache.set_tls12_session(everybody(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.cache.tls12_session(&everybody())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.cache.remove_tls12_session(&everybody());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        *self.stored.lock().unwrap() += 1;
        self.cache.insert_tls13_ticket(everybody(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.cache.take_tls13_ticket(&everybody())
    }
}

/// Trusts every server.
#[derive(Debug)]
pub(super) struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
