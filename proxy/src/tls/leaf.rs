//! What a certificate says: its names, and until when it is valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The facts of one leaf certificate that decide anything here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    /// DNS names in lower case; a wildcard is still spelled `*.parent`.
    pub(super) dns_names: Vec<String>,
    pub(super) uris: Vec<String>,
    pub(super) not_after: SystemTime,
}

/// How near the end of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    Far,
    /// Less than [`EXPIRY_WARNING`] away.
    Soon,
    Over,
}

/// A certificate cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    #[error("the certificate is not valid X.509")]
    Encoding,
    #[error("the subject alternative names are malformed")]
    Names,
}

/// Renewal is late when less than this is left.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 3600);

// === impl Leaf ===

impl Leaf {
    pub(super) fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| LeafError::Encoding)?;
        if !rest.is_empty() {
            return Err(LeafError::Encoding);
        }
        let names = certificate.subject_alternative_name().map_err(|_| LeafError::Names)?;
        let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => dns_names.push(name.to_ascii_lowercase()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                _ => {}
            }
        }
        // A date before 1970 is as expired as 1970 itself.
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { dns_names, uris, not_after: UNIX_EPOCH + Duration::from_secs(seconds) })
    }

    pub(super) fn expiry(&self, now: SystemTime) -> Expiry {
        match self.not_after.duration_since(now) {
            Err(_) => Expiry::Over,
            Ok(left) if left < EXPIRY_WARNING => Expiry::Soon,
            Ok(_) => Expiry::Far,
        }
    }
}
