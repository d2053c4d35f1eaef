//! The command line: what operators and scripts rely on.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tests::app::App;
use tests::edge::{Edge, binary};
use tests::instance::Echo;
use tests::process::{Outcome, run};

const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;

fn check(directory: &TempDir) -> Outcome {
    let config = directory.path().join("edge.toml");
    run(Command::new(binary()).args(["check", "--config"]).arg(config))
}

/// A sound node's folder.
fn folder() -> TempDir {
    let directory = TempDir::new().unwrap();
    let app = App::new("hello").instance(tests::port::free_address(1));
    Edge::builder().app(app).write(directory.path());
    directory
}

#[test]
fn a_sound_configuration_is_said_to_be_sound() {
    let done = check(&folder());
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn every_problem_is_listed_with_its_file_line_key_and_a_suggestion() {
    let directory = folder();
    let config = directory.path().join("edge.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("region =", "regoin =");
    fs::write(&config, text + "\n[limitz]\nconnections_max = 1\n").unwrap();
    fs::write(
        directory.path().join("apps/hello.toml"),
        "app = \"hello\"\nhostname = [\"hello.test\"]\n[[services]]\ninternal_port = 70000\n",
    )
    .unwrap();
    fs::write(directory.path().join("apps/broken.toml"), "app = \n").unwrap();
    let done = check(&directory);
    assert_eq!(done.code, USAGE, "{done:?}");
    let said = done.stdout + &done.stderr;
    for word in [
        "edge.toml",
        "regoin",
        "region",
        "limitz",
        "limits",
        "hello.toml",
        "hostname",
        "hostnames",
        "internal_port",
        "broken.toml",
    ] {
        assert!(said.contains(word), "{word:?} is not in\n{said}");
    }
    assert!(said.contains("did you mean"), "{said}");
    assert!(said.contains("edge.toml:3"), "the line is told:\n{said}");
    assert!(said.contains("hello.toml:2"), "the line is told:\n{said}");
    let run = run(Command::new(binary()).args(["run", "--config"]).arg(&config));
    assert_eq!(run.code, USAGE, "what does not check does not run: {run:?}");
}

#[test]
fn checking_binds_nothing() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let config = edge.path("edge.toml");
    let done = run(Command::new(binary()).args(["check", "--config"]).arg(config));
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(edge.get("hello.test", "/").status, 200);
}

#[test]
fn a_file_that_is_not_there_is_a_usage_error() {
    let done = run(Command::new(binary()).args(["check", "--config", "/nonexistent/edge.toml"]));
    assert_eq!(done.code, USAGE, "{done:?}");
    assert!((done.stdout + &done.stderr).contains("/nonexistent/edge.toml"));
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    let done = run(Command::new(binary()).arg("rum"));
    assert_eq!(done.code, USAGE, "{done:?}");
    assert!(done.stderr.contains("run"), "it suggests: {done:?}");
    let help = run(Command::new(binary()).arg("--help"));
    assert_eq!(help.code, 0);
    for command in ["demo", "run", "check", "status"] {
        assert!(help.stdout.contains(command), "{command} in {}", help.stdout);
    }
}

#[test]
fn the_status_tells_what_scripts_ask_for() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let done = edge.command(&["status", "--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let status: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(status["pid"], edge.pid());
    assert_eq!((&status["node"], &status["region"]), (&"a".into(), &"ams".into()));
    assert_eq!((&status["ready"], &status["draining"]), (&true.into(), &false.into()));
    assert_eq!(status["generation"], 1);
    assert!(status["filter_mode"].is_string());
    assert!(status["inventory_age_seconds"].as_f64().is_some_and(|age| age < 3600.0), "{status}");
    let config = edge.path("edge.toml");
    let by_config = run(Command::new(binary()).args(["status", "--config"]).arg(config));
    assert_eq!(by_config.code, 0, "{by_config:?}");
    assert!(by_config.stdout.contains("ams"), "{by_config:?}");
}

#[test]
fn the_listings_name_apps_instances_and_certificates() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    for (arguments, word) in [
        (["app", "list"], "hello"),
        (["instance", "list"], "hello-1"),
        (["cert", "list"], "hello.test"),
    ] {
        let plain = edge.command(&arguments);
        assert!(plain.code == 0 && plain.stdout.contains(word), "{arguments:?}: {plain:?}");
        let json = edge.command(&[arguments[0], arguments[1], "--json"]);
        assert!(json.stdout.contains(word), "{arguments:?}: {json:?}");
        serde_json::from_str::<Value>(&json.stdout).unwrap();
    }
}

#[test]
fn a_node_that_does_not_run_is_unavailable() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("admin.sock");
    let done = run(Command::new(binary()).args(["status", "--socket"]).arg(socket));
    assert_eq!(done.code, UNAVAILABLE, "{done:?}");
}

#[test]
fn the_control_socket_is_for_its_owner_only() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mode = fs::metadata(edge.path("admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
