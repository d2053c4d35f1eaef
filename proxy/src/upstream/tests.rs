//! Real sockets and scripted instances, all on one thread like a worker.

mod http1;
mod codec;
mod http2;
mod tunnel;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::OnceLock;

use bytes::Bytes;
use control::snapshot::{NodeId, Region};
use h2::RecvStream;
use h2::server::SendResponse;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::nodes::Nodes;

use super::*;

/// One worker's upstream side and the tasks of the test.
struct Bed {
    upstreams: Rc<Upstreams>,
    tasks: TaskTracker,
}

/// Something that listens: an instance that a test scripts.
struct Scripted {
    address: SocketAddr,
    /// Connections it has accepted.
    accepted: Rc<Cell<usize>>,
}

#[derive(Default)]
struct Settings {
    limits: config::Limits,
    timeouts: config::Timeouts,
}

/// Runs `test` as a worker would; the bound leaves room for tests that move a paused clock.
fn run<T: Future<Output = ()>>(test: impl FnOnce(Bed) -> T) {
    run_with(Settings::default(), test);
}

fn run_with<T: Future<Output = ()>>(settings: Settings, test: impl FnOnce(Bed) -> T) {
    let runtime = Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.unwrap().block_on(async {
        let within = timeout(Duration::from_secs(120), test(Bed::new(&settings)));
        within.await.expect("the test ends in time");
    });
}

impl Bed {
    fn new(Settings { limits, timeouts }: &Settings) -> Self {
        let registry = Registry::new(1, 100);
        let ledger = Ledger::new(registry.clone());
        let tasks = TaskTracker::new();
        let upstreams = Upstreams::new(
            limits,
            timeouts,
            tasks.clone(),
            cork::Buffers::default(),
            Some(Arc::new(TestMesh)),
            &registry,
            &ledger,
        );
        Self { upstreams, tasks }
    }

    /// Starts an instance that does `script` with every connection.
    async fn instance<S: Future<Output = ()> + 'static>(
        &self,
        script: impl Fn(TcpStream) -> S + 'static,
    ) -> Scripted {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Rc::new(Cell::new(0));
        let (count, tasks) = (accepted.clone(), self.tasks.clone());
        self.tasks.spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                count.set(count.get() + 1);
                tasks.spawn_local(script(stream));
            }
        });
        Scripted { address, accepted }
    }

    /// Starts an instance that speaks HTTP/2 and does `script` with every stream.
    async fn h2_instance<S: Future<Output = ()> + 'static>(
        &self,
        builder: h2::server::Builder,
        script: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> S + Clone + 'static,
    ) -> Scripted {
        let tasks = self.tasks.clone();
        self.instance(move |stream| {
            let (builder, script, tasks) = (builder.clone(), script.clone(), tasks.clone());
            async move {
                let Ok(mut h2) = builder.handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = h2.accept().await {
                    tasks.spawn_local(script(request, respond));
                }
            }
        })
        .await
    }

    /// Starts another node that does `script` with every stream; how many connections it has.
    async fn node<S: Future<Output = ()> + 'static>(
        &self,
        builder: h2::server::Builder,
        script: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> S + Clone + 'static,
    ) -> (Target, Rc<Cell<usize>>) {
        let tasks = self.tasks.clone();
        let node = self.instance(move |stream| {
            let (builder, script, tasks) = (builder.clone(), script.clone(), tasks.clone());
            async move {
                let Ok(tls) = certificates().0.accept(stream).await else { return };
                let mut h2 = builder.handshake(tls).await.unwrap();
                while let Some(Ok((request, respond))) = h2.accept().await {
                    tasks.spawn_local(script(request, respond));
                }
            }
        });
        let node = node.await;
        (node_at(node.address), node.accepted)
    }

    /// Starts a node that says its SETTINGS and then only does `then`.
    async fn silent_node<S: Future<Output = ()> + 'static>(
        &self,
        then: impl Fn(TlsServerStream) -> S + Clone + 'static,
    ) -> Target {
        let node = self.instance(move |stream| {
            let then = then.clone();
            async move {
                let mut tls = certificates().0.accept(stream).await.unwrap();
                tls.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                tls.flush().await.unwrap();
                then(tls).await;
            }
        });
        node_at(node.await.address)
    }

    /// The shared connection to `target`, made if it is not there.
    async fn shared(&self, target: &Target) -> Rc<Connection> {
        let key = match &target.transport {
            Transport::Mesh(node) => Key::Node(node.id.clone(), target.address),
            _ => Key::Instance(target.address),
        };
        self.upstreams.connections.get(&key, || self.upstreams.open(target)).await.unwrap()
    }

    /// An instance that answers every request on a connection with `answer`.
    async fn answering(&self, answer: &'static str) -> Scripted {
        self.instance(move |mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await
    }

    async fn get(&self, to: &Target) -> Result<Response<Body>, Refused> {
        self.send(to, get("/")).await
    }

    async fn send(&self, to: &Target, request: Request<Body>) -> Result<Response<Body>, Refused> {
        let (mut head, body) = request.into_parts();
        self.upstreams.send(to, &mut head, body).await
    }
}

