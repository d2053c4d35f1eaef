//! Whom clients and nodes of a run trust: an authority whose key exists only in this process.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let mut params = params();
        params.distinguished_name.push(DnType::CommonName, "authority of a proof");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Chain and key, as PEM, of a server with these names.
    pub(crate) fn server(&self, names: &[String]) -> Result<(String, String)> {
        let mut params = params();
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// The same of a node among nodes.
    pub(crate) fn node(&self, id: &str) -> Result<(String, String)> {
        let mut params = params();
        let name = format!("spiffe://ferrule/node/{id}").as_str().try_into()?;
        params.subject_alt_names = vec![SanType::URI(name)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// `<file>.pem` and `<file>.key`, each of them whole at any time.
    pub(crate) fn write(&self, folder: &Path, file: &str, names: &[String]) -> Result<()> {
        let (chain, key) = self.server(names)?;
        for (extension, text) in [("key", key), ("pem", chain)] {
            let place = folder.join(format!("{file}.{extension}"));
            let draft = place.with_extension("draft");
            fs::write(&draft, text)?;
            fs::rename(draft, place)?;
        }
        Ok(())
    }

    fn sign(&self, mut params: CertificateParams) -> Result<(String, String)> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }
}

/// From yesterday on, for a month.
fn params() -> CertificateParams {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let yesterday = SystemTime::now() - DAY;
    let mut params = CertificateParams::default();
    params.not_before = yesterday.into();
    params.not_after = (yesterday + 30 * DAY).into();
    params.distinguished_name = DistinguishedName::new();
    params
}
