use std::net::SocketAddr;

use control::snapshot::Region;
use rcgen::{CertificateParams, SanType};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::tls::DevCa;
use crate::tls::dev_ca::params;

const DAY: Duration = Duration::from_secs(24 * 3600);
const TIMEOUT: Duration = Duration::from_secs(10);

fn id(id: &str) -> NodeId {
    NodeId::new(id)
}

/// A folder with a certificate, its key and a CA, and the section of the configuration for it.
fn files(ca: &DevCa, (chain, key): &(String, String)) -> (TempDir, config::Mesh) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mesh = config::Mesh {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        certificate: write("mesh.pem", chain),
        key: write("mesh.key", key),
        ca: write("ca.pem", &ca.ca_pem()),
        trust_domain: "ferrule".to_owned(),
        peers: vec![config::Peer {
            id: id("unused"),
            region: Region::new("ams"),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
        }],
    };
    (folder, mesh)
}

fn node(ca: &DevCa, name: &str) -> MeshTls {
    let (_folder, mesh) = files(ca, &ca.issue_node("ferrule", &id(name)).unwrap());
    MeshTls::load(&mesh, &id(name)).unwrap()
}

/// A node that shows whatever it is given, as an attacker would.
fn impostor(ca: &DevCa, pair: &(String, String)) -> MeshTls {
    let node = node(ca, "impostor");
    let Pair { key, leaf } = Pair::parse(pair.0.as_bytes(), pair.1.as_bytes()).unwrap();
    let roots = node.material.load().roots.clone();
    let server = server_config(&key, &roots, &node.trust_domain).unwrap().into();
    node.material.store(Arc::new(Material { digest: vec![], leaf, key, roots, server }));
    node
}

type Client = Result<client::TlsStream<DuplexStream>, Failure>;
type Server = Result<NodeId, Failure>;

/// Connects, and sends a byte each way, because only then the client knows that it was accepted.
async fn connect(client: &MeshTls, server: &MeshTls, expected: &str) -> (Client, Server) {
    let (near, far) = duplex(64 * 1024);
    let near = async {
        let mut stream = client.connect(near, &id(expected), Instant::now() + TIMEOUT).await?;
        stream.read_u8().await.map_err(failure_of)?;
        Ok(stream)
    };
    let far = async {
        let (mut stream, node) = server.accept(far, TIMEOUT).await?;
        stream.write_u8(1).await.unwrap();
        stream.flush().await.unwrap();
        Ok(node)
    };
    tokio::join!(near, far)
}

#[tokio::test]
async fn two_nodes_of_one_ca_accept_each_other_by_id() {
    let ca = DevCa::new().unwrap();
    let (a, b) = (node(&ca, "a-1"), node(&ca, "b_2.c"));
    let (client, server) = connect(&a, &b, "b_2.c").await;
    assert_eq!(server.unwrap(), id("a-1"));
    let client = client.unwrap();
    let connection = client.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(connection.alpn_protocol(), Some(ALPN));
}

#[tokio::test]
async fn a_server_that_is_another_node_is_refused() {
    let ca = DevCa::new().unwrap();
    let (a, b) = (node(&ca, "a"), node(&ca, "b"));
    let (client, server) = connect(&a, &b, "c").await;
    let failure = client.err().unwrap();
    assert_eq!((failure.code, failure.retry), (Code::PU03, Retry::Unsent));
    assert!(format!("{failure:?}").contains("names node b, not c"), "{failure:?}");
    assert_eq!(server.err().unwrap().code, Code::PT04);
    assert!(connect(&a, &b, "b").await.0.is_ok());
}

