//! Mutual TLS between nodes: TLS 1.3, both sides verified against the mesh CA and by node id.
//!
//! There is no resumption on either side, because a resumed session would skip the check of the
//! peer's certificate. Whether a node that proved who it is may ask for anything is decided by the
//! caller.

pub(crate) mod identity;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use control::snapshot::NodeId;
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;

use super::certificates::warn_of_expiry;
use super::handshake::failure_of;
use super::leaf::Leaf;
use super::pair::{self, Pair, PairError};
use super::{TlsError, provider, reasons};
use crate::config;
use crate::error::{Code, Failure, Retry};
pub use identity::IdentityError;
pub(super) use identity::spiffe_id;
use identity::{AnyNode, ThisNode, node_of};

/// This node's side of the mesh; one per process.
pub struct MeshTls {
    files: Files,
    trust_domain: Arc<str>,
    own: NodeId,
    material: ArcSwap<Material>,
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

/// What one version of the files makes.
struct Material {
    digest: Vec<u8>,
    leaf: Leaf,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
}

/// The only protocol on the mesh.
const ALPN: &[u8] = b"h2";

const RELOAD: Duration = Duration::from_secs(5);
const REMIND: Duration = Duration::from_secs(24 * 3600);

// === impl MeshTls ===

impl MeshTls {
    /// Reads certificate, key and CA, and checks that they belong together and name `own`.
    ///
    /// # Errors
    /// When peers would refuse this node for good. An expired certificate only warns: the node still
    /// has its own instances to serve.
    pub fn load(config: &config::Mesh, own: &NodeId) -> Result<Self, TlsError> {
        let config::Mesh { certificate, key, ca, trust_domain, address: _, peers: _ } = config;
        let files = Files { certificate: certificate.clone(), key: key.clone(), ca: ca.clone() };
        let trust_domain: Arc<str> = trust_domain.as_str().into();
        let material = Material::new(&files, files.read()?, &trust_domain, own)?;
        Ok(Self {
            files,
            trust_domain,
            own: own.clone(),
            material: ArcSwap::from_pointee(material),
        })
    }

    /// Reads the files again; says whether they had changed. On an error the last good version
    /// stays. Connections that stand are not touched.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let contents = self.files.read()?;
        if contents.digest() == self.material.load().digest {
            return Ok(false);
        }
        let material = Material::new(&self.files, contents, &self.trust_domain, &self.own)?;
        self.material.store(Arc::new(material));
        Ok(true)
    }

    /// Reloads every few seconds until `stop`, and reminds of an end that comes near. Runs on the
    /// control thread; the files are three small ones.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut reload = tokio::time::interval(RELOAD);
        reload.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut remind = tokio::time::interval_at(Instant::now() + REMIND, REMIND);
        let mut problem = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = reload.tick() => self.reload_and_log(&mut problem),
                _ = remind.tick() => self.material.load().warn_of_expiry(&self.files),
            }
        }
    }

    /// When the certificate that is in use ends.
    pub fn not_after(&self) -> SystemTime {
        self.material.load().leaf.not_after
    }

    /// For the mesh listener: asks for a client certificate and refuses whoever is no node.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.material.load().server.clone()
    }

    /// For a connection to `node`, and to no other.
    pub fn client_config_for(&self, node: &NodeId) -> Result<Arc<ClientConfig>, TlsError> {
        let material = self.material.load();
        let verifier = ThisNode::new(
            material.roots.clone(),
            provider().signature_verification_algorithms,
            self.trust_domain.clone(),
            node.clone(),
        );
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Configure)?
            .dangerous() // the verifier above is stricter than the one it replaces
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(material.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false; // nodes have ids, not DNS names
        Ok(Arc::new(config))
    }

    /// The node at the other end of a connection made with [`MeshTls::server_config`].
    pub fn peer_node(&self, connection: &ServerConnection) -> Result<NodeId, IdentityError> {
        let chain = connection.peer_certificates().unwrap_or_default();
        node_of(chain.first().ok_or(IdentityError::NoCertificate)?, &self.trust_domain)
    }

    /// Secures `stream` as a connection to `node`.
    ///
    /// In TLS 1.3 the client is done before the server has looked at its certificate: a node that
    /// refuses us shows it at the first read.
    ///
    /// # Errors
    /// PU03, and not a byte of a request was sent.
    pub async fn connect<S>(
        &self,
        stream: S,
        node: &NodeId,
        deadline: Instant,
    ) -> Result<client::TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let unreachable = || Failure::new(Code::PU03).retry(Retry::Unsent);
        let config = self.client_config_for(node).map_err(|error| unreachable().because(error))?;
        // Only a label for rustls: it is not sent, and the verifier goes by the node id.
        let name = ServerName::try_from("node.ferrule.invalid").expect("a DNS name");
        // Boxed, so that what the handshake needs is given back with it.
        let handshake = Box::pin(TlsConnector::from(config).connect(name, stream));
        let stream = tokio::time::timeout_at(deadline, handshake)
            .await
            .map_err(|_| unreachable().because("the handshake timed out"))?
            .map_err(|error| unreachable().because(error))?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(unreachable().because("the node does not speak h2"));
        }
        Ok(stream)
    }

    /// Secures `stream` as a connection from another node, and says which.
    ///
    /// # Errors
    /// As [`super::Tls::accept`]: PT03, PT04, PT07, PT08.
    pub async fn accept<S>(
        &self,
        stream: S,
        timeout: Duration,
    ) -> Result<(Box<server::TlsStream<S>>, NodeId), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = Box::pin(TlsAcceptor::from(self.server_config()).accept(stream));
        let stream = tokio::time::timeout(timeout, handshake)
            .await
            .map_err(|_| Failure::new(Code::PT08))?
            .map_err(failure_of)?;
        let connection = stream.get_ref().1;
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(Failure::new(Code::PT04).because("the peer does not speak h2"));
        }
        let node =
            self.peer_node(connection).map_err(|error| Failure::new(Code::PT04).because(error))?;
        Ok((Box::new(stream), node))
    }

    fn reload_and_log(&self, problem: &mut Option<String>) {
        let file = self.files.certificate.display();
        let new_problem = match self.reload() {
            Ok(true) => {
                tracing::info!(%file, "mesh certificate reloaded");
                None
            }
            Ok(false) => None,
            Err(error) => Some(reasons(&error)),
        };
        if let Some(reason) = &new_problem
            && new_problem != *problem
        {
            tracing::warn!(%file, reason, "mesh certificate not reloaded, the last one stays");
        }
        *problem = new_problem;
    }
}

