//! What a client or an instance wrote leaves the node nowhere but where it was sent to.

use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use tempfile::TempDir;
use tests::app::App;
use tests::client::{H2, H2Response, Raw, WebSocket};
use tests::collector::{Collector, Transport};
use tests::edge::{Builder, Edge};
use tests::instance::{Echo, Scripted, websocket_echo};
use tests::port::free_address;
use tests::wait;

/// In everything that is nobody's business.
const CANARY: &str = "canary";
/// In the path.
const PATH: &str = "songbird";

/// The instances of the apps below.
struct Instances {
    echo: Echo,
    socket: Scripted,
    garbage: Scripted,
    cut: Scripted,
    hang: Scripted,
}

impl Instances {
    fn start() -> Self {
        let garbage =
            Scripted::answering(format!("HTTP/1.1 200 {CANARY}\r\n{CANARY} x: y\r\n\r\n"));
        let cut = Scripted::start(|connection| {
            connection.request()?;
            let head =
                format!("HTTP/1.1 200 OK\r\nx-{CANARY}: {CANARY}\r\ncontent-length: 900\r\n\r\n");
            connection.send(head + CANARY)
        });
        let hang = Scripted::start(|connection| {
            connection.request()?;
            connection.hang()
        });
        Self { echo: Echo::http1(), socket: websocket_echo(), garbage, cut, hang }
    }

    fn apps(&self) -> [App; 7] {
        let Self { echo, socket, garbage, cut, hang } = self;
        [
            App::new("wild").hostname("*.wild.test").instance(echo.address()),
            App::new("chat").hostname("*.chat.test").instance(socket.address()),
            App::new("garbage").hostname("*.garbage.test").instance(garbage.address()),
            App::new("cut").hostname("*.cut.test").instance(cut.address()),
            App::new("hang").hostname("*.hang.test").instance(hang.address()),
            App::new("gone").hostname("*.gone.test").instance(free_address(1)),
            App::raw("raw", "[]").instance(echo.address()),
        ]
    }
}

fn node(instances: &Instances, collector: &Collector, log: &Path) -> Builder {
    Edge::builder()
        .apps(instances.apps())
        .exporting(collector, Transport::Http)
        .sampling(100)
        .telemetry("telemetry.otlp", "metric_interval = \"200ms\"")
        .telemetry("telemetry.otlp", "ring_bytes = \"16MiB\"")
        .telemetry("telemetry.access_log", &format!("path = {log:?}"))
        .telemetry("telemetry.verbosity", "requests_percent_max = 100")
        .timeout("response_head", "500ms")
        .through(&["env", "FERRULE_LOG=debug"])
}

/// A request that carries the mark wherever one can.
fn marked(method: &str, app: &str, more: &str) -> String {
    format!(
        "{method} /{PATH}?q={CANARY} HTTP/1.1\r\nhost: {CANARY}.{app}.test\r\n\
         cookie: s={CANARY}\r\nauthorization: Bearer {CANARY}\r\nuser-agent: {CANARY}\r\n\
         x-{CANARY}: {CANARY}\r\nreferer: https://{CANARY}/\r\nx-forwarded-for: {CANARY}\r\n\
         traceparent: {CANARY}\r\ntracestate: {CANARY}=1\r\nbaggage: {CANARY}=1\r\n\
         ferrule-trace: {CANARY}\r\nx-request-id: {CANARY}\r\n{more}\r\n"
    )
}

/// Every answer that the node made itself.
struct Told(Vec<String>);

impl Told {
    fn ask(&mut self, mut client: Raw, request: &str, status: u16) -> Option<String> {
        client.send(request);
        let method = request.split(' ').next().unwrap();
        let response =
            client.try_response(method).unwrap_or_else(|error| panic!("{error:?} to {request}"));
        assert_eq!(response.status, status, "{request}");
        let id = response.header("ferrule-trace-id").map(str::to_owned);
        if response.error_code().is_some() {
            self.0.push(format!("{response:?}"));
        }
        id
    }
}