#[tokio::test]
async fn a_certificate_that_proves_no_node_is_refused_on_both_sides() {
    let (ca, other_ca) = (DevCa::new().unwrap(), DevCa::new().unwrap());
    let good = node(&ca, "good");
    let dns_only = {
        let mut params = DevCa::node_params(&[]).unwrap();
        params.subject_alt_names =
            CertificateParams::new(["bad".to_owned()]).unwrap().subject_alt_names;
        params
    };
    let expired = {
        let mut expired = DevCa::node_params(&["spiffe://ferrule/node/bad"]).unwrap();
        expired.not_before = (SystemTime::now() - DAY * 9).into();
        expired.not_after = (SystemTime::now() - DAY).into();
        expired
    };
    let not_yet = {
        let mut not_yet = DevCa::node_params(&["spiffe://ferrule/node/bad"]).unwrap();
        not_yet.not_before = (SystemTime::now() + DAY).into();
        not_yet
    };
    let of_uris = |uris: &[&str]| ca.sign(DevCa::node_params(uris).unwrap()).unwrap();
    let cases = [
        ("other CA", other_ca.issue_node("ferrule", &id("bad")).unwrap()),
        ("other trust domain", ca.issue_node("ferrule2", &id("bad")).unwrap()),
        ("expired", ca.sign(expired).unwrap()),
        ("not yet valid", ca.sign(not_yet).unwrap()),
        ("no URI", ca.sign(dns_only).unwrap()),
        ("server certificate", ca.issue(&["bad"]).unwrap()),
        ("two URIs", of_uris(&["spiffe://ferrule/node/bad", "spiffe://ferrule/node/good"])),
        ("no id", of_uris(&["spiffe://ferrule/node/"])),
        ("deeper path", of_uris(&["spiffe://ferrule/node/bad/x"])),
        ("other path", of_uris(&["spiffe://ferrule/nodes/bad"])),
        ("query", of_uris(&["spiffe://ferrule/node/bad?x"])),
        ("other scheme", of_uris(&["https://ferrule/node/bad"])),
    ];
    for (what, pair) in &cases {
        let bad = impostor(&ca, pair);
        let (client, server) = connect(&good, &bad, "bad").await;
        assert_eq!(client.err().map(|f| f.code), Some(Code::PU03), "{what} as server");
        assert_eq!(server.err().map(|f| f.code), Some(Code::PT04), "{what} as server");
        let (client, server) = connect(&bad, &good, "good").await;
        // An alert, so it was refused in the handshake and not by whoever looked afterwards.
        assert_eq!(client.err().map(|f| f.code), Some(Code::PT04), "{what} as client");
        assert_eq!(server.err().map(|f| f.code), Some(Code::PT04), "{what} as client");
    }
    // Control: the same machinery with a certificate that is right.
    let right = impostor(&ca, &ca.issue_node("ferrule", &id("bad")).unwrap());
    assert!(connect(&good, &right, "bad").await.0.is_ok());
    assert_eq!(connect(&right, &good, "good").await.1.unwrap(), id("bad"));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = DevCa::new().unwrap();
    let server = node(&ca, "b");
    let mut config = ClientConfig::clone(&node(&ca, "a").client_config_for(&id("b")).unwrap());
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (near, far) = duplex(64 * 1024);
    let near = async {
        let name = ServerName::try_from("b.invalid").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, near).await?;
        stream.read_u8().await
    };
    let (client, server) = tokio::join!(near, server.accept(far, TIMEOUT));
    assert!(client.is_err());
    assert_eq!(server.err().unwrap().code, Code::PT04);
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_that_does_not_speak_h2_or_tls_1_3_is_refused() {
    let ca = DevCa::new().unwrap();
    let (a, b) = (node(&ca, "a"), node(&ca, "b"));
    let good = a.client_config_for(&id("b")).unwrap();
    let connect = async |config: ClientConfig| {
        let (near, far) = duplex(64 * 1024);
        let name = ServerName::try_from("b.invalid").unwrap();
        let near = TlsConnector::from(Arc::new(config)).connect(name, near);
        tokio::join!(near, b.accept(far, TIMEOUT)).1.map(|(_, node)| node)
    };
    assert_eq!(connect(ClientConfig::clone(&good)).await.unwrap(), id("a"));

    for alpn in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut config = ClientConfig::clone(&good);
        config.alpn_protocols = alpn;
        assert_eq!(connect(config).await.err().unwrap().code, Code::PT04);
    }
    let key = a.material.load().key.clone();
    let roots = a.material.load().roots.clone();
    let mut tls12 = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    tls12.alpn_protocols = vec![ALPN.to_vec()];
    assert_eq!(connect(tls12).await.err().unwrap().code, Code::PT04);
}

