//! One request in full detail, and nothing of its neighbours.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Request;
use serde_json::Value;
use tests::app::App;
use tests::client::{H2, Raw};
use tests::collector::{Collector, Transport};
use tests::edge::{Builder, Edge};
use tests::instance::Echo;
use tests::process::Outcome;
use tests::strict::Response;
use tests::wait;

use super::{hex, kept, servers, value};

#[track_caller]
fn done(edge: &Edge, arguments: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = edge.command(arguments);
    assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}: {stdout}");
    stdout
}

#[track_caller]
fn token(edge: &Edge, arguments: &[&str]) -> String {
    let told = done(edge, &[&["trace", "token"], arguments].concat());
    told.lines().next().unwrap().to_owned()
}

/// `trace show`, once the record of the request is there.
#[track_caller]
fn shown(edge: &Edge, id: &str) -> String {
    wait::until("its record is there", || edge.command(&["trace", "show", id]).code == 0);
    done(edge, &["trace", "show", id])
}

fn ask(edge: &Edge, host: &str, path: &str, token: &str) -> Response {
    let mut client = edge.connect();
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nferrule-trace: {token}\r\n\r\n"));
    client.response()
}

fn tokens(edge: &Edge, outcome: &str) -> f64 {
    edge.metrics().sum_with("ferrule_trace_tokens_total", &[("outcome", outcome)])
}

/// A node that may spend all it has on verbosity.
fn node(echo: &Echo) -> Builder {
    Edge::builder()
        .app(App::new("hello").limits(4_000, 4_000).instance(echo.address()))
        .telemetry("telemetry.verbosity", "requests_percent_max = 100")
}

