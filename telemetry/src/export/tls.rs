//! Whom the exporter trusts, and who it says it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use hyper_rustls::ConfigBuilderExt as _;

use super::config::Target;

/// Files of certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the machine's trusted certificates cannot be read")]
    Roots(#[source] std::io::Error),
    #[error("{0} holds no certificate in PEM that can be read")]
    Certificate(PathBuf),
    #[error("{0} holds no private key in PEM that can be read")]
    Key(PathBuf),
    #[error("certificate {0} and its key do not go together")]
    Pair(PathBuf, #[source] rustls::Error),
    #[error("no version of TLS is enabled")]
    Versions(#[source] rustls::Error),
}

/// The settings of TLS for `target`: the machine's roots unless it names its own.
pub(super) fn client(target: &Target) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?;
    let builder = match &target.certificate {
        Some(path) => builder.with_root_certificates(roots(path)?),
        // They are read only where they are needed: a machine may have none.
        None if target.uri.scheme_str() != Some("https") => {
            builder.with_root_certificates(RootCertStore::empty())
        }
        None => builder.with_native_roots().map_err(TlsError::Roots)?,
    };
    identify(builder, target)
}

fn identify(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    target: &Target,
) -> Result<ClientConfig, TlsError> {
    let Some((certificate, key)) = &target.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = chain(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|_| TlsError::Key(key.clone()))?;
    let pair = builder.with_client_auth_cert(chain, key);
    pair.map_err(|error| TlsError::Pair(certificate.clone(), error))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(path)? {
        roots.add(certificate).map_err(|_| TlsError::Certificate(path.to_owned()))?;
    }
    Ok(roots)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = || TlsError::Certificate(path.to_owned());
    let chain = CertificateDer::pem_file_iter(path).map_err(|_| unusable())?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|_| unusable())?;
    if chain.is_empty() { Err(unusable()) } else { Ok(chain) }
}
