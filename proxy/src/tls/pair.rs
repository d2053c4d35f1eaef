//! One certificate chain and its private key, read from PEM and checked against each other.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::leaf::{Leaf, LeafError};
use super::provider;

/// A chain and its key, fit to be served.
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) leaf: Leaf,
}

/// A chain and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error("the chain file cannot be read")]
    ReadChain(#[source] io::Error),
    #[error("the key file cannot be read")]
    ReadKey(#[source] io::Error),
    #[error("the chain is not valid PEM")]
    ChainPem(#[source] pem::Error),
    #[error("the chain holds no certificate")]
    NoCertificate,
    #[error("the leaf cannot be parsed")]
    Leaf(#[source] LeafError),
    #[error("the leaf has no DNS name to be found by")]
    NoName,
    // No source: a parser's message could quote the key.
    #[error("there is no unencrypted PKCS#8, SEC1 or PKCS#1 key in the key file")]
    KeyPem,
    #[error("the key does not belong to the certificate")]
    Mismatch,
    #[error("the key cannot be used")]
    Key(#[source] rustls::Error),
}

/// Longest file read; the longest chain of RSA-8192 certificates is a tenth of it.
const FILE_BYTES_MAX: u64 = 256 * 1024;

// === impl Pair ===

impl Pair {
    pub(super) fn parse(chain: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(PairError::ChainPem)?;
        let leaf = chain.first().ok_or(PairError::NoCertificate)?;
        let leaf = Leaf::parse(leaf).map_err(PairError::Leaf)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| PairError::KeyPem)?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => PairError::Mismatch,
            other => PairError::Key(other),
        })?;
        Ok(Self { key: Arc::new(key), leaf })
    }
}

// === impl PairError ===

impl PairError {
    /// Whether the key file is the one to look at.
    pub(super) fn is_of_key(&self) -> bool {
        match self {
            Self::ReadKey(_) | Self::KeyPem | Self::Mismatch | Self::Key(_) => true,
            Self::ReadChain(_)
            | Self::ChainPem(_)
            | Self::NoCertificate
            | Self::Leaf(_)
            | Self::NoName => false,
        }
    }
}

/// Reads a whole file, if it is one and not longer than any certificate is.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Asked before opening: opening a pipe would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 256 KiB"));
    }
    Ok(bytes)
}
