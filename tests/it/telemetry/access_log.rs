//! The access log of a running node: its lines, its rotation, and a disk that is full.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tests::app::App;
use tests::client::{H2, Raw, WebSocket};
use tests::edge::{Builder, Edge};
use tests::instance::{Echo, Scripted, websocket_echo};
use tests::port::free_address;
use tests::{need, wait};

fn logging(to: &Path) -> Builder {
    Edge::builder().telemetry("telemetry.access_log", &format!("path = {to:?}"))
}

/// The lines of a file, which need not be there yet.
pub(super) fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for `count` lines.
#[track_caller]
fn wait_for(file: &Path, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} lines are written"), || lines(file).len() >= count);
    let lines = lines(file);
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

/// Asserts that `line` has exactly these fields; `*` is any value.
#[track_caller]
fn assert_line(line: &Value, expected: &[(&str, &str)]) {
    let found: BTreeMap<&str, String> = line
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| {
            (&**key, value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        })
        .collect();
    let any = expected.iter().map(|(key, value)| {
        let any = *value == "*" && found.contains_key(key);
        (*key, if any { found[key].clone() } else { (*value).to_owned() })
    });
    assert_eq!(found, any.collect());
}

#[test]
fn a_request_is_one_line_of_these_fields() {
    let (folder, echo) = (TempDir::new().unwrap(), Echo::http1());
    let file = folder.path().join("access.log");
    let edge = logging(&file)
        .app(App::new("hello").instance(echo.address()))
        .app(App::new("gone").instance(free_address(1)))
        .start();
    let mut client = edge.connect();
    client.send("POST /whole HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 4\r\n\r\nping");
    let response = client.response();
    assert_eq!(response.text(), "ping");
    let id = response.header("ferrule-request-id").unwrap();
    edge.get("gone.test", "/").assert_error(502, "PC01");
    edge.get("nobody.test", "/").assert_error(404, "PE01");
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/bytes/9").status, 200);
    let told = wait_for(&file, 4);
    let by_error = |error: &str| told.iter().find(|line| line["error"] == error).unwrap();

    let always = [("time", "*"), ("trace_id", "*"), ("duration_ms", "*"), ("head_ms", "*")];
    let ok = told.iter().find(|line| line["request_id"] == id).unwrap();
    let posted = [
        ("request_id", id),
        ("app", "hello"),
        ("instance", "hello-1"),
        ("node", "a"),
        ("method", "POST"),
        ("protocol", "http/1.1"),
        ("tls", "false"),
        ("status", "200"),
        ("attempts", "1"),
        ("request_bytes", "4"),
        ("response_bytes", "4"),
    ];
    assert_line(ok, &[&always[..], &posted].concat());
    let refused = |app: &[(&'static str, &'static str)], status, error, attempts| {
        let own = [
            ("request_id", "*"),
            ("method", "GET"),
            ("protocol", "http/1.1"),
            ("tls", "false"),
            ("status", status),
            ("error", error),
            ("attempts", attempts),
            ("request_bytes", "0"),
            ("response_bytes", "0"),
        ];
        [&always[..], app, &own].concat()
    };
    let gone = [("app", "gone"), ("instance", "gone-1"), ("node", "a")];
    assert_line(by_error("PC01"), &refused(&gone, "502", "PC01", "1"));
    assert_line(by_error("PE01"), &refused(&[], "404", "PE01", "0"));
    let secure = told.iter().find(|line| line["tls"] == true).unwrap();
    assert_eq!(secure["response_bytes"], 9);
}