#[tokio::test]
async fn nothing_is_resumed() {
    let ca = DevCa::new().unwrap();
    let (a, b) = (node(&ca, "a"), node(&ca, "b"));
    let mut config = ClientConfig::clone(&a.client_config_for(&id("b")).unwrap());
    config.resumption = Resumption::in_memory_sessions(8); // a client that would
    let config = Arc::new(config);
    for _ in 0..2 {
        let (near, far) = duplex(64 * 1024);
        let near = async {
            let name = ServerName::try_from("b.invalid").unwrap();
            let mut stream = TlsConnector::from(config.clone()).connect(name, near).await.unwrap();
            stream.read_u8().await.unwrap();
        };
        let far = async {
            let (mut stream, _) = b.accept(far, TIMEOUT).await.unwrap();
            stream.write_u8(1).await.unwrap();
            stream.flush().await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        let ((), kind) = tokio::join!(near, far);
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_ends_at_the_deadline() {
    let ca = DevCa::new().unwrap();
    let a = node(&ca, "a");
    let (near, _far) = duplex(64 * 1024);
    let failure = a.accept(near, TIMEOUT).await.err().unwrap();
    assert_eq!(failure.code, Code::PT08);
    let (near, _far) = duplex(64 * 1024);
    let before = Instant::now();
    let failure = a.connect(near, &id("b"), before + TIMEOUT).await.err().unwrap();
    assert_eq!((failure.code, before.elapsed()), (Code::PU03, TIMEOUT));
}

#[test]
fn a_node_does_not_start_with_files_that_peers_would_refuse() {
    let (ca, other_ca) = (DevCa::new().unwrap(), DevCa::new().unwrap());
    let load = |ca: &DevCa, pair: &(String, String)| {
        let (_folder, mesh) = files(ca, pair);
        MeshTls::load(&mesh, &id("a"))
    };
    let right = ca.issue_node("ferrule", &id("a")).unwrap();
    assert!(load(&ca, &right).is_ok());
    assert!(matches!(load(&other_ca, &right), Err(TlsError::NotSigned { .. })));
    let other = ca.issue_node("ferrule", &id("b")).unwrap();
    assert!(matches!(load(&ca, &other), Err(TlsError::Identity { .. })));
    let mixed = (right.0.clone(), other.1);
    assert!(matches!(load(&ca, &mixed), Err(TlsError::Pair { .. })));

    let (_folder, mut mesh) = files(&ca, &right);
    std::fs::write(&mesh.ca, "nothing").unwrap();
    assert!(matches!(MeshTls::load(&mesh, &id("a")), Err(TlsError::Ca { .. })));
    mesh.key.push("none");
    assert!(matches!(MeshTls::load(&mesh, &id("a")), Err(TlsError::Read { .. })));

    // An expired one warns only.
    let mut expired = params(Duration::ZERO);
    let uri = "spiffe://ferrule/node/a".try_into().unwrap();
    expired.subject_alt_names = vec![SanType::URI(uri)];
    expired.not_before = (SystemTime::now() - DAY * 9).into();
    assert!(load(&ca, &ca.sign(expired).unwrap()).is_ok());
}

#[tokio::test]
async fn changed_files_are_used_and_broken_ones_are_not() {
    let ca = DevCa::new().unwrap();
    let client = node(&ca, "client");
    let (_folder, mesh) = files(&ca, &ca.issue_node("ferrule", &id("a")).unwrap());
    let a = MeshTls::load(&mesh, &id("a")).unwrap();
    let shown = async || {
        let (stream, _) = connect(&client, &a, "a").await;
        stream.unwrap().get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = shown().await;
    assert!(!a.reload().unwrap());

    let (chain, key) = ca.issue_node("ferrule", &id("a")).unwrap();
    std::fs::write(&mesh.certificate, &chain).unwrap();
    assert!(a.reload().is_err());
    assert_eq!(shown().await, first);
    std::fs::write(&mesh.key, &key).unwrap();
    assert!(a.reload().unwrap());
    assert_ne!(shown().await, first);
}