#[tokio::test]
async fn of_a_thousand_at_once_one_is_told_in_full_and_no_other() {
    const CONNECTIONS: usize = 10;
    const STREAMS: usize = 100;
    let (collector, echo) = (Collector::start(Transport::Http), Echo::h2c());
    let app = App::new("hello").limits(4_000, 4_000).h2_backend().instance(echo.address());
    let edge = Edge::builder()
        .app(app)
        .exporting(&collector, Transport::Http)
        .sampling(0)
        .limit("h2_streams_max", STREAMS as u64)
        .start();
    let token = token(&edge, &["--app", "hello", "--uses", "1"]);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(H2::connect(edge.https(), &edge.tls("hello.test")).await);
    }
    let ask = |number: usize| {
        let mut client = clients[number / STREAMS].share();
        let request = Request::post("https://hello.test/gate").header("x-nonce", number);
        let request = match number {
            617 => request.header("ferrule-trace", &token),
            _ => request,
        };
        let request = request.body(()).unwrap();
        async move { client.send(request, "body").await.unwrap() }
    };
    let all = join_all((0..CONNECTIONS * STREAMS).map(ask));
    let open = async {
        // Some at the instance, the others in line for it.
        let start = Instant::now();
        while edge.metric("ferrule_requests_in_flight") < (CONNECTIONS * STREAMS) as f64 {
            assert!(start.elapsed() < wait::PATIENCE, "they are not in flight together");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        echo.open(CONNECTIONS * STREAMS);
    };
    let (answers, ()) = tokio::join!(all, open);
    let told: Vec<_> = answers.iter().map(|answer| answer.header("ferrule-trace-id")).collect();
    let told: Vec<&str> = told.into_iter().flatten().collect();
    let [id] = told[..] else { panic!("{told:?}") };
    assert_eq!(answers[617].header("ferrule-trace-id"), Some(id));
    assert!(answers.iter().all(|answer| answer.status == 200));

    let shown = shown(&edge, id);
    for part in ["balance", "upstream", "request chunk", "response chunk", "polled", "answered"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(shown.contains("<h2::") || shown.contains("<hyper"), "libraries are heard:\n{shown}");
    let request_id = answers[617].header("ferrule-request-id").unwrap();
    assert!(shown.starts_with(&format!("trace {id}  request {request_id}\n")), "{shown}");
    drop(clients);
    edge.idle();
    assert_eq!((edge.metric("ferrule_records_kept_total"), kept(&edge, "verbose")), (1.0, 1.0));
    edge.stop();
    let traces: BTreeSet<String> =
        collector.spans().iter().map(|span| hex(&span.trace_id)).collect();
    assert_eq!(traces, BTreeSet::from([id.to_owned()]));
    let [server] = <[_; 1]>::try_from(servers(&collector)).unwrap();
    assert_eq!(value(&server, "ferrule.verbosity"), "verbose");
    assert_eq!(value(&server, "ferrule.keep"), "verbose");
}

#[test]
fn a_token_that_is_no_good_changes_nothing() {
    let echo = Echo::http1();
    let edge = node(&echo).app(App::new("other").instance(echo.address())).start();
    let plain = |token: &str| {
        let response = ask(&edge, "hello.test", "/", token);
        assert_eq!(response.status, 200);
        assert_eq!(response.header("ferrule-trace-id"), None, "{token}");
    };
    // The control.
    let twice = token(&edge, &["--uses", "2"]);
    for _ in 0..2 {
        let response = ask(&edge, "hello.test", "/", &twice);
        assert_eq!(response.header("ferrule-trace-id").map(str::len), Some(32));
        assert_eq!(response.header("ferrule-trace-report"), None, "it asks for none");
    }
    plain(&twice);
    assert_eq!(tokens(&edge, "used_up"), 1.0);

    let good = token(&edge, &[]);
    let last = if good.ends_with('A') { "B" } else { "A" };
    // The last digit of base64 may have bits that count for nothing, so one in the middle.
    let forged = format!("{}{last}{}", &good[..good.len() - 10], &good[good.len() - 9..]);
    plain(&forged);
    assert_eq!(tokens(&edge, "forged"), 1.0);
    plain("v1.nonsense");
    assert_eq!(tokens(&edge, "malformed"), 1.0);
    let foreign = good.splitn(3, '.').collect::<Vec<_>>();
    plain(&format!("{}.kforeign.{}", foreign[0], foreign[2]));
    assert_eq!(tokens(&edge, "unknown_key"), 1.0);
    for scope in [["--app", "other"], ["--host", "other.test"], ["--path", "/cart"]] {
        plain(&token(&edge, &scope));
    }
    assert_eq!(tokens(&edge, "out_of_scope"), 3.0);
    let brief = token(&edge, &["--ttl", "1s"]);
    wait::until("it has expired", || {
        drop(ask(&edge, "hello.test", "/", &brief));
        tokens(&edge, "expired") > 0.0
    });
    plain(&brief);
    // Tokens are for this node, whatever becomes of them.
    let seen = echo.seen();
    assert!(seen.len() > 9);
    for seen in seen {
        assert!(!seen.headers.contains_key("ferrule-trace"), "{seen:?}");
    }
}

#[test]
fn above_the_nodes_budget_requests_stay_as_they_are() {
    let echo = Echo::http1();
    // One in a hundred, and one a second at least: ten at first.
    let edge = node(&echo).telemetry("telemetry.verbosity", "requests_percent_max = 1").start();
    let many = token(&edge, &["--uses", "1000"]);
    let mut client = edge.connect();
    let mut verbose = 0;
    for _ in 0..60 {
        client.send(format!("GET / HTTP/1.1\r\nhost: hello.test\r\nferrule-trace: {many}\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status, 200);
        verbose += u32::from(response.header("ferrule-trace-id").is_some());
    }
    let suppressed = tokens(&edge, "suppressed");
    assert_eq!(f64::from(verbose) + suppressed, 60.0);
    assert!(verbose >= 10 && suppressed > 0.0, "{verbose}");
    assert_eq!(edge.metric("ferrule_verbose_suppressed_total"), suppressed);
}

#[test]
fn a_token_may_ask_for_a_report() {
    let echo = Echo::http1();
    let app = App::new("hello").instance_on("b", echo.address());
    let [a, _b] = Edge::two_regions([app]);
    let response = ask(&a, "hello.test", "/", &token(&a, &["--report"]));
    let report = response.header("ferrule-trace-report").unwrap();
    let report: Value = serde_json::from_str(report).unwrap();
    assert_eq!(report["trace"].as_str(), response.header("ferrule-trace-id"));
    for (key, expected) in [
        ("node", "a"),
        ("region", "ams"),
        ("app", "hello"),
        ("instance", "hello-1"),
        ("instance_node", "b"),
    ] {
        assert_eq!(report[key], expected, "{report}");
    }
    assert_eq!(report["retries"], 0);
    let candidates = report["candidates"].as_array().unwrap();
    assert_eq!((candidates.len(), &candidates[0][0]), (1, &"b".into()), "{report}");
    let spans = report["spans"].as_array().unwrap();
    let names: Vec<_> = spans.iter().map(|span| span[0].as_str().unwrap()).collect();
    assert_eq!(names, ["balance", "upstream"], "{report}");
}

#[test]
fn a_failure_and_a_redirect_tell_where_their_record_is() {
    let echo = Echo::http1();
    let edge = node(&echo)
        .app(App::new("gone").instance(tests::port::free_address(1)))
        .app(App::new("moved").http_port("force_https = true").instance(echo.address()))
        .start();
    let token = token(&edge, &["--uses", "2"]);
    for (host, status, part) in [("gone.test", 502, "PC01"), ("moved.test", 301, "kept as verbose")]
    {
        let response = ask(&edge, host, "/", &token);
        assert_eq!(response.status, status);
        let id = response.header("ferrule-trace-id").expect("it was verbose");
        assert!(shown(&edge, id).contains(part));
    }
}

#[test]
fn a_rule_means_what_it_names() {
    let echo = Echo::http1();
    let edge = node(&echo).app(App::new("other").instance(echo.address())).start();
    let is_verbose = |host: &str, path: &str| {
        let response = edge.get(host, path);
        assert_eq!(response.status, 200);
        response.header("ferrule-trace-id").is_some()
    };
    for (rule, inside, outside) in [
        (&["--app", "hello"][..], ("hello.test", "/"), Some(("other.test", "/"))),
        (&["--host", "hello.test"], ("hello.test", "/"), Some(("other.test", "/"))),
        (&["--path", "/cart"], ("other.test", "/cart/7"), Some(("hello.test", "/carts"))),
        (&["--client", "127.0.0.0/8"], ("hello.test", "/"), None),
        (&["--app", "hello", "--percent", "100"], ("hello.test", "/"), Some(("other.test", "/"))),
    ] {
        assert!(!is_verbose(inside.0, inside.1), "before {rule:?}");
        done(&edge, &[&["trace", "on", "--why", "a test"], rule].concat());
        assert!(is_verbose(inside.0, inside.1), "{rule:?}");
        if let Some((host, path)) = outside {
            assert!(!is_verbose(host, path), "{rule:?}");
        }
        done(&edge, &["trace", "off", "--all"]);
    }
    done(&edge, &["trace", "on", "--why", "a test", "--client", "198.51.100.0/24"]);
    assert!(!is_verbose("hello.test", "/"));
}

#[test]
fn a_verbose_request_is_verbose_on_both_nodes() {
    let echo = Echo::http1();
    let app = App::new("hello").instance_on("b", echo.address());
    let [a, b] = Edge::two_regions([app]);
    let response = ask(&a, "hello.test", "/bytes/7", &token(&a, &[]));
    let id = response.header("ferrule-trace-id").unwrap();
    for (edge, protocol) in [(&a, "HTTP/1"), (&b, "mesh")] {
        let shown = shown(edge, id);
        assert!(shown.contains(protocol) && shown.contains("response chunk"), "{shown}");
    }
    let plain = a.get("hello.test", "/");
    assert_eq!(plain.header("ferrule-trace-id"), None);
    for seen in echo.seen() {
        let told = seen.headers.keys().find(|name| name.as_str().starts_with("ferrule-"));
        let told = told.map(|name| name.as_str().to_owned());
        assert!(!told.is_some_and(|name| name.contains("trace") || name.contains("verbose")));
    }
}

#[test]
fn a_rule_of_clients_means_the_client_and_not_the_node_before() {
    let echo = Echo::http1();
    let app = App::new("hello").instance_on("b", echo.address());
    let [a, b] = Edge::two_regions([app]);
    // Node `a` connects from an address of its own choice; the client is 127.0.0.1.
    done(&b, &["trace", "on", "--why", "a test", "--client", "127.0.0.1/32"]);
    assert_eq!(a.get("hello.test", "/").status, 200);
    wait::until("it is kept", || kept(&b, "verbose") == 1.0);
    done(&b, &["trace", "off", "--all"]);
    done(&b, &["trace", "on", "--why", "a test", "--client", "127.0.0.2/32"]);
    assert_eq!(a.get("hello.test", "/").status, 200);
    b.idle();
    assert_eq!(kept(&b, "verbose"), 1.0);
}

#[test]
fn a_raw_connection_is_verbose_by_rule() {
    let echo = Echo::http1();
    let edge = Edge::with([App::raw("raw", "[]").instance(echo.address())]);
    done(&edge, &["trace", "on", "--why", "a test", "--app", "raw"]);
    let mut client = Raw::tcp(edge.tcp());
    client.send("GET /bytes/3 HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(client.response().text(), "xxx");
    let requests = edge.admin_get("/requests");
    let requests: Value = serde_json::from_str(requests.text()).unwrap();
    drop(client);
    wait::until("it is kept", || kept(&edge, "verbose") == 1.0);
    let text = requests.to_string();
    let id = text.split("\"trace\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let shown = shown(&edge, id.unwrap_or_else(|| panic!("no trace in {text}")));
    for part in ["TCP", "request chunk", "response chunk", "upstream"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}
