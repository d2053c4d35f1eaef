//! A node in this process: its files, its ports, its metrics, its end.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use control::snapshot::{NodeId, Region};
use proxy::app::{self, Lifetime};
use proxy::config::{
    Admin, Certificates, Config, Filter, FilterMode, Inventory, Limits, Listen, ListenMode, Memory,
    Storage, Telemetry, Timeouts,
};
use proxy::tls::DevCa;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::instance::Instance;

/// The one app's name.
pub(crate) const HOST: &str = "app.test";

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A running node with one app, whose one instance is `instance`.
pub(crate) struct Node {
    pub(crate) instance: Instance,
    pub(crate) clear: SocketAddr,
    pub(crate) secure: SocketAddr,
    admin: SocketAddr,
    roots: Arc<RootCertStore>,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

/// What a test changes of the defaults.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = Setup::default();
        let timeouts = &mut setup.timeouts;
        (timeouts.drain_delay, timeouts.drain_spread) = (Duration::ZERO, Duration::ZERO);
        for deadline in
            [&mut timeouts.drain, &mut timeouts.drain_websocket, &mut timeouts.drain_tcp]
        {
            *deadline = Duration::from_secs(5);
        }
        change(&mut setup);
        let instance = Instance::start().await;
        let folder = tempfile::tempdir().unwrap();
        let ca = DevCa::new().unwrap();
        let address = own_address();
        let local = |port| SocketAddr::from((address, port));
        let [clear, secure, admin] = free_ports(address).await;
        write_files(folder.path(), &ca, instance.port(), clear, secure);
        let storage = Storage { directory: folder.path().join("state") };
        let config = Config {
            telemetry: Telemetry::in_storage(&storage),
            node: proxy::config::Node {
                id: NodeId::new("node-1"),
                region: Region::new("ams"),
                workers: 1,
            },
            storage,
            listen: Listen {
                mode: ListenMode::Bind,
                addresses: vec![address.into()],
                backlog: 1024,
                ..Listen::default()
            },
            filter: Filter { mode: FilterMode::Off, ..Filter::default() },
            inventory: Inventory { directory: folder.path().join("apps") },
            certificates: Certificates { directory: folder.path().join("certificates") },
            mesh: None,
            limits: setup.limits,
            timeouts: setup.timeouts,
            memory: Memory::default(),
            announce: None,
            admin: Admin { address: local(admin), socket: folder.path().join("admin.sock") },
        };
        let end = CancellationToken::new();
        let lifetime =
            Lifetime { end: end.clone(), hurry: CancellationToken::new(), ready: Box::new(|| {}) };
        let thread = std::thread::Builder::new()
            .name("node".to_owned())
            .spawn(move || app::run_until(config, lifetime).expect("the node starts"))
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.ca_pem().as_bytes()).unwrap()).unwrap();
        let node = Self {
            instance,
            clear: local(clear),
            secure: local(secure),
            admin: local(admin),
            roots: Arc::new(roots),
            end,
            thread: Some(thread),
            _folder: folder,
        };
        node.until("it serves", async || node.serves().await).await;
        node
    }

    /// Whether a request on a new connection is answered.
    async fn serves(&self) -> bool {
        if TcpStream::connect(self.clear).await.is_err() {
            return false;
        }
        let Ok(stream) = TcpStream::connect(self.secure).await else { return false };
        drop(stream);
        let mut client = self.connect().await;
        client.send(b"GET /echo HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n").await;
        client.response().await.status == 200
    }

    pub(crate) async fn connect(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.clear).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client::new(stream)
    }

    pub(crate) async fn connect_tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.secure).await.unwrap();
        self.handshake(stream, alpn).await
    }

    /// A cleartext or TLS connection, of one type.
    pub(crate) async fn stream(&self, tls: bool) -> Either {
        if tls {
            Either::Tls(Box::new(self.connect_tls(b"http/1.1").await))
        } else {
            Either::Tcp(self.connect().await.stream)
        }
    }

    pub(crate) async fn handshake(&self, stream: TcpStream, alpn: &[u8]) -> TlsStream<TcpStream> {
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        TlsConnector::from(self.client_config(alpn)).connect(name, stream).await.unwrap()
    }

    pub(crate) fn client_config(&self, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }

    /// The positive control: an ordinary request on a new connection.
    pub(crate) async fn control(&self) {
        let mut client = self.connect().await;
        client.send(b"GET /echo HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.status, response.body.as_slice()), (200, &b"GET /echo "[..]));
        client.ended().await;
    }

    /// The sum of a metric's series.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (one, many) = (format!("{name} "), format!("{name}{{"));
        self.samples(&|line| line.starts_with(&one) || line.starts_with(&many)).await
    }

    async fn samples(&self, wanted: &dyn Fn(&str) -> bool) -> f64 {
        let stream = TcpStream::connect(self.admin).await.unwrap();
        let mut client = Client::new(stream);
        client.send(b"GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
        let page = String::from_utf8(client.response().await.body).unwrap();
        let samples = page.lines().filter(|line| wanted(line));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Failures of `code` have been counted so often.
    pub(crate) async fn failed(&self, code: &str, times: f64) {
        let sample = format!("ferrule_errors_total{{code=\"{code}\"}} ");
        let what = format!("{times} times {code}");
        self.until(&what, async || self.samples(&|line| line.starts_with(&sample)).await == times)
            .await;
    }

    pub(crate) async fn metric_is(&self, name: &str, value: f64) {
        self.until(&format!("{name} is {value}"), async || self.metric(name).await == value).await;
    }

    /// Nothing is left of any connection or request.
    pub(crate) async fn settles(&self) {
        for name in [
            "ferrule_downstream_connections",
            "ferrule_connection_services",
            "ferrule_requests_in_flight",
            "ferrule_permits_in_use",
        ] {
            self.metric_is(name, 0.0).await;
        }
    }

    async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition().await {
            assert!(Instant::now() < deadline, "not in time: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn drain(&self) {
        self.end.cancel();
    }

    /// The node has ended by itself after [`Self::drain`].
    pub(crate) async fn ended(&mut self) {
        let thread = self.thread.take().unwrap();
        let joined = async {
            while !thread.is_finished() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, joined).await.expect("the node ends");
        thread.join().unwrap();
    }
}

/// Both kinds of connection under one type.
pub(crate) enum Either {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Either {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Either {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// An address that no other test has, nor another run of them: a port that was free a moment ago
/// may be shared by two nodes otherwise, without either knowing.
fn own_address() -> Ipv4Addr {
    static NODES: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high, low, NODES.fetch_add(1, Relaxed))
}

async fn free_ports(address: Ipv4Addr) -> [u16; 3] {
    let bind = || TcpListener::bind((address, 0));
    // Held together, so that they differ.
    let sockets = [bind().await.unwrap(), bind().await.unwrap(), bind().await.unwrap()];
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

fn write_files(folder: &Path, ca: &DevCa, instance: u16, clear: u16, secure: u16) {
    for name in ["apps", "certificates", "state"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let app = format!(
        r#"app = "app"
hostnames = ["{HOST}"]

[[services]]
internal_port = {instance}

[[services.ports]]
port = {clear}
handlers = ["http"]

[[services.ports]]
port = {secure}
handlers = ["tls", "http"]

[services.concurrency]
type = "requests"
soft_limit = 900
hard_limit = 1000

[[instances]]
id = "app-1"
node = "node-1"
address = "127.0.0.1"
"#
    );
    std::fs::write(folder.join("apps/app.toml"), app).unwrap();
    let (chain, key) = ca.issue(&[HOST]).unwrap();
    std::fs::write(folder.join("certificates/app.pem"), chain).unwrap();
    std::fs::write(folder.join("certificates/app.key"), key).unwrap();
}
