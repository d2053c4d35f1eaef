//! What a port offers in a handshake, as rustls wants to hear it.
//!
//! Ports with the same [`TlsOptions`] share one `ServerConfig`; certificates are looked up anew for
//! each handshake, so a config never goes stale.

use std::sync::Arc;

use arc_swap::ArcSwap;
use control::snapshot::{TlsOptions, TlsVersions};
use foldhash::HashMap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};

use super::certificates::Certificates;
use super::tickets::Tickets;
use super::{TlsError, dev_ca, provider};

/// What one port offers. Cheap to clone; see [`super::Tls::port`].
#[derive(Clone)]
pub struct PortTls {
    config: Arc<ServerConfig>,
    default_self_signed: bool,
    without_sni: Option<Arc<str>>,
}

/// Every offer made so far, and what new ones are made from.
pub(super) struct Offers {
    certificates: Arc<Certificates>,
    self_signed: Arc<CertifiedKey>,
    bases: Bases,
    known: ArcSwap<HashMap<TlsOptions, PortTls>>,
}

struct Bases {
    both: ServerConfig,
    tls12: ServerConfig,
    tls13: ServerConfig,
}

/// Finds the certificate by the SNI alone.
#[derive(Debug)]
struct BySni {
    certificates: Arc<Certificates>,
    otherwise: Option<Arc<CertifiedKey>>,
}

/// Distinct TLS options remembered, about 1 KiB each. Apps write them, so their number is not ours;
/// beyond this the memory starts anew with the ones that are still asked for.
const KNOWN_MAX: usize = 256;

// === impl PortTls ===

impl PortTls {
    /// The same offer, serving the certificate of `name` to clients that send no SNI. Without this
    /// they are refused. For ports on dedicated addresses, where the address says which app is
    /// meant.
    #[must_use]
    pub fn without_sni(mut self, name: Arc<str>) -> Self {
        self.without_sni = Some(name);
        self
    }
}

// === impl Offers ===

impl Offers {
    pub(super) fn new(
        certificates: Arc<Certificates>,
        tickets: &Tickets,
    ) -> Result<Self, TlsError> {
        let base = |versions| -> Result<ServerConfig, TlsError> {
            let resolver = BySni { certificates: certificates.clone(), otherwise: None };
            let mut config = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(versions)
                .map_err(TlsError::Configure)?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(resolver));
            config.ticketer = tickets.producer();
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 1; // each more costs some percent of a resumed handshake
            config.max_early_data_size = 0; // early data can be replayed, and we forward requests
            Ok(config)
        };
        let bases = Bases {
            both: base(&[&TLS13, &TLS12])?,
            tls12: base(&[&TLS12])?,
            tls13: base(&[&TLS13])?,
        };
        let self_signed = dev_ca::self_signed()?;
        Ok(Self { certificates, self_signed, bases, known: ArcSwap::default() })
    }

    pub(super) fn port(&self, options: &TlsOptions) -> PortTls {
        if let Some(port) = self.known.load().get(options) {
            return port.clone();
        }
        let port = self.build(options);
        self.known.rcu(|known| {
            let mut known =
                if known.len() < KNOWN_MAX { HashMap::clone(known) } else { HashMap::default() };
            known.insert(options.clone(), port.clone());
            known
        });
        port
    }

    /// The config for one handshake; `None` when there is no certificate to show.
    pub(super) fn config(&self, port: &PortTls, sni: Option<&str>) -> Option<Arc<ServerConfig>> {
        let PortTls { config, default_self_signed, without_sni } = port;
        let key = sni.or(without_sni.as_deref()).and_then(|name| self.certificates.lookup(name));
        if sni.is_some() {
            return (key.is_some() || *default_self_signed).then(|| config.clone());
        }
        let key = key.or_else(|| default_self_signed.then(|| self.self_signed.clone()))?;
        let mut config = ServerConfig::clone(config);
        config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
        // A ticket is bound to its app by the SNI alone, so without one there is none.
        config.ticketer = Arc::new(NoTickets);
        Some(Arc::new(config))
    }

    fn build(&self, options: &TlsOptions) -> PortTls {
        let TlsOptions { alpn, versions, default_self_signed } = options;
        let mut config = match versions {
            TlsVersions::Tls12AndTls13 => &self.bases.both,
            TlsVersions::Tls12 => &self.bases.tls12,
            TlsVersions::Tls13 => &self.bases.tls13,
        }
        .clone();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let otherwise = default_self_signed.then(|| self.self_signed.clone());
        config.cert_resolver =
            Arc::new(BySni { certificates: self.certificates.clone(), otherwise });
        PortTls {
            config: Arc::new(config),
            default_self_signed: *default_self_signed,
            without_sni: None,
        }
    }
}

// === impl BySni ===

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = hello.server_name().and_then(|name| self.certificates.lookup(normal(name)));
        found.or_else(|| self.otherwise.clone())
    }
}

/// An SNI as the rest of the process knows names. rustls has lower-cased it.
pub(crate) fn normal(sni: &str) -> &str {
    sni.strip_suffix('.').unwrap_or(sni)
}

/// Neither issues nor accepts a ticket.
#[derive(Debug)]
struct NoTickets;

impl rustls::server::ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_options_share_one_config_and_the_memory_of_them_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::open(folder.path()).unwrap();
        let offers = Offers::new(certificates, &Tickets::generate().unwrap()).unwrap();
        let config = |n: usize| {
            let alpn = vec![format!("protocol-{n}").into()];
            offers.port(&TlsOptions { alpn, ..TlsOptions::default() }).config
        };
        assert!(Arc::ptr_eq(&config(0), &config(0)));
        assert!(!Arc::ptr_eq(&config(0), &config(1)));
        (0..1000).for_each(|n| drop(config(n)));
        assert!(offers.known.load().len() <= KNOWN_MAX);
    }
}