impl Scripted {
    fn http1(&self) -> Target {
        Target { address: self.address, transport: Transport::Http1 { reuse: true } }
    }

    fn h2c(&self) -> Target {
        Target { address: self.address, transport: Transport::H2c }
    }
}

type TlsServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Connects to any node; who it is, is not this module's question.
struct TestMesh;

impl MeshConnect for TestMesh {
    fn connect<'a>(
        &'a self,
        node: &'a Node,
    ) -> BoxFuture<'a, Result<TlsStream<TcpStream>, Failure>> {
        Box::pin(async {
            let failed = |error| Failure::new(Code::PC06).because(error);
            let tcp = TcpStream::connect(node.address).await.map_err(failed)?;
            let name = "localhost".try_into().unwrap();
            certificates().1.connect(name, tcp).await.map_err(failed)
        })
    }
}

/// A throw-away certificate for every node, and who trusts it.
fn certificates() -> &'static (TlsAcceptor, TlsConnector) {
    static CERTIFICATES: OnceLock<(TlsAcceptor, TlsConnector)> = OnceLock::new();
    CERTIFICATES.get_or_init(|| {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = signed.cert.der().clone();
        let key = rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.unwrap())
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server).into(), Arc::new(client).into())
    })
}

fn node_at(address: SocketAddr) -> Target {
    let id = NodeId::new("other");
    let mesh = config::Mesh {
        address,
        certificate: "mesh.pem".into(),
        key: "mesh.key".into(),
        ca: "mesh-ca.pem".into(),
        trust_domain: "ferrule".to_owned(),
        peers: vec![config::Peer { id: id.clone(), region: Region::new("ams"), address }],
    };
    let node = Nodes::new(Some(&mesh)).get(&id).unwrap().clone();
    Target { address, transport: Transport::Mesh(node) }
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "instance").body(Body::Empty).unwrap()
}

fn post(body: Body) -> Request<Body> {
    Request::post("/").header("host", "instance").body(body).unwrap()
}

/// Reads to the end of a head; `None` when the connection ends before it.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn next_frame(body: &mut Body) -> Option<Result<Frame<Bytes>, Failure>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// A body that the test feeds; it ends when the sender is dropped.
fn fed() -> (mpsc::Sender<Result<Bytes, Failure>>, Body) {
    struct Fed(mpsc::Receiver<Result<Bytes, Failure>>);
    impl http_body::Body for Fed {
        type Data = Bytes;
        type Error = Failure;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Failure>>> {
            self.0.poll_recv(cx).map(|item| item.map(|bytes| bytes.map(Frame::data)))
        }
    }
    let (sender, receiver) = mpsc::channel(1);
    (sender, Body::boxed(Fed(receiver)))
}