// === impl Files ===

struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl Files {
    fn read(&self) -> Result<Contents, TlsError> {
        let read = |path: &Path| {
            pair::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            ca: read(&self.ca)?,
        })
    }
}

impl Contents {
    fn digest(&self) -> Vec<u8> {
        let parts = [&self.certificate, &self.key, &self.ca];
        parts.iter().flat_map(|part| digest(&SHA256, part).as_ref().to_vec()).collect()
    }
}

// === impl Material ===

impl Material {
    fn new(
        files: &Files,
        contents: Contents,
        trust_domain: &Arc<str>,
        own: &NodeId,
    ) -> Result<Self, TlsError> {
        let digest = contents.digest();
        let Contents { certificate, key, ca } = contents;
        let Pair { key, leaf } = Pair::parse(&certificate, &key)
            .map_err(|source| TlsError::Pair { path: files.of(&source).to_owned(), source })?;
        let roots = Arc::new(roots(&ca).ok_or_else(|| TlsError::Ca { path: files.ca.clone() })?);
        node_of(&key.cert[0], trust_domain)
            .and_then(|named| IdentityError::unless_same(&named, own))
            .map_err(|source| TlsError::Identity { path: files.certificate.clone(), source })?;
        check_chain(files, &key.cert, &roots)?;
        let server = Arc::new(server_config(&key, &roots, trust_domain)?);
        let material = Self { digest, leaf, key, roots, server };
        material.warn_of_expiry(files);
        Ok(material)
    }

    fn warn_of_expiry(&self, files: &Files) {
        let file = files.certificate.display().to_string();
        warn_of_expiry(&self.leaf, &file, SystemTime::now());
    }
}

impl Files {
    fn of(&self, error: &PairError) -> &Path {
        if error.is_of_key() { &self.key } else { &self.certificate }
    }
}

fn server_config(
    key: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    trust_domain: &Arc<str>,
) -> Result<ServerConfig, TlsError> {
    let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
        .clear_root_hint_subjects() // who scans the port need not learn the CA's name
        .build()
        .map_err(TlsError::Verifier)?;
    let verifier = AnyNode::new(chain, trust_domain.clone());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Configure)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub(super) fn roots(pem: &[u8]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(roots)
}

/// Finds a certificate of another CA now rather than at the first peer. Dates are left to
/// [`warn_of_expiry`].
fn check_chain(
    files: &Files,
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
) -> Result<(), TlsError> {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let checked = ParsedCertificate::try_from(&chain[0]).and_then(|leaf| {
        let algorithms = provider().signature_verification_algorithms.all;
        let now = UnixTime::now();
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, &chain[1..], now, algorithms)
    });
    match checked {
        Ok(())
        | Err(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => Ok(()),
        Err(source) => Err(TlsError::NotSigned {
            path: files.certificate.clone(),
            ca: files.ca.clone(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests;