#[tokio::test]
async fn tunnels_and_raw_connections_are_lines_with_what_each_side_sent() {
    const CLOSE: u8 = 8;
    let (folder, socket) = (TempDir::new().unwrap(), websocket_echo());
    let reverse = Scripted::start(|connection| {
        let mut bytes = connection.to_end()?;
        bytes.extend_from_slice(b"and more");
        connection.send(&bytes)
    });
    let file = folder.path().join("access.log");
    let edge = logging(&file)
        .app(App::new("chat").instance(socket.address()))
        .app(App::raw("raw", "[]").instance(reverse.address()))
        .start();
    {
        let mut socket = WebSocket::upgrade(edge.connect(), "chat.test", "/");
        socket.send(1, b"0123456789");
        assert_eq!(socket.receive().0, 1);
        socket.send(CLOSE, &1000_u16.to_be_bytes());
        assert_eq!(socket.receive().0, CLOSE);
    }
    let mut client = Raw::tcp(edge.tcp());
    client.send("12345");
    client.finish();
    assert_eq!(client.reader().to_end().unwrap(), b"12345and more");
    // Nobody listens at the instance: the connection ends, and the line says why.
    let told = wait_for(&file, 2);
    let of = |protocol: &str| told.iter().find(|line| line["protocol"] == protocol).unwrap();
    let always = [("time", "*"), ("request_id", "*"), ("trace_id", "*"), ("duration_ms", "*")];
    let more = [("head_ms", "*"), ("node", "a"), ("tls", "false"), ("attempts", "1")];
    let always = [&always[..], &more].concat();
    // A client masks its frames: 2 + 4 + 10 and 2 + 4 + 2 bytes, back without the masks.
    let tunnel = [
        ("app", "chat"),
        ("instance", "chat-1"),
        ("method", "GET"),
        ("protocol", "websocket"),
        ("status", "101"),
        ("request_bytes", "24"),
        ("response_bytes", "16"),
    ];
    assert_line(of("websocket"), &[&always[..], &tunnel].concat());
    let raw = [
        ("app", "raw"),
        ("instance", "raw-1"),
        ("protocol", "tcp"),
        ("request_bytes", "5"),
        ("response_bytes", "13"),
    ];
    assert_line(of("tcp"), &[&always[..], &raw].concat());
}

#[tokio::test]
async fn a_raw_connection_is_recorded_on_both_nodes() {
    let (folder, instance) = (
        TempDir::new().unwrap(),
        Scripted::start(|connection| {
            let bytes = connection.to_end()?;
            connection.send(&bytes)
        }),
    );
    let files = ["a", "b"].map(|node| folder.path().join(node));
    let app = App::raw("raw", "[]").instance_on("b", instance.address());
    let [a, b] = Builder::two_regions([app]);
    let on = |node: Builder, file: &PathBuf| {
        node.telemetry("telemetry.access_log", &format!("path = {file:?}"))
    };
    let [a, _b] = Edge::joined([on(a, &files[0]), on(b, &files[1])]);
    let mut client = Raw::tcp(a.tcp());
    client.send("12345");
    client.finish();
    assert_eq!(client.reader().to_end().unwrap(), b"12345");
    let [here, there] = files.each_ref().map(|file| wait_for(file, 1).remove(0));
    assert_eq!(here["trace_id"], there["trace_id"]);
    for line in [here, there] {
        assert_eq!((&line["protocol"], &line["app"]), (&"tcp".into(), &"raw".into()), "{line}");
        assert_eq!((&line["request_bytes"], &line["response_bytes"]), (&5.into(), &5.into()));
    }
}

#[tokio::test]
async fn a_raw_connection_without_an_instance_says_why() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("access.log");
    let edge = logging(&file).app(App::raw("raw", "[]").instance(free_address(1))).start();
    let mut client = Raw::tcp(edge.tcp());
    assert_eq!(client.reader().to_end().unwrap(), b"");
    let line = wait_for(&file, 1).remove(0);
    assert_eq!((&line["protocol"], &line["error"]), (&"tcp".into(), &"PC01".into()), "{line}");
}

#[tokio::test]
async fn what_is_exposed_is_in_the_line() {
    let (folder, echo) = (TempDir::new().unwrap(), Echo::http1());
    let file = folder.path().join("access.log");
    let edge = logging(&file)
        .app(App::new("hello").instance(echo.address()))
        .telemetry(
            "telemetry",
            "expose = [\"client.address\", \"server.address\", \"url.path\", \"url.query\", \
             \"user_agent.original\"]",
        )
        .start();
    let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let request = http::Request::get("https://hello.test/a/b?c=d").header("user-agent", "tester/1");
    client.send(request.body(()).unwrap(), "").await.unwrap();
    let line = wait_for(&file, 1).remove(0);
    for (key, expected) in [
        ("client.address", "127.0.0.1"),
        ("server.address", "hello.test"),
        ("url.path", "/a/b"),
        ("url.query", "c=d"),
        ("user_agent.original", "tester/1"),
        ("protocol", "http/2"),
    ] {
        assert_eq!(line[key], expected, "{line}");
    }
}

