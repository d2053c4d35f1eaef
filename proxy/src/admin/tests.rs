use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::json;
use telemetry::heapwatch::SnapshotError;
use telemetry::record::model::TraceId;
use telemetry::verbosity::{Issued, Listing, NewRule, NewToken, RuleError, TokenError};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::control::Form;
use super::upgrade::{Lines, Outcome};
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

    fn filter(&self) -> serde_json::Value {
        json!({ "mode": "off" })
    }

    fn metrics(&self, format: Format) -> String {
        match format {
            Format::Prometheus => "ferrule_generation 1\n".to_owned(),
            Format::OpenMetrics => "ferrule_generation 1\n# EOF\n".to_owned(),
        }
    }

    fn memory(&self) -> serde_json::Value {
        json!({ "ledger": [] })
    }

    fn heap(&self, _: &Query) -> heapwatch::Report {
        heapwatch::Report::off()
    }

    fn requests(&self) -> serde_json::Value {
        json!({ "lines": [], "more": 0, "unlisted": 0 })
    }

    fn certificates(&self) -> serde_json::Value {
        json!({ "certificates": [] })
    }

    fn last_exit(&self) -> Option<Arc<Report>> {
        None
    }
}

/// Remembers what it was told; rule 7 is the only one there is.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn note(&self, what: String) {
        self.0.lock().push(what);
    }
}

impl Control for Told {
    fn drain(&self, _: &Caller) -> drain::Answer {
        drain::Answer { changed: true, draining: None }
    }

    fn undrain(&self, _: &Caller) -> Result<drain::Answer, drain::Stopping> {
        Err(drain::Stopping)
    }

    fn trace_on(&self, rule: NewRule, caller: &Caller) -> Result<u64, RuleError> {
        self.note(format!("on by {}: {rule:?}", caller.uid));
        if rule.why == "full" { Err(RuleError::Full) } else { Ok(7) }
    }

    fn trace_off(&self, id: Option<u64>, caller: &Caller) -> usize {
        self.note(format!("off by {}: {id:?}", caller.uid));
        usize::from(id.is_none_or(|id| id == 7))
    }

    fn trace_list(&self) -> Listing {
        Listing { rules: Vec::new(), audit: Vec::new(), keys: vec!["k1".to_owned()] }
    }

    fn trace_token(&self, token: &NewToken, caller: &Caller) -> Result<Issued, TokenError> {
        self.note(format!("token by {}: {token:?}", caller.uid));
        Ok(Issued { token: "v1.k1.e30.AAAA".to_owned(), expires: 1_700_000_000 })
    }

    fn upgrade(&self, ask: &upgrade::Ask, _: &Caller) -> Result<Lines, String> {
        if ask.binary.is_some() {
            return Err("an upgrade is under way".to_owned());
        }
        let (sender, lines) = mpsc::channel(1);
        sender.try_send(Outcome::Begins { seconds_max: 31 }.into()).expect("there is room");
        Ok(lines)
    }

    fn trace_record(&self, id: TraceId, form: Form) -> Option<String> {
        (id.0 == 0xabc).then(|| format!("{form:?}"))
    }

    fn memory_snapshot(&self) -> Result<PathBuf, SnapshotError> {
        let full = self.0.lock().iter().any(|told| told == "the disk is full");
        let path = PathBuf::from("/var/lib/ferrule/snapshots/heap-1.json.gz");
        if full {
            let source = io::ErrorKind::StorageFull.into();
            return Err(SnapshotError::Write { path, source });
        }
        Ok(path)
    }
}

fn bind(config: &config::Admin) -> Result<Admin, BindError> {
    Admin::bind(config, &mut Inherited::default(), &Legacy::default())
}

/// A running admin server; stopped by [`Server::stop`].
struct Server {
    address: SocketAddr,
    socket: PathBuf,
    told: Arc<Told>,
    stance: watch::Sender<Stance>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl Server {
    fn start(view: Fixed) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(folder.path());
        let admin = bind(&config).expect("port 0 is free");
        let address = admin.address().expect("it is bound");
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let told = Arc::<Told>::default();
        let (stance, hours) = watch::channel(Stance::Open);
        let visitors = Visitors::default();
        let hours = Hours { stance: hours, stop: stop.clone(), visitors };
        let task = tracker.spawn(admin.run(Arc::new(view), told.clone(), hours));
        Self { address, socket: config.socket, told, stance, stop, task, _folder: folder }
    }

    async fn request(&self, method: Method, path: &str) -> (Response<()>, String) {
        exchange(TcpStream::connect(self.address).await.expect("it listens"), method, path).await
    }

    async fn get(&self, path: &str) -> (Response<()>, String) {
        self.request(Method::GET, path).await
    }

