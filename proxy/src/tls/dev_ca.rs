//! A throw-away certificate authority for the demo and the tests, and the one self-signed
//! certificate that ports with `default_self_signed` fall back to.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control::snapshot::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{TlsError, mesh, provider};

/// A CA whose key exists only in this process. ECDSA P-256 throughout.
pub struct DevCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

// === impl DevCa ===

impl DevCa {
    pub fn new() -> Result<Self, TlsError> {
        let mut params = params(30 * DAY);
        params.distinguished_name.push(DnType::CommonName, "ferrule throw-away CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(TlsError::Generate)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(TlsError::Generate)?;
        Ok(Self { issuer })
    }

    pub fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server certificate for `names` (DNS names, wildcards, IP addresses): chain and key as PEM,
    /// valid from yesterday for 30 days.
    pub fn issue(&self, names: &[&str]) -> Result<(String, String), TlsError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let named = CertificateParams::new(names).map_err(TlsError::Generate)?;
        let mut params = params(30 * DAY);
        params.subject_alt_names = named.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A node's mesh certificate, for both sides of a connection: chain and key as PEM.
    pub fn issue_node(
        &self,
        trust_domain: &str,
        node: &NodeId,
    ) -> Result<(String, String), TlsError> {
        self.sign(Self::node_params(&[&mesh::spiffe_id(trust_domain, node)])?)
    }

    pub(super) fn node_params(uris: &[&str]) -> Result<CertificateParams, TlsError> {
        let mut params = params(30 * DAY);
        for uri in uris {
            let uri = (*uri).try_into().map_err(TlsError::Generate)?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params)
    }

    pub(super) fn sign(&self, mut params: CertificateParams) -> Result<(String, String), TlsError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(TlsError::Generate)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(TlsError::Generate)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }
}

/// One generic certificate for the whole process and all names: nobody can make the node sign one
/// for every name it asks for.
pub(super) fn self_signed() -> Result<Arc<CertifiedKey>, TlsError> {
    let mut params = params(3650 * DAY); // nobody verifies it; it need only outlive the process
    params.distinguished_name.push(DnType::CommonName, "ferrule default certificate");
    let name = "default.ferrule.invalid".try_into().map_err(TlsError::Generate)?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    let key = KeyPair::generate().map_err(TlsError::Generate)?;
    let certificate = params.self_signed(&key).map_err(TlsError::Generate)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let certified = CertifiedKey::from_der(vec![certificate.into()], key, &provider())
        .map_err(TlsError::Configure)?;
    Ok(Arc::new(certified))
}

pub(super) fn params(lifetime: Duration) -> CertificateParams {
    let yesterday = SystemTime::now() - DAY; // clocks of peers may be behind ours
    let mut params = CertificateParams::default();
    params.not_before = yesterday.into();
    params.not_after = (yesterday + lifetime).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}
