//! Verbosity for single requests: rules and tokens, as operators make them on a running node.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;
use tests::app::App;
use tests::client::Raw;
use tests::edge::{Edge, binary};
use tests::instance::Echo;
use tests::process::{Outcome, run};
use tests::wait;

const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;

fn edge(echo: &Echo) -> Edge {
    Edge::with([App::new("hello").instance(echo.address())])
}

#[track_caller]
fn done(edge: &Edge, arguments: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = edge.command(arguments);
    assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}: {stdout}");
    stdout
}

#[track_caller]
fn json(edge: &Edge, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&done(edge, &arguments)).unwrap()
}

#[test]
fn a_rule_is_made_listed_and_removed() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let text = done(&edge, &["trace", "on", "--app", "hello", "--path", "/cart", "--why", "slow"]);
    assert_eq!(
        text,
        "rule 1: for 10 min 0 s, at most 100 requests and 16.0 MiB; `ferrule trace off 1` ends it\n"
    );
    let second = ["--client", "198.51.100.0/24", "--percent", "2.5", "--ttl", "90s", "--uses", "5"];
    let second = [&["trace", "on", "--why", "a visit", "--bytes", "64KiB"], &second[..]].concat();
    assert_eq!(json(&edge, &second)["id"], 2);
    let listed = json(&edge, &["trace", "list"]);
    let (first, second) = (&listed["rules"][0], &listed["rules"][1]);
    assert_eq!(
        (&first["scope"]["app"], &first["scope"]["path"]),
        (&"hello".into(), &"/cart".into())
    );
    assert_eq!((&first["level"], &first["state"]), (&"verbose".into(), &"live".into()));
    assert_eq!((&second["client"], &second["percent"]), (&"198.51.100.0/24".into(), &2.5.into()));
    assert_eq!((&second["uses_max"], &second["bytes_max"]), (&5.into(), &65_536.into()));
    assert!(second["expires_in_seconds"].as_f64().is_some_and(|left| left > 60.0 && left <= 90.0));
    assert_eq!(edge.metric("ferrule_trace_rules"), 2.0);
    let text = done(&edge, &["trace", "list"]);
    assert!(text.contains("app hello path /cart"), "{text}");

    assert_eq!(done(&edge, &["trace", "off", "1"]), "1 rule removed\n");
    let gone = edge.command(&["trace", "off", "1"]);
    assert_eq!(gone.code, UNAVAILABLE, "{gone:?}");
    assert!(gone.stderr.contains("there is no rule 1"), "{gone:?}");
    assert_eq!(json(&edge, &["trace", "off", "--all"])["removed"], 1);
    assert_eq!(edge.metric("ferrule_trace_rules"), 0.0);

    // Who, what and why: in the audit and in the log.
    let who = format!("uid {} (pid ", rustix::process::getuid().as_raw());
    let listed = json(&edge, &["trace", "list"]);
    let audit = listed["audit"].as_array().unwrap();
    let told: Vec<_> = audit
        .iter()
        .map(|entry| {
            assert!(entry["who"].as_str().unwrap().starts_with(&who), "{entry}");
            (entry["what"].as_str().unwrap(), entry["rule"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(told, [("added", 1), ("added", 2), ("removed", 1), ("removed", 2)]);
    assert!(done(&edge, &["trace", "list", "--audit"]).contains("a visit"));
    let log = edge.log();
    let said =
        log.lines().find(|line| line.contains("verbosity rule added") && line.contains("rule=2"));
    assert!(said.is_some_and(|line| line.contains(&who) && line.contains("a visit")), "{log}");
}

#[test]
fn a_rule_ends_by_itself() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    done(&edge, &["trace", "on", "--app", "hello", "--ttl", "1s", "--why", "a second"]);
    wait::until("it is swept", || edge.metric("ferrule_trace_rules") == 0.0);
    let listed = json(&edge, &["trace", "list"]);
    assert_eq!(listed["audit"][1]["what"], "expired", "{listed}");
    assert_eq!(listed["audit"][1]["who"], "the node");
}

#[test]
fn a_rule_that_cannot_be_is_a_usage_error() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let check = |arguments: &[&str], part: &str| {
        let done = edge.command(&[&["trace", "on"], arguments].concat());
        assert_eq!(done.code, USAGE, "{done:?}");
        assert!(done.stderr.contains(part), "{part:?} is not in {done:?}");
    };
    check(&["--app", "hello"], "--why");
    check(&["--why", "x"], "at least one of app, host, path, client and percent");
    check(&["--why", "x", "--app", "Hello"], "app must be");
    check(&["--why", "x", "--path", "cart"], "path must start with /");
    check(&["--why", "x", "--app", "hello", "--ttl", "2h"], "from 1s to 60m");
    check(&["--why", "x", "--app", "hello", "--uses", "0"], "uses must be");
    check(&["--why", " ", "--app", "hello"], "why must be said");
    for rule in 0..64 {
        done(&edge, &["trace", "on", "--app", &format!("app-{rule}"), "--why", "many"]);
    }
    let full = edge.command(&["trace", "on", "--app", "hello", "--why", "one more"]);
    assert_eq!(full.code, UNAVAILABLE, "{full:?}");
    assert!(full.stderr.contains("there are 64 rules already"), "{full:?}");
}

#[test]
fn a_token_is_signed_by_the_node_or_with_its_key() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let arguments = ["trace", "token", "--app", "hello", "--host", "hello.test", "--report"];
    let text = done(&edge, &arguments);
    let [token, curl] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(token.starts_with("v1.k") && token.len() < 400, "{token}");
    let line = format!("curl -i -H 'ferrule-trace: {token}' 'https://hello.test/'");
    assert_eq!(curl, line);
    let listed = json(&edge, &["trace", "list"]);
    assert_eq!(listed["audit"][0]["what"], "token_signed");
    let key = listed["keys"][0].as_str().unwrap();
    assert_eq!(token.split('.').nth(1), Some(key));

    let config = edge.path("edge.toml");
    let offline = run(Command::new(binary())
        .args(["trace", "token", "--ttl", "15m", "--json", "--config"])
        .arg(&config));
    assert_eq!(offline.code, 0, "{offline:?}");
    let signed: Value = serde_json::from_str(&offline.stdout).unwrap();
    assert_eq!(signed["token"].as_str().unwrap().split('.').nth(1), Some(key));
    let long = run(Command::new(binary()).args(["trace", "token", "--ttl", "16m"]));
    assert_eq!(long.code, USAGE, "{long:?}");
}

