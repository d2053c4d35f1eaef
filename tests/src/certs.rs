//! Throw-away certificate authorities and what they sign (ECDSA P-256), in a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;

/// An authority of one test, with its certificate on disk.
pub struct Certs {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct Pair {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

/// Whether a certificate is still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// For decades.
    Valid,
    /// It ended in the year 2001.
    Expired,
}

// === impl Certs ===

impl Certs {
    /// A new authority.
    pub fn new() -> Self {
        let directory = TempDir::with_prefix("ferrule-certs-").expect("a temporary folder");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ferrule test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("sound parameters");
        fs::write(directory.path().join("ca.pem"), issuer.pem()).expect("the folder is ours");
        Self { directory, issuer }
    }

    /// The authority's certificate as a file.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The authority as what a client trusts.
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a sound certificate");
        Arc::new(roots)
    }

    /// A server's certificate for `names`, which may be wildcards or addresses.
    pub fn leaf(&self, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.sign(CertificateParams::new(names).expect("sound names"))
    }

    /// A node's mesh certificate: its only name is `spiffe://ferrule/node/<id>`.
    pub fn node(&self, id: &str, validity: Validity) -> Pair {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://ferrule/node/{id}").try_into().expect("ASCII");
        params.subject_alt_names.push(SanType::URI(uri));
        if validity == Validity::Expired {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Pair {
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).expect("sound parameters");
        Pair { certificate, key }
    }
}

impl Default for Certs {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Pair ===

impl Pair {
    /// Writes `<path without extension>.pem` and `.key`, each whole or not at all: the key first,
    /// so that a watcher that wakes for the certificate finds its key.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn write(&self, path: &Path) {
        write_whole(&path.with_extension("key"), &self.key.serialize_pem());
        write_whole(&path.with_extension("pem"), &self.certificate.pem());
    }

    /// The certificate as the handshake carries it.
    pub fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    /// The private key.
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// Writes a file so that a reader sees the old or the new one, never half of it.
///
/// # Panics
/// When the folder cannot be written.
pub fn write_whole(path: &Path, text: &str) {
    let name = path.file_name().expect("a file has a name").to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    fs::write(&beside, text).expect("the folder is ours");
    fs::rename(&beside, path).expect("the folder is ours");
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("random bytes")
}