    /// Gives a command over the socket; the answer's status and body.
    async fn command(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "ferrule");
        let request = request.body(Full::new(body.into())).expect("a valid request");
        let (response, body) = self.ask(request).await;
        (response.status().as_u16(), body)
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> (Response<()>, String) {
        let stream = UnixStream::connect(&self.socket).await.expect("it listens");
        send(stream, request).await
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
    let request = Request::builder().method(method).uri(path).header(header::HOST, "ferrule");
    send(stream, request.body(Full::default()).expect("a valid request")).await
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> (Response<()>, String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
    let answer = async {
        let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (Response::from_parts(head, ()), String::from_utf8_lossy(&body).into_owned())
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
        ("/memory.json", json, "\"ledger\":[]}"),
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
    let admin = bind(&config).expect("nobody answers there");
    assert!(matches!(bind(&config), Err(BindError::Live { .. })));
    assert!(config.socket.exists(), "the attempt took nothing away");
    drop(admin);
    assert!(!config.socket.exists());
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    std::fs::write(&config.socket, "precious").expect("the folder is ours");
    assert!(matches!(bind(&config), Err(BindError::Occupied { .. })));
    assert_eq!(std::fs::read(&config.socket).expect("still there"), b"precious");
}

#[test]
fn the_file_of_a_successor_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let first = bind(&config).expect("the way is clear");
    std::fs::remove_file(&config.socket).expect("the folder is ours");
    let _second = bind(&config).expect("the way is clear");
    drop(first);
    assert!(config.socket.exists());
}

#[test]
fn a_missing_folder_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("run/ferrule"));
    bind(&config).expect("the folder can be made");
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

/// Everything that is a command, each in order.
const COMMANDS: [(Method, &str); 6] = [
    (Method::POST, "/trace"),
    (Method::GET, "/trace"),
    (Method::DELETE, "/trace"),
    (Method::POST, "/trace/token"),
    (Method::GET, "/trace/00000000000000000000000000000abc"),
    (Method::DELETE, "/trace/7"),
];

#[tokio::test]
async fn commands_are_refused_on_the_address_and_change_nothing() {
    let server = Server::start(Fixed { ready: Ok(()) });
    for (method, path) in COMMANDS {
        let (response, body) = server.request(method, path).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
        assert!(body.contains("on the admin socket only"), "{body}");
    }
    let (response, body) = server.request(Method::POST, "/elsewhere").await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(body.contains("commands are taken on the admin socket"), "{body}");
    assert_eq!(*server.told.0.lock(), [""; 0]);
    // The control: the same on the socket are done.
    for (method, path) in COMMANDS {
        let (status, _) = server.command(method, path, "{\"why\": \"a test\"}").await;
        assert!(status == 200 || path == "/trace/token", "{path}: {status}");
    }
    assert_eq!(server.told.0.lock().len(), 3);
    server.stop().await;
}

#[tokio::test]
async fn a_rule_is_made_as_it_was_asked_for() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let body = r#"{"scope": {"app": "shop", "path": "/api"}, "client": "198.51.100.0/24",
        "percent": 2.5, "level": "normal", "ttl_seconds": 60, "uses": 5, "bytes": 65536,
        "why": "slow carts"}"#;
    let (status, body) = server.command(Method::POST, "/trace", body).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body, r#"{"bytes":65536,"id":7,"ttl_seconds":60,"uses":5}"#);
    let expected = NewRule {
        scope: telemetry::verbosity::Scope {
            app: Some("shop".to_owned()),
            path: Some("/api".to_owned()),
            host: None,
        },
        client: Some("198.51.100.0/24".parse().expect("a prefix")),
        percent: Some(2.5),
        level: telemetry::verbosity::Level::Normal,
        ttl: Duration::from_secs(60),
        uses: 5,
        bytes: 65_536,
        why: "slow carts".to_owned(),
    };
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(*server.told.0.lock(), [format!("on by {uid}: {expected:?}")]);
    server.stop().await;
}

