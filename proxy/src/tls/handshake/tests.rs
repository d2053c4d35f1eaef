mod clients;
mod wire;

use std::time::Duration;

use control::snapshot::TlsVersions;
use rustls::client::Resumption;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::tls::client::Anybody;
use crate::tls::{DevCa, MeshTls, provider};
use clients::OneForAllNames;
use wire::{hello, in_records};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// A node with certificates for `a.example` and `b.example`, and what its clients trust.
struct Node {
    tls: Tls,
    registry: Registry,
    roots: Arc<RootCertStore>,
}

type Client = Result<client::TlsStream<DuplexStream>, io::Error>;
type Server = Result<Secured<DuplexStream>, Failure>;

impl Node {
    fn new() -> Self {
        Self::with(&config::Limits::default())
    }

    fn with(limits: &config::Limits) -> Self {
        let ca = DevCa::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let (chain, key) = ca.issue(&[&format!("{name}.example")]).unwrap();
            std::fs::write(folder.path().join(format!("{name}.pem")), chain).unwrap();
            std::fs::write(folder.path().join(format!("{name}.key")), key).unwrap();
        }
        let certificates = Certificates::open(folder.path()).unwrap();
        let registry = Registry::new(1, 100);
        let timeouts = config::Timeouts::default();
        let tls = Tls::new(certificates, limits, &timeouts, &registry).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.ca_pem().as_bytes()).unwrap()).unwrap();
        Self { tls, registry, roots: Arc::new(roots) }
    }

    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// One handshake, and a byte to the client behind it, so that it has read its tickets.
    async fn shake(&self, config: ClientConfig, name: &str, port: PortTls) -> (Client, Server) {
        let (near, far) = duplex(64 * 1024);
        let near = async {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, near).await?;
            stream.read_u8().await?;
            Ok(stream)
        };
        let far = async {
            let mut secured = self.tls.accept(far, CLIENT, |_| Ok(port)).await?;
            secured.stream.write_u8(1).await.unwrap();
            secured.stream.flush().await.unwrap();
            Ok(secured)
        };
        tokio::join!(near, far)
    }

    /// Sends `bytes` as they are, reads, and leaves; what came back, and the failure.
    async fn raw(&self, bytes: &[u8]) -> (Vec<u8>, Option<Code>) {
        let (mut near, far) = duplex(64 * 1024);
        let near = async move {
            near.write_all(bytes).await.ok();
            let mut answer = vec![0; 7]; // as long as an alert
            let n = near.read(&mut answer).await.unwrap();
            answer.truncate(n);
            answer
        };
        let port = self.port();
        let far = self.tls.accept(far, CLIENT, |_| Ok(port));
        let (answer, result) = tokio::join!(near, far);
        (answer, result.err().map(|failure| failure.code))
    }

    fn port(&self) -> PortTls {
        self.tls.port(&TlsOptions::default())
    }

    #[track_caller]
    fn assert_counted(&self, result: &str, n: u64) {
        let line = format!("ferrule_tls_handshakes_total{{result=\"{result}\"}} {n}\n");
        let text = self.registry.render();
        assert!(text.contains(&line), "{line} is missing in\n{text}");
        assert!(text.contains("ferrule_tls_handshakes_in_flight 0\n"), "{text}");
    }
}

// === certificates ===

#[tokio::test]
async fn the_sni_chooses_the_app_and_the_certificate() {
    let node = Node::new();
    let mut asked = None;
    let (near, far) = duplex(64 * 1024);
    let port = node.port();
    let far = node.tls.accept(far, CLIENT, |sni| {
        asked = sni.map(ToOwned::to_owned);
        Ok(port)
    });
    let name = ServerName::try_from("A.Example").unwrap();
    let near = TlsConnector::from(Arc::new(node.client(BOTH, &["h2"]))).connect(name, near);
    let (client, server) = tokio::join!(near, far);
    client.unwrap(); // it has verified the certificate for a.example
    assert_eq!(server.unwrap().sni.as_deref(), Some("a.example"));
    assert_eq!(asked.as_deref(), Some("a.example"));
    node.assert_counted("full", 1);
}

