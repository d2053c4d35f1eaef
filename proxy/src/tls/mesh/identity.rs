//! Who a certificate says a node is, and the two verifiers that insist on it.
//!
//! A node's certificate carries exactly one URI name, `spiffe://<trust domain>/node/<node id>`, and
//! need not have a DNS name; so the chain is verified here without one, and the id takes the place
//! of the name.

use std::fmt;
use std::sync::Arc;

use control::snapshot::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::tls::leaf::{Leaf, LeafError};

/// A certificate does not prove to be the node's that was expected.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("there is no certificate")]
    NoCertificate,
    #[error("the certificate cannot be parsed")]
    Leaf(#[source] LeafError),
    #[error("the certificate does not carry exactly one URI name")]
    NotOneUri,
    #[error("the certificate's URI name is not that of a node in the trust domain")]
    NotANode,
    #[error("the certificate names node {named}, not {expected}")]
    OtherNode { named: NodeId, expected: NodeId },
}

/// Accepts every node of the trust domain as a client.
pub(super) struct AnyNode {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Arc<str>,
}

/// Accepts one node as the server.
pub(super) struct ThisNode {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: Arc<str>,
    node: NodeId,
}

/// Longest node id there is.
const NODE_ID_BYTES_MAX: usize = 64;

/// The URI name of `node`.
pub(in crate::tls) fn spiffe_id(trust_domain: &str, node: &NodeId) -> String {
    format!("spiffe://{trust_domain}/node/{node}")
}

/// The node that `certificate` names. Says nothing about who signed it.
pub(crate) fn node_of(
    certificate: &CertificateDer<'_>,
    trust_domain: &str,
) -> Result<NodeId, IdentityError> {
    let leaf = Leaf::parse(certificate).map_err(IdentityError::Leaf)?;
    // SPIFFE asks for exactly one; with two, the reader would choose who the node is.
    let [uri] = leaf.uris.as_slice() else {
        return Err(IdentityError::NotOneUri);
    };
    let id = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_prefix(trust_domain))
        .and_then(|rest| rest.strip_prefix("/node/"))
        .filter(|id| is_node_id(id))
        .ok_or(IdentityError::NotANode)?;
    Ok(NodeId::new(id))
}

fn is_node_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NODE_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(allowed)
}

// === impl IdentityError ===

impl IdentityError {
    pub(super) fn unless_same(named: &NodeId, expected: &NodeId) -> Result<(), Self> {
        if named == expected {
            return Ok(());
        }
        Err(Self::OtherNode { named: named.clone(), expected: expected.clone() })
    }
}

impl From<IdentityError> for rustls::Error {
    fn from(error: IdentityError) -> Self {
        Self::Other(OtherError(Arc::new(error)))
    }
}

// === impl AnyNode ===

impl AnyNode {
    /// `chain` verifies everything but the name.
    pub(super) fn new(chain: Arc<dyn ClientCertVerifier>, trust_domain: Arc<str>) -> Self {
        Self { chain, trust_domain }
    }
}

impl ClientCertVerifier for AnyNode {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        node_of(end_entity, &self.trust_domain)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::SupportedVersionsExtensionRequired.into()) // the mesh speaks 1.3 only
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl fmt::Debug for AnyNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyNode").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

// === impl ThisNode ===

impl ThisNode {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        algorithms: WebPkiSupportedAlgorithms,
        trust_domain: Arc<str>,
        node: NodeId,
    ) -> Self {
        Self { roots, algorithms, trust_domain, node }
    }
}

impl ServerCertVerifier for ThisNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let named = node_of(end_entity, &self.trust_domain)?;
        IdentityError::unless_same(&named, &self.node)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::SupportedVersionsExtensionRequired.into()) // the mesh speaks 1.3 only
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for ThisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThisNode").field("node", &self.node).finish_non_exhaustive()
    }
}
