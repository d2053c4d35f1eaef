//! TLS: towards clients, and between nodes.
//!
//! This module decides which certificate is shown, which versions and protocols are spoken, how
//! many handshakes may be in flight, and who a peer node is. Which app a name belongs to is the
//! caller's knowledge; it is asked once per handshake.

pub mod handshake;
pub mod certificates;
pub mod mesh;
pub mod dev_ca;
pub(crate) mod offer;
mod client;
mod in_flight;
mod tickets;
mod pair;
mod leaf;

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use certificates::{Certificates, CertificatesError};
pub(crate) use client::client;
pub use dev_ca::DevCa;
pub use handshake::{Alpn, Secured, Tls, Version};
pub use leaf::LeafError;
pub use mesh::{IdentityError, MeshTls};
pub use offer::PortTls;
pub use pair::PairError;
pub use tickets::TicketKeys;

/// TLS cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} cannot be used", path.display())]
    Pair {
        path: PathBuf,
        #[source]
        source: PairError,
    },
    #[error("{} holds no usable CA certificate", path.display())]
    Ca { path: PathBuf },
    #[error("{} does not say who this node is", path.display())]
    Identity {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error("{} is not signed by the CA in {}", path.display(), ca.display())]
    NotSigned {
        path: PathBuf,
        ca: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("the TLS library refused the configuration")]
    Configure(#[source] rustls::Error),
    #[error("the TLS library cannot verify client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("a certificate could not be generated")]
    Generate(#[source] rcgen::Error),
}

/// The one crypto provider of the process, passed explicitly so that no default is ever installed.
///
/// It has AEAD suites with ephemeral keys only (rustls implements no other). As a client the
/// post-quantum hybrid goes first; as a server rustls follows the client's order.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
        Arc::new(CryptoProvider {
            kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// An error with its causes, on one line, for the log.
fn reasons(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