#[tokio::test]
async fn a_command_that_is_wrong_says_how() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let check = async |method: Method, path: &str, body: &str, status: u16, part: &str| {
        let (answered, text) = server.command(method, path, body.to_owned()).await;
        assert_eq!(answered, status, "{path} {body}: {text}");
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    };
    let (on, token) = ("/trace", "/trace/token");
    check(Method::POST, on, "{}", 400, "missing field `why`").await;
    check(Method::POST, on, "", 400, "missing field `why`").await;
    check(Method::POST, on, "nonsense", 400, "the body is not what this command takes").await;
    check(Method::POST, on, r#"{"why":"x","ap":1}"#, 400, "unknown field `ap`").await;
    check(Method::POST, on, r#"{"why":"x","scope":{"a":1}}"#, 400, "unknown field `a`").await;
    check(Method::POST, on, r#"{"why":"x","client":"me"}"#, 400, "an address or a prefix").await;
    check(Method::POST, on, r#"{"why":"x","level":"wide"}"#, 400, "normal or verbose").await;
    check(Method::POST, on, r#"{"why":"full"}"#, 409, "there are 64 rules already").await;
    check(Method::POST, token, r#"{"why":"x"}"#, 400, "unknown field `why`").await;
    check(Method::DELETE, "/trace/8", "", 404, "there is no rule 8").await;
    check(Method::DELETE, "/trace/x", "", 400, "the id of a rule is a number").await;
    check(Method::GET, "/trace/abc", "", 400, "a trace id is 32 hexadecimal digits").await;
    check(Method::GET, &format!("/trace/{:032}", 0), "", 400, "not all of them 0").await;
    check(Method::GET, &format!("/trace/{:032}", 5), "", 404, "no record of this request").await;
    check(Method::PUT, on, "", 405, "by POST, GET, DELETE").await;
    check(Method::POST, "/status", "", 404, "POST /trace/token").await;
    check(Method::DELETE, "/trace/7/8", "", 404, "no such command").await;
    check(Method::GET, "/trace/7/8", "", 404, "no such page").await;
    check(Method::POST, on, &" ".repeat(64 * 1024 + 1), 413, "at most 65536 bytes").await;
    check(Method::POST, on, &format!("{{\"why\":\"x\"{}}}", " ".repeat(60_000)), 200, "").await;
    server.stop().await;
}

#[tokio::test]
async fn a_record_comes_in_the_form_that_is_asked_for() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let ask = async |accept: &str| {
        let path = "/trace/00000000000000000000000000000ABC";
        let request = Request::get(path).header(header::HOST, "x").header(header::ACCEPT, accept);
        server.ask(request.body(Full::default()).expect("a valid request")).await
    };
    let (response, body) = ask("*/*").await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(body, "Text");
    let (response, body) = ask("application/json").await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    assert_eq!(body, "Json");
    server.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_the_heap_is_taken_on_the_socket_and_says_where_it_is() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let (status, body) = server.command(Method::POST, "/memory/snapshot", "").await;
    assert_eq!(status, 200);
    assert!(body.contains("heap-1.json.gz"), "{body}");
    server.told.note("the disk is full".to_owned());
    let (status, body) = server.command(Method::POST, "/memory/snapshot", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("cannot be written"), "{body}");
    server.stop().await;
}

#[tokio::test]
async fn an_upgrade_is_told_line_by_line_and_refused_with_a_reason() {
    let server = Server::start(Fixed { ready: Ok(()) });
    let begins = "{\"event\":\"begins\",\"seconds_max\":31}\n";
    assert_eq!(server.command(Method::POST, "/upgrade", "").await, (200, begins.to_owned()));
    let other = server.command(Method::POST, "/upgrade", r#"{"binary":"/bin/true"}"#).await;
    assert_eq!(other, (409, "an upgrade is under way\n".to_owned()));
    let (status, _) = server.command(Method::POST, "/upgrade", r#"{"binray":"/bin/true"}"#).await;
    assert_eq!(status, 400);
    server.stop().await;
}

#[tokio::test]
async fn nobody_is_let_in_while_a_successor_has_the_listeners() {
    let server = Server::start(Fixed { ready: Ok(()) });
    server.stance.send_replace(Stance::Paused);
    let waits = tokio::time::timeout(Duration::from_millis(50), server.get("/livez")).await;
    assert!(waits.is_err(), "the connection stays in the queue");
    server.stance.send_replace(Stance::Open);
    assert_eq!(server.get("/livez").await.1, "ok\n");
    let Server { socket, stance, stop, task, _folder, .. } = server;
    stance.send_replace(Stance::Given);
    stop.cancel();
    task.await.expect("the server does not panic");
    assert!(socket.exists(), "it is the successor's");
}

#[tokio::test]
async fn a_socket_that_was_given_away_keeps_its_file_and_its_queue() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let legacy = Legacy::default();
    let old = Admin::bind(&config, &mut Inherited::default(), &legacy).expect("the way is clear");
    let mut inherited = Inherited::default();
    for (place, socket) in legacy.all() {
        inherited.put(place, socket.as_fd().try_clone_to_owned().expect("a copy"));
    }
    let new = Admin::bind(&config, &mut inherited, &Legacy::default()).expect("it is inherited");
    assert!(inherited.is_empty());
    assert_eq!(new.address().expect("it is bound"), old.address().expect("it is bound"));
    // As a successor that fails before it serves.
    drop(new);
    assert!(config.socket.exists());
}

#[tokio::test]
async fn whoever_is_in_is_a_visitor_until_answered() {
    let visitors = Visitors::default();
    visitors.gone().await;
    let inside = visitors.enter();
    let left = async {
        tokio::task::yield_now().await;
        drop(inside);
    };
    let mut gone = pin!(visitors.gone());
    assert!(futures_util::poll!(gone.as_mut()).is_pending());
    tokio::join!(left, gone);
}