#[test]
fn a_log_that_was_renamed_is_opened_again() {
    let (folder, echo) = (TempDir::new().unwrap(), Echo::http1());
    let [file, old, older] = ["access.log", "access.log.1", "access.log.2"];
    let [file, old, older] = [file, old, older].map(|name| folder.path().join(name));
    let mut edge = logging(&file).app(App::new("hello").instance(echo.address())).start();
    let mut total = 0;
    let mut some = |edge: &Edge, file: &Path| {
        let mut client = edge.connect();
        for _ in 0..10 {
            assert_eq!(client.get("hello.test", "/").status, 200);
        }
        total += 10;
        wait_for(file, 10);
        total
    };
    some(&edge, &file);
    // As logrotate does it: rename, then say so.
    fs::rename(&file, &old).unwrap();
    edge.signal(Signal::HUP);
    wait::until("it is opened again", || file.exists());
    some(&edge, &file);
    assert!(edge.log().contains("the access log is opened again"), "{}", edge.log());
    // Whoever forgets to say so is noticed too.
    fs::rename(&file, &older).unwrap();
    wait::until("it is opened again", || file.exists());
    assert_eq!(some(&edge, &file), 30);
    assert_eq!([&file, &old, &older].map(|file| lines(file).len()), [10; 3]);
    let ids = [&file, &old, &older].into_iter().flat_map(|file| lines(file));
    let ids: std::collections::BTreeSet<_> =
        ids.map(|line| line["request_id"].to_string()).collect();
    assert_eq!(ids.len(), 30, "no line is lost or written twice");
}

#[test]
fn a_hangup_ends_no_node() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    for _ in 0..3 {
        edge.signal(Signal::HUP);
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
}

#[test]
fn stdout_has_the_log_and_nothing_else() {
    let (folder, echo) = (TempDir::new().unwrap(), Echo::http1());
    let file = folder.path().join("stdout");
    let script = format!("exec \"$@\" > {}", file.display());
    let edge = Edge::builder()
        .telemetry("telemetry.access_log", "path = \"stdout\"")
        .app(App::new("hello").instance(echo.address()))
        .through(&["sh", "-c", &script, "sh"])
        .start();
    for _ in 0..5 {
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    let told = wait_for(&file, 5);
    assert!(told.iter().all(|line| line["app"] == "hello"), "{told:?}");
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    let mount = "mount -t tmpfs -o size=64k none";
    let able = Command::new("unshare").args(["-rm", "sh", "-c", &format!("{mount} /tmp")]).output();
    if !able.is_ok_and(|output| output.status.success()) {
        return need::skip("no file system can be mounted in a namespace of one's own");
    }
    let (folder, echo) = (TempDir::new().unwrap(), Echo::http1());
    let disk = folder.path().to_str().unwrap();
    let script = format!("{mount} {disk} && head -c 61440 /dev/zero > {disk}/full; exec \"$@\"");
    let edge = logging(&folder.path().join("access.log"))
        .telemetry("telemetry.access_log", "buffer_bytes = \"16KiB\"")
        .app(App::new("hello").instance(echo.address()))
        .through(&["unshare", "-rm", "sh", "-c", &script, "sh"])
        .start();
    // The mount is the node's own.
    let inside = PathBuf::from(format!("/proc/{}/root", edge.pid()))
        .join(folder.path().strip_prefix("/").unwrap());
    let mut client = edge.connect();
    for _ in 0..300 {
        assert_eq!(client.get("hello.test", "/").status, 200);
    }
    wait::until("the disk is full", || edge.metric("ferrule_access_log_errors_total") > 0.0);
    let lost = || edge.metric("ferrule_access_log_dropped_total");
    wait::until("lines are lost", || {
        assert_eq!(client.get("hello.test", "/").status, 200);
        lost() > 0.0
    });
    assert_eq!(edge.log().matches("the access log cannot be written").count(), 1);
    assert!(super::ledger(&edge, "access_log") <= 16.0 * 1024.0);

    fs::remove_file(inside.join("full")).unwrap();
    let file = inside.join("access.log");
    let told_of =
        |lines: &[Value]| lines.iter().filter_map(|line| line["lost"].as_u64()).sum::<u64>() as f64;
    wait::until("what is missing is said", || {
        assert_eq!(client.get("hello.test", "/").status, 200);
        let told = told_of(&lines(&file));
        told > 0.0 && told == lost()
    });
}