#[test]
fn the_key_is_for_its_owner_only_and_rotated_without_a_restart() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let file = edge.path("storage/trace.key");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let old = fs::read_to_string(&file).unwrap();
    let new = format!("fresh:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n{old}");
    let draft = edge.path("draft");
    fs::write(&draft, new).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&draft, &file).unwrap();
    wait::until("it is read again", || done(&edge, &["trace", "token"]).starts_with("v1.fresh."));
    let listed = json(&edge, &["trace", "list"]);
    assert_eq!(listed["keys"].as_array().unwrap().len(), 2, "old tokens still count");
}

#[test]
fn a_key_that_others_may_read_keeps_the_node_from_starting() {
    let directory = tempfile::TempDir::new().unwrap();
    let app = App::new("hello").instance(tests::port::free_address(1));
    Edge::builder().app(app).write(directory.path());
    let key = directory.path().join("storage/trace.key");
    fs::create_dir(directory.path().join("storage")).unwrap();
    fs::write(&key, "a:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let config = directory.path().join("edge.toml");
    for command in ["check", "run"] {
        let done = run(Command::new(binary()).args([command, "--config"]).arg(&config));
        assert_eq!(done.code, USAGE, "{done:?}");
        let said = done.stdout + &done.stderr;
        assert!(said.contains("trace.key") && said.contains("0644"), "{said}");
        assert!(!said.contains("AAEC"), "{said}");
    }
}

#[test]
fn commands_are_taken_on_the_socket_only() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    for (method, path) in [("POST", "/trace"), ("GET", "/trace"), ("DELETE", "/trace/1")] {
        let mut client = Raw::tcp(edge.admin());
        client.send(format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status, 403, "{method} {path}");
        assert!(response.text().contains("on the admin socket only"));
    }
}

#[test]
fn a_request_that_has_no_record_is_said_to_have_none() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let id = "0123456789abcdef0123456789abcdef";
    let gone = edge.command(&["trace", "show", id]);
    assert_eq!(gone.code, UNAVAILABLE, "{gone:?}");
    assert!(gone.stderr.contains("the node has no record of this request"), "{gone:?}");
    assert_eq!(edge.command(&["trace", "show", "0123"]).code, USAGE);
}

#[test]
fn a_token_goes_no_further_than_this_node() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let token = done(&edge, &["trace", "token"]);
    let token = token.lines().next().unwrap();
    for value in [token, "v1.x.y.z", ""] {
        let mut client = edge.connect();
        client.send(format!(
            "GET /status/200 HTTP/1.1\r\nhost: hello.test\r\nferrule-trace: {value}\r\n\
             Ferrule_Trace: {value}\r\n\r\n"
        ));
        let response = client.response();
        assert_eq!(response.status, 200);
        assert_eq!(response.header("ferrule-trace"), None);
    }
    for seen in echo.seen() {
        let about_traces = |name: &&http::HeaderName| name.as_str().contains("trace");
        let mut leaked = seen.headers.keys().filter(about_traces);
        let leaked = leaked.find(|name| *name != "traceparent");
        assert_eq!(leaked, None, "{seen:?}");
    }
    assert_eq!(echo.seen().len(), 3);
}