#[tokio::test]
async fn a_name_without_a_certificate_gets_unrecognized_name_and_is_counted() {
    let node = Node::new();
    let (client, server) = node.shake(node.client(BOTH, &[]), "c.example", node.port()).await;
    assert_eq!(server.err().unwrap().code, Code::PT05);
    assert_eq!(alert_of(client), AlertDescription::UnrecognisedName);
    node.assert_counted("no_certificate", 1);
    node.assert_counted("full", 0);
}

#[tokio::test]
async fn what_choose_refuses_is_refused_before_a_certificate_is_shown() {
    let node = Node::new();
    for (code, alert) in [
        (Code::PE01, AlertDescription::UnrecognisedName),
        (Code::PL04, AlertDescription::InternalError),
    ] {
        let (near, far) = duplex(64 * 1024);
        let name = ServerName::try_from("a.example").unwrap();
        let near = TlsConnector::from(Arc::new(node.client(BOTH, &[]))).connect(name, near);
        let far = node.tls.accept(far, CLIENT, |_| Err(Failure::new(code)));
        let (client, server) = tokio::join!(near, far);
        assert_eq!(server.err().unwrap().code, code);
        assert_eq!(alert_of(client), alert);
    }
    node.assert_counted("refused", 2);
}

#[tokio::test]
async fn the_self_signed_certificate_is_served_only_where_none_fits_and_the_port_allows_it() {
    let node = Node::new();
    let options = TlsOptions { default_self_signed: true, ..TlsOptions::default() };
    let shown = async |name: &str| {
        let (near, far) = duplex(64 * 1024);
        let mut config = node.client(BOTH, &[]);
        config.dangerous().set_certificate_verifier(Arc::new(Anybody::new()));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let near = TlsConnector::from(Arc::new(config)).connect(name, near);
        let port = node.tls.port(&options);
        let (client, server) = tokio::join!(near, node.tls.accept(far, CLIENT, |_| Ok(port)));
        server.unwrap();
        let client = client.unwrap();
        client.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let (c, d) = (shown("c.example").await, shown("d.example").await);
    assert_eq!(c, d); // one for all names
    assert_eq!(c, shown("192.0.2.7").await); // and for none: an address is not sent as SNI
    assert_ne!(c, shown("a.example").await);
}

#[tokio::test]
async fn without_sni_the_port_says_which_certificate_and_nothing_can_be_resumed() {
    let node = Node::new();
    let mut config = node.client(BOTH, &[]);
    config.enable_sni = false;
    let (_, server) = node.shake(config, "a.example", node.port()).await;
    assert_eq!(server.err().unwrap().code, Code::PT05);

    for version in [&TLS12, &TLS13] {
        let mut config = node.client(&[version], &[]);
        config.enable_sni = false;
        for _ in 0..2 {
            let port = node.port().without_sni("a.example".into());
            let (client, server) = node.shake(config.clone(), "a.example", port).await;
            client.unwrap();
            let server = server.unwrap();
            assert_eq!(server.sni, None);
            assert_eq!(server.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
}

// === protocols and versions ===

#[tokio::test]
async fn the_ports_order_decides_the_alpn_protocol() {
    let node = Node::new();
    let check = async |ours: &[&str], theirs: &[&str], expected: Option<Alpn>| {
        let alpn = ours.iter().map(|name| (*name).into()).collect();
        let port = node.tls.port(&TlsOptions { alpn, ..TlsOptions::default() });
        let (_, server) = node.shake(node.client(BOTH, theirs), "a.example", port).await;
        assert_eq!(server.ok().map(|secured| secured.alpn), expected, "{ours:?} {theirs:?}");
    };
    check(&["h2", "http/1.1"], &["http/1.1", "h2"], Some(Alpn::Http2)).await;
    check(&["http/1.1", "h2"], &["h2", "http/1.1"], Some(Alpn::Http11)).await;
    check(&["h2", "http/1.1"], &["http/1.1"], Some(Alpn::Http11)).await;
    check(&["h2"], &[], Some(Alpn::None)).await;
    check(&[], &["h2"], Some(Alpn::None)).await;
    check(&["mqtt"], &["mqtt"], Some(Alpn::Other)).await;
    check(&["h2"], &["mqtt"], None).await;
    node.assert_counted("failed", 1);
}

#[tokio::test]
async fn a_port_speaks_only_the_versions_it_lists() {
    let node = Node::new();
    let check = async |ours, theirs: &[&'static SupportedProtocolVersion], expected| {
        let port = node.tls.port(&TlsOptions { versions: ours, ..TlsOptions::default() });
        let (_, server) = node.shake(node.client(theirs, &[]), "a.example", port).await;
        assert_eq!(server.map(|secured| secured.version).map_err(|f| f.code), expected, "{ours:?}");
    };
    check(TlsVersions::Tls12AndTls13, BOTH, Ok(Version::Tls13)).await;
    check(TlsVersions::Tls12AndTls13, &[&TLS12], Ok(Version::Tls12)).await;
    check(TlsVersions::Tls12, BOTH, Ok(Version::Tls12)).await;
    check(TlsVersions::Tls12, &[&TLS13], Err(Code::PT04)).await;
    check(TlsVersions::Tls13, BOTH, Ok(Version::Tls13)).await;
    check(TlsVersions::Tls13, &[&TLS12], Err(Code::PT04)).await;
}

#[tokio::test]
async fn old_versions_and_cbc_suites_are_refused() {
    const AEAD: u16 = 0xc02b; // ECDHE-ECDSA with AES-128-GCM
    const CBC: u16 = 0xc009; // ECDHE-ECDSA with AES-128-CBC
    const STATIC_RSA: u16 = 0x009c; // RSA with AES-128-GCM
    let node = Node::new();
    for (what, version, suite) in [
        ("TLS 1.1", 0x0302, AEAD),
        ("TLS 1.0", 0x0301, AEAD),
        ("SSL 3", 0x0300, AEAD),
        ("CBC", 0x0303, CBC),
        ("no forward secrecy", 0x0303, STATIC_RSA),
    ] {
        let (answer, failure) = node.raw(&hello(version, suite, 0)).await;
        assert_eq!((answer[0], answer[5]), (21, 2), "{what}: a fatal alert");
        assert_eq!(failure, Some(Code::PT04), "{what}");
    }
    // Control: the same bytes with a good suite get a handshake record, then the client leaves.
    let (answer, failure) = node.raw(&hello(0x0303, AEAD, 0)).await;
    assert_eq!((answer[0], failure), (22, Some(Code::PT03)));
}

// === resumption ===

#[tokio::test]
async fn a_ticket_resumes_under_its_own_name_only() {
    for (version, tickets) in [(&TLS13, 1), (&TLS12, 1)] {
        let node = Node::new();
        let store = Arc::new(OneForAllNames::new());
        let mut config = node.client(&[version], &[]);
        // A client that offers what it got under one name wherever it goes.
        config.resumption = Resumption::store(store.clone());
        let kind = async |name: &str| {
            let (client, server) = node.shake(config.clone(), name, node.port()).await;
            client.unwrap();
            server.unwrap().stream.get_ref().1.handshake_kind()
        };
        assert_eq!(kind("a.example").await, Some(HandshakeKind::Full));
        assert_eq!(*store.stored.lock().unwrap(), tickets, "{version:?}");
        assert_eq!(kind("b.example").await, Some(HandshakeKind::Full), "{version:?}: a's on b");
        // The store now holds b's ticket, which works there: it was the name that stopped a's.
        assert_eq!(kind("b.example").await, Some(HandshakeKind::Resumed), "{version:?}");
        node.assert_counted("resumed", 1);
        node.assert_counted("full", 2);
    }
}

#[tokio::test]
async fn a_ticket_is_good_on_every_port_of_its_name_and_not_in_another_process() {
    let (node, other) = (Node::new(), Node::new());
    let mut config = node.client(&[&TLS13], &[]);
    config.dangerous().set_certificate_verifier(Arc::new(Anybody::new()));
    config.resumption = Resumption::store(Arc::new(OneForAllNames::new()));
    let kind = async |node: &Node, alpn: &str| {
        let options = TlsOptions { alpn: vec![alpn.into()], ..TlsOptions::default() };
        let port = node.tls.port(&options);
        let mut config = config.clone();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let (client, server) = node.shake(config, "a.example", port).await;
        client.unwrap();
        server.unwrap().stream.get_ref().1.handshake_kind()
    };
    assert_eq!(kind(&node, "h2").await, Some(HandshakeKind::Full));
    // Another config, the same keys.
    assert_eq!(kind(&node, "http/1.1").await, Some(HandshakeKind::Resumed));
    assert_eq!(kind(&other, "http/1.1").await, Some(HandshakeKind::Full));
}

#[tokio::test]
async fn sessions_resume_in_the_process_that_takes_over_the_keys() {
    for version in [&TLS13, &TLS12] {
        let (before, after) = (Node::new(), Node::new());
        let mut config = before.client(&[version], &[]);
        config.dangerous().set_certificate_verifier(Arc::new(Anybody::new()));
        config.resumption = Resumption::store(Arc::new(OneForAllNames::new()));
        let kind = async |node: &Node| {
            let (client, server) = node.shake(config.clone(), "a.example", node.port()).await;
            client.unwrap();
            server.unwrap().stream.get_ref().1.handshake_kind()
        };
        assert_eq!(kind(&before).await, Some(HandshakeKind::Full), "{version:?}");
        // The control: not without the keys, although nothing else differs.
        assert_eq!(kind(&after).await, Some(HandshakeKind::Full), "{version:?}");
        assert_eq!(kind(&before).await, Some(HandshakeKind::Full), "{version:?}");
        let keys = serde_json::to_string(&before.tls.ticket_keys()).unwrap();
        after.tls.adopt_ticket_keys(&serde_json::from_str(&keys).unwrap());
        assert_eq!(kind(&after).await, Some(HandshakeKind::Resumed), "{version:?}");
        // Both ways, while both run.
        assert_eq!(kind(&before).await, Some(HandshakeKind::Resumed), "{version:?}");
        after.assert_counted("resumed", 1);
    }
}

// === what strangers do ===

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_anywhere_ends_at_the_deadline() {
    let node = Node::new();
    let whole = hello(0x0303, 0xc02b, 0);
    for length in [0, 1, 5, whole.len() - 1, whole.len()] {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(&whole[..length]).await.unwrap();
        let before = Instant::now();
        let port = node.port();
        let result = node.tls.accept(far, CLIENT, |_| Ok(port)).await;
        assert_eq!(result.err().unwrap().code, Code::PT08, "after {length} bytes");
        assert_eq!(before.elapsed(), config::Timeouts::default().handshake);
    }
    node.assert_counted("timeout", 5);
}

#[tokio::test(start_paused = true)]
async fn a_hello_of_one_byte_per_second_ends_at_the_deadline_and_in_small_pieces_is_served() {
    let node = Node::new();
    let whole = hello(0x0303, 0xc02b, 0);
    for (pause, expected) in [(1000, Code::PT08), (10, Code::PT03)] {
        let (mut near, far) = duplex(64 * 1024);
        let port = node.port();
        let drip = async {
            for byte in &whole {
                if near.write_u8(*byte).await.is_err() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let answer = near.read_u8().await.ok();
            drop(near);
            answer
        };
        let (answer, result) = tokio::join!(drip, node.tls.accept(far, CLIENT, |_| Ok(port)));
        assert_eq!(result.err().unwrap().code, expected, "{pause} ms between bytes");
        assert_eq!(answer, (expected == Code::PT03).then_some(22));
    }
}

#[tokio::test]
async fn a_hello_longer_than_16_kib_is_refused_however_it_is_cut() {
    let node = Node::new();
    for record in [16 * 1024, 100] {
        let (answer, failure) = node.raw(&in_records(&hello(0x0303, 0xc02b, 17_000), record)).await;
        assert_eq!((answer[0], failure), (21, Some(Code::PT04)), "records of {record}");
        let (answer, failure) = node.raw(&in_records(&hello(0x0303, 0xc02b, 12_000), record)).await;
        assert_eq!((answer[0], failure), (22, Some(Code::PT03)), "records of {record}");
    }
}

#[tokio::test]
async fn what_is_not_tls_gets_an_alert_at_most() {
    let node = Node::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"[..],
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n",
        b"\x16\x03\x01\x00\x00\x00\x00\x00\x00\x00",
        b"\x17\x03\x03\x00\x01\x00",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
    ] {
        let (answer, failure) = node.raw(bytes).await;
        assert_eq!(failure, Some(Code::PT04), "{}", bytes.escape_ascii());
        // rustls has no alert for some of them.
        let alert = answer.is_empty() || (answer[0], answer.len()) == (21, 7);
        assert!(alert, "{}", bytes.escape_ascii());
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_not_an_error_of_the_node() {
    let node = Node::new();
    let whole = hello(0x0303, 0xc02b, 0);
    for length in [0, 1, whole.len() - 1, whole.len()] {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(&whole[..length]).await.unwrap();
        drop(near);
        let port = node.port();
        let result = node.tls.accept(far, CLIENT, |_| Ok(port)).await;
        assert_eq!(result.err().unwrap().code, Code::PT03, "after {length} bytes");
    }
    node.assert_counted("client_left", 4);
}

#[tokio::test]
async fn a_client_that_rejects_the_certificate_is_a_failed_handshake() {
    let node = Node::new();
    let config = Node::new().client(BOTH, &[]); // trusts another CA
    let (client, server) = node.shake(config, "a.example", node.port()).await;
    assert!(client.is_err());
    assert_eq!(server.err().unwrap().code, Code::PT04);
}

#[tokio::test]
async fn a_prefix_at_its_limit_is_refused_at_once_and_served_again_when_one_ends() {
    let limits = config::Limits { handshakes_per_prefix_max: 2, ..config::Limits::default() };
    let node = Node::with(&limits);
    let accept = |client: &str| {
        let (near, far) = duplex(1024);
        let port = node.port();
        (near, node.tls.accept(far, client.parse().unwrap(), |_| Ok(port)))
    };
    let (near_1, mut first) = accept("192.0.2.1");
    let (_near_2, mut second) = accept("192.0.2.2");
    assert!(pending(&mut first).await && pending(&mut second).await);
    let (_near_3, third) = accept("192.0.2.3");
    assert_eq!(third.await.err().unwrap().code, Code::PT01);

    drop(near_1);
    assert_eq!(first.await.err().unwrap().code, Code::PT03);
    let (_near_4, mut fourth) = accept("192.0.2.4");
    assert!(pending(&mut fourth).await);
    // A handshake that is dropped gives its place back too.
    drop((second, fourth));
    node.assert_counted("prefix_limit", 1);
}

#[tokio::test]
async fn a_node_at_its_limit_refuses_other_prefixes_too() {
    let limits = config::Limits { handshakes_in_flight_max: 1, ..config::Limits::default() };
    let node = Node::with(&limits);
    let accept = |client: &str| {
        let (near, far) = duplex(1024);
        let port = node.port();
        (near, node.tls.accept(far, client.parse().unwrap(), |_| Ok(port)))
    };
    let (_near_1, mut first) = accept("192.0.2.1");
    assert!(pending(&mut first).await);
    assert!(node.registry.render().contains("ferrule_tls_handshakes_in_flight 1\n"));
    let (_near_2, second) = accept("2001:db8::1");
    assert_eq!(second.await.err().unwrap().code, Code::PT10);
    drop(first);
    node.assert_counted("node_limit", 1);
}

#[test]
fn a_handshake_adds_one_pointer_to_the_task_that_awaits_it() {
    let node = Node::new();
    let port = node.port();
    let handshake = node.tls.accept(duplex(1).0, CLIENT, |_| Ok(port));
    assert!(size_of_val(&handshake) <= 2 * size_of::<usize>());
    assert!(size_of::<Secured<DuplexStream>>() <= 5 * size_of::<usize>());
}

#[test]
fn what_threads_share_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    fn send<T: Send>(_: T) {}
    shared::<Tls>();
    shared::<MeshTls>();
    let folder = tempfile::tempdir().unwrap();
    send(Certificates::open(folder.path()).unwrap().watch(Default::default()));
    fn control_thread(mesh: Arc<MeshTls>) {
        send(mesh.watch(Default::default()));
    }
    let _: fn(Arc<MeshTls>) = control_thread;
}

// === helpers ===

async fn pending<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx)))
        .await
        .is_pending()
}

fn alert_of(client: Client) -> AlertDescription {
    let error = client.err().unwrap();
    match error.get_ref().unwrap().downcast_ref::<rustls::Error>() {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error}"),
    }
}