/// Requests of every kind, and failures of every class that can be had; the traces that can be shown.
async fn everything(edge: &Edge, told: &mut Told) -> Vec<String> {
    let body = format!("content-length: {}\r\n\r\n{CANARY}", CANARY.len());
    let body = body.as_str();
    let sni = format!("{CANARY}.wild.test");
    let post = |app: &str| marked("POST", app, body).trim_end_matches("\r\n").to_owned();
    let mut ids = Vec::new();
    ids.push(told.ask(edge.connect(), &post("wild"), 200));
    ids.push(told.ask(edge.connect_tls(&sni), &post("wild"), 200));
    for (app, status) in [("gone", 502), ("garbage", 502), ("hang", 504), ("nobody", 404)] {
        ids.push(told.ask(edge.connect(), &post(app), status));
    }
    for (request, status) in [
        (marked("GET", "wild", &format!("{CANARY} y: z\r\n")), 400),
        (marked("GET", "wild", &format!("transfer-encoding: {CANARY}\r\n")), 400),
        (marked("GET", "wild", &format!("x-long: {}\r\n", CANARY.repeat(20_000))), 431),
        (marked("GET", "wild", &format!("expect: {CANARY}\r\n")), 417),
        (marked("TRACE", "wild", ""), 405),
        (marked("CANARY", "wild", ""), 200),
        (format!("GET /{} HTTP/1.1\r\nhost: wild.test\r\n\r\n", CANARY.repeat(20_000)), 414),
    ] {
        let client = edge.connect();
        ids.push(told.ask(client, &request, status));
    }
    // The name of the connection is not the request's.
    ids.push(told.ask(edge.connect_tls(&sni), &post("gone"), 421));
    // A name that nobody has ends the handshake.
    assert!(edge.tls(&format!("{CANARY}.nobody.test")).connect(edge.https()).is_err());

    // An answer that is cut short is a connection that is cut short.
    let mut client = edge.connect();
    client.send(post("cut"));
    assert!(client.try_response("POST").is_err());
    // A client that goes.
    let mut client = edge.connect();
    client.send(marked("POST", "wild", "content-length: 100\r\n") + CANARY);
    drop(client);

    let mut client = H2::connect(edge.https(), &edge.tls(&sni)).await;
    let request = Request::post(format!("https://{sni}/echo?q={CANARY}"))
        .header(format!("x-{CANARY}"), CANARY)
        .header("te", "trailers")
        .header("trailer", "x-canary");
    let (response, mut body) = client.start(request.body(()).unwrap(), false).await.unwrap();
    body.send_data(Bytes::from_static(CANARY.as_bytes()), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-canary", HeaderValue::from_static(CANARY));
    body.send_trailers(trailers).unwrap();
    let answer = H2Response::read(response).await.unwrap();
    assert_eq!(answer.trailers.unwrap()["x-canary"], CANARY);
    ids.push(answer.headers.get("ferrule-trace-id").map(|id| id.to_str().unwrap().to_owned()));

    let mut socket =
        WebSocket::upgrade(edge.connect(), &format!("{CANARY}.chat.test"), &format!("/{PATH}"));
    socket.send(1, CANARY.as_bytes());
    assert_eq!(socket.receive(), (1, CANARY.into()));
    socket.send(8, &1000_u16.to_be_bytes());
    assert_eq!(socket.receive().0, 8);
    let mut client = Raw::tcp(edge.tcp());
    client.send(post("wild"));
    assert_eq!(client.response().status, 200);
    ids.into_iter().flatten().collect()
}

/// Everything that the node says of itself and of what it did: where, and what.
fn said(edge: &Edge, told: Told, ids: &[String]) -> Vec<(String, String)> {
    let mut said: Vec<(String, String)> =
        told.0.into_iter().map(|answer| ("an error's answer".to_owned(), answer)).collect();
    for page in ["/", "/status", "/requests", "/memory.json", "/metrics", "/inventory", "/readyz"] {
        said.push((page.to_owned(), edge.admin_get(page).text().to_owned()));
    }
    let mut client = Raw::tcp(edge.admin());
    client.send("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text;version=1.0.0\r\n\r\n");
    said.push(("OpenMetrics".to_owned(), client.response().text().to_owned()));
    for command in [&["requests"][..], &["status"], &["trace", "list", "--audit"]] {
        said.push((format!("{command:?}"), edge.command(command).stdout));
    }
    assert!(!ids.is_empty());
    for id in ids {
        wait::until("its record is there", || edge.command(&["trace", "show", id]).code == 0);
        for arguments in [&["trace", "show", id][..], &["trace", "show", id, "--json"]] {
            let shown = edge.command(arguments);
            assert_eq!(shown.code, 0, "{shown:?}");
            said.push(("trace show".to_owned(), shown.stdout + &shown.stderr));
        }
    }
    said
}

/// The lines of `said` in which `mark` stands, whatever the case.
fn found(said: &[(String, String)], mark: &str) -> Vec<String> {
    let lines = said.iter().flat_map(|(place, text)| text.lines().map(move |line| (place, line)));
    let marked = lines.filter(|(_, line)| line.to_ascii_lowercase().contains(mark));
    marked
        .map(|(place, line)| format!("{place}: {}", line.chars().take(2_000).collect::<String>()))
        .collect()
}

/// Runs everything on a node and collects what it said: pages while a request is in flight, log,
/// access log and exports after its end.
async fn run(
    configure: impl FnOnce(Builder) -> Builder,
) -> (Vec<(String, String)>, Collector, String) {
    let (folder, collector) = (TempDir::new().unwrap(), Collector::start(Transport::Http));
    let (instances, log) = (Instances::start(), folder.path().join("access.log"));
    let mut edge = configure(node(&instances, &collector, &log)).start();
    let on =
        edge.command(&["trace", "on", "--percent", "100", "--why", "a test", "--uses", "1000"]);
    assert_eq!(on.code, 0, "{on:?}");
    let mut told = Told(Vec::new());
    let ids = everything(&edge, &mut told).await;
    let mut open = edge.connect();
    open.send(marked("GET", "wild", "").replace(&format!("/{PATH}"), "/drip"));
    assert_eq!(open.reader().head().unwrap().0, 200);
    let mut said = said(&edge, told, &ids);
    drop(open);
    edge.idle();
    collector.wait_until("metrics have come", |collector| !collector.metrics().is_empty());
    edge.signal(rustix::process::Signal::TERM);
    edge.stopped();
    said.push(("the log".to_owned(), edge.log()));
    for received in collector.accepted() {
        assert!(!format!("{:?}", received.resource).contains(CANARY));
        said.push(("metrics".to_owned(), format!("{:?}", received.metrics)));
        said.push(("logs".to_owned(), format!("{:?}", received.logs)));
        let spans: Vec<String> = received.spans.iter().map(|span| format!("{span:?}\n")).collect();
        said.push(("spans".to_owned(), spans.concat()));
    }
    let lines = std::fs::read_to_string(&log).unwrap();
    said.push(("the access log".to_owned(), lines.clone()));
    (said, collector, lines)
}

#[tokio::test]
async fn nothing_of_a_client_is_said_anywhere() {
    let (said, collector, lines) = run(|node| node).await;
    assert_eq!(found(&said, CANARY), Vec::<String>::new());
    assert_eq!(found(&said, PATH), Vec::<String>::new());
    // The controls: all of it was there to be leaked, and what is looked through has something in it.
    let count = super::servers(&collector).len();
    assert!(count > 15 && lines.lines().count() == count, "{count} {}", lines.lines().count());
    for place in ["/metrics", "/requests", "trace show", "spans", "metrics", "the access log"] {
        let mut of = said.iter().filter(|(name, _)| name == place);
        assert!(of.any(|(_, text)| text.len() > 100), "{place} is empty");
    }
    let log = &said.iter().find(|(name, _)| name == "the log").unwrap().1;
    assert!(log.contains("failed: PP02"), "failures are logged: {log}");
    assert!(!found(&said, "wild").is_empty());
}

#[tokio::test]
async fn what_is_exposed_is_said_where_it_belongs_and_nowhere_else() {
    let (said, collector, lines) =
        run(|node| node.telemetry("telemetry", "expose = [\"url.path\"]")).await;
    assert_eq!(found(&said, CANARY), Vec::<String>::new());
    let named = super::servers(&collector);
    let paths: Vec<String> = named.iter().map(|span| super::value(span, "url.path")).collect();
    assert!(paths.iter().filter(|path| **path == format!("/{PATH}")).count() > 10, "{paths:?}");
    let logged = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let logged = logged.filter(|line| line["url.path"] == format!("/{PATH}")).count();
    assert!(logged > 10, "{lines}");

    // Without these there is none left.
    for line in found(&said, PATH) {
        let rest = line
            .replace(&format!("key: \"url.path\", value: Some(AnyValue {{ value: Some(StringValue(\"/{PATH}\")) }})"), "")
            .replace(&format!("\"url.path\":\"/{PATH}\""), "")
            .replace(&format!("exposed: path=\"/{PATH}\""), "");
        assert!(!rest.contains(PATH), "{line}");
    }
}
