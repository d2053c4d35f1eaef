use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;

use super::*;

struct Fixed {
    ready: Result<(), String>,
}

impl View for Fixed {
    fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }

    fn status(&self) -> Status {
        Status {
            node: "ams-<1>".to_owned(),
            region: "ams".to_owned(),
            ready: self.ready.is_ok(),
            not_ready_reason: self.ready.clone().err(),
            ..status::example()
        }
    }

    fn inventory(&self) -> serde_json::Value {
        json!({ "apps": [] })
    }

    fn metrics(&self) -> String {
        "ferrule_generation 1\n".to_owned()
    }

    fn memory(&self) -> serde_json::Value {
        json!({ "ledger": [] })
    }

    fn certificates(&self) -> serde_json::Value {
        json!({ "certificates": [] })
    }
}

/// A running admin server; stopped by [`Server::stop`].
struct Server {
    address: SocketAddr,
    socket: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl Server {
    fn start(view: Fixed) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(folder.path());
        let admin = Admin::bind(&config).expect("port 0 is free");
        let address = admin.address().expect("it is bound");
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let task = tracker.spawn(admin.run(Arc::new(view), stop.clone()));
        Self { address, socket: config.socket, stop, task, _folder: folder }
    }

    async fn request(&self, method: Method, path: &str) -> (Response<()>, String) {
        exchange(TcpStream::connect(self.address).await.expect("it listens"), method, path).await
    }

    async fn get(&self, path: &str) -> (Response<()>, String) {
        self.request(Method::GET, path).await
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the server does not panic");
    }
}

fn config(folder: &Path) -> config::Admin {
    config::Admin { address: ([127, 0, 0, 1], 0).into(), socket: folder.join("admin.sock") }
}

async fn exchange<S>(stream: S, method: Method, path: &str) -> (Response<()>, String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
    let request = Request::builder().method(method).uri(path).header(header::HOST, "ferrule");
    let request = request.body(Empty::<bytes::Bytes>::new()).expect("a valid request");
    let answer = async {
        let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (Response::from_parts(head, ()), String::from_utf8(body.to_vec()).expect("text"))
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

#[tokio::test]
async fn every_page_answers_with_its_type() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let json = "application/json";
    for (path, content_type, part) in [
        ("/", "text/html; charset=utf-8", "<a href=\"/status\">"),
        ("/livez", "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", "text/plain; charset=utf-8", "ready\n"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "ferrule_generation 1\n"),
        ("/status", json, "\"filter_mode\":\"off\""),
        ("/inventory", json, "{\"apps\":[]}"),
        ("/certificates", json, "{\"certificates\":[]}"),
        ("/memory.json", json, "{\"ledger\":[]}"),
    ] {
        let (response, body) = server.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], content_type, "{path}");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store", "{path}");
        assert!(body.contains(part), "{path}: {body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_index_links_every_page_and_escapes_names() {
    let server = Server::start(Fixed { ready: Err("no <inventory> yet".to_owned()) });
    let (_, listing) = server.get("/nowhere").await;
    let (_, index) = server.get("/").await;
    for path in listing.lines().skip(1).filter_map(|line| line.split(' ').next()) {
        assert!(path == "/" || index.contains(&format!("href=\"{path}\"")), "{path}");
        assert_ne!(server.get(path).await.0.status(), StatusCode::NOT_FOUND, "{path}");
    }
    assert!(index.contains("ams-&lt;1&gt;") && index.contains("not ready: no &lt;inventory&gt;"));
    assert!(!index.contains("ams-<1>") && !index.contains("<inventory>"));
    assert!(
        !index.contains("{node}") && !index.contains("{numbers}") && !index.contains("{links}")
    );
    server.stop().await;
}

#[tokio::test]
async fn a_node_that_is_not_ready_says_why() {
    let server = Server::start(Fixed { ready: Err("no inventory yet".to_owned()) });
    let (response, body) = server.get("/readyz").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "not ready: no inventory yet\n");
    assert_eq!(server.get("/livez").await.0.status(), StatusCode::OK);
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_page_lists_those_there_are() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let (response, body) = server.get("/metrics/").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(body.contains("\n/metrics "), "{body}");
    server.stop().await;
}

#[tokio::test]
async fn pages_can_only_be_read() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let (response, _) = server.request(Method::POST, "/status").await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()[header::ALLOW], "GET, HEAD");
    let (response, body) = server.request(Method::HEAD, "/status").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_ne!(response.headers()[header::CONTENT_LENGTH], "0");
    assert_eq!(body, "");
    server.stop().await;
}

#[tokio::test]
async fn the_socket_serves_the_same_pages_and_only_its_owner_may_connect() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let mode = std::fs::metadata(&server.socket).expect("the socket's file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let stream = UnixStream::connect(&server.socket).await.expect("it listens");
    let (response, body) = exchange(stream, Method::GET, "/livez").await;
    assert_eq!((response.status(), body.as_str()), (StatusCode::OK, "ok\n"));
    let socket = server.socket.clone();
    server.stop().await;
    assert!(!socket.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    drop(std::os::unix::net::UnixListener::bind(&config.socket).expect("the folder is ours"));
    assert!(config.socket.exists(), "a dead process leaves its file");
    let admin = Admin::bind(&config).expect("nobody answers there");
    assert!(matches!(Admin::bind(&config), Err(BindError::Live { .. })));
    assert!(config.socket.exists(), "the attempt took nothing away");
    drop(admin);
    assert!(!config.socket.exists());
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    std::fs::write(&config.socket, "precious").expect("the folder is ours");
    assert!(matches!(Admin::bind(&config), Err(BindError::Occupied { .. })));
    assert_eq!(std::fs::read(&config.socket).expect("still there"), b"precious");
}

#[test]
fn the_file_of_a_successor_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let first = Admin::bind(&config).expect("the way is clear");
    std::fs::remove_file(&config.socket).expect("the folder is ours");
    let _second = Admin::bind(&config).expect("the way is clear");
    drop(first);
    assert!(config.socket.exists());
}

#[test]
fn a_missing_folder_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("run/ferrule"));
    Admin::bind(&config).expect("the folder can be made");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_cut() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let mut silent = TcpStream::connect(server.address).await.expect("it listens");
    let start = tokio::time::Instant::now();
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).await.expect("a clean end");
    assert_eq!(answer, b"");
    assert!((HEAD_TIMEOUT..CONNECTION_TIMEOUT).contains(&start.elapsed()));
    server.stop().await;
}

#[tokio::test]
async fn connections_over_the_bound_wait_for_their_turn() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        silent.push(TcpStream::connect(server.address).await.expect("it listens"));
    }
    let stream = TcpStream::connect(server.address).await.expect("the kernel takes it");
    let mut waiting = pin!(exchange(stream, Method::GET, "/livez"));
    let early = tokio::time::timeout(Duration::from_millis(200), waiting.as_mut()).await;
    assert!(early.is_err(), "every place is taken");
    let stream = UnixStream::connect(&server.socket).await.expect("it listens");
    let (response, _) = exchange(stream, Method::GET, "/livez").await;
    assert_eq!(response.status(), StatusCode::OK, "the socket has places of its own");
    silent.pop();
    assert_eq!(waiting.await.0.status(), StatusCode::OK);
    drop(silent);
    server.stop().await;
}
