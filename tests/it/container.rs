//! The image, by a Docker engine of the test's own: the node as process 1 of a container.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;
use tempfile::TempDir;
use tests::app::{App, Ports};
use tests::edge::binary;
use tests::instance::Echo;
use tests::machine::Machine;
use tests::need::{self, workspace};
use tests::process::{Outcome, run};
use tests::wait;

const EDGE: &str = "\
[node]\nid = \"a\"\nregion = \"ams\"\n\n\
[listen]\nmode = \"bind\"\naddresses = [\"127.0.0.1\"]\n\n\
[timeouts]\ndrain = \"5s\"\n";

const PORTS: Ports = Ports { http: 8080, https: 8443, tcp: 9 };
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), PORTS.http);

/// Nobody's number; the image's user.
const USER: &str = "65532";

struct Engine {
    machine: Machine,
    client: PathBuf,
    socket: PathBuf,
    folder: TempDir,
}

// === impl Engine ===

impl Engine {
    fn start() -> Option<Self> {
        if !geteuid().is_root() {
            need::skip("a Docker engine of its own needs root");
            return None;
        }
        let tools = workspace().join("target/tools/docker");
        if !tools.join("base.tar").is_file() {
            need::skip("there is no Docker engine (make install-tools)");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let mut engine = Command::new(workspace().join("tests/container/engine"));
        let machine = Machine::start(engine.arg(&tools).arg(folder.path()));
        let (client, socket) = (tools.join("usr/bin/docker"), folder.path().join("socket"));
        let engine = Self { machine, client, socket, folder };
        wait::until("the engine answers", || engine.try_docker(&["version"]).code == 0);
        let base = tools.join("base.tar").display().to_string();
        engine.docker(&["import", &base, "ferrule-base"]);
        Some(engine)
    }

    fn try_docker(&self, words: &[&str]) -> Outcome {
        let host = format!("unix://{}", self.socket.display());
        let mut command = Command::new(&self.client);
        // Only BuildKit leaves out the stage that compiles.
        run(command.env("DOCKER_BUILDKIT", "1").args(["--host", &host]).args(words))
    }

    #[track_caller]
    fn docker(&self, words: &[&str]) -> String {
        let done = self.try_docker(words);
        assert_eq!(done.code, 0, "docker {words:?}: {}{}", done.stdout, done.stderr);
        done.stdout.trim().to_owned()
    }

    fn inspect(&self, what: &str) -> String {
        self.docker(&["inspect", "--format", &format!("{{{{.{what}}}}}"), "node"])
    }

    /// Processes of the container but the supervisor, each with its user.
    fn nodes(&self) -> Vec<String> {
        let top = self.docker(&["top", "node", "-eo", "uid,pid,args"]);
        let runs = |line: &&str| line.contains("ferrule run");
        top.lines().filter(runs).skip(1).map(str::to_owned).collect()
    }
}

/// `/etc/ferrule` of the container, for everybody to read.
fn configure(folder: &Path, app: &App) -> String {
    for name in ["apps", "certificates"] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    fs::write(folder.join("edge.toml"), EDGE).unwrap();
    fs::write(folder.join("apps/hello.toml"), app.file(PORTS)).unwrap();
    let open = Command::new("chmod").args(["-R", "a+rX"]).arg(folder).status().unwrap();
    assert!(open.success());
    format!("{}:/etc/ferrule:ro", folder.display())
}

#[test]
fn the_image_runs_a_node_that_is_healthy_replaced_and_stopped() {
    let Some(engine) = Engine::start() else { return };
    let Ok(prebuilt) = binary().strip_prefix(workspace()).map(Path::to_owned) else {
        return need::skip("the binary was built outside of the workspace");
    };
    let prebuilt = format!("PREBUILT={}", prebuilt.display());
    let arguments = ["RUNTIME=ferrule-base", "BINARY=prebuilt", &prebuilt];
    let arguments = arguments.iter().flat_map(|argument| ["--build-arg", argument]);
    let build: Vec<&str> = ["build", "--tag", "ferrule"].into_iter().chain(arguments).collect();
    engine.docker(&[&build[..], &["."]].concat());
    assert_eq!(
        engine.docker(&["run", "--rm", "--network", "none", "ferrule", "--version"]),
        "ferrule 0.0.0"
    );

    let echo = engine.machine.inside(Echo::http1);
    let app = App::new("hello").instance(echo.address());
    let volume = configure(&engine.folder.path().join("etc"), &app);
    let run = ["run", "--detach", "--name", "node", "--network", "host", "--read-only"];
    // The image has the rest; a root that cannot be written needs a place for the admin socket.
    let with =
        ["--volume", &volume, "--tmpfs", "/run/ferrule:uid=65532", "--health-interval", "1s"];
    engine.docker(&[&run[..], &with, &["ferrule"]].concat());
    wait::until("it is healthy", || engine.inspect("State.Health.Status") == "healthy");
    assert_eq!(engine.nodes().len(), 1);
    assert!(
        engine.nodes().iter().all(|line| line.trim_start().starts_with(USER)),
        "{:?}",
        engine.nodes()
    );

    let (upgraded, tally) = engine.machine.while_asked(HTTP, "hello.test", || {
        engine.try_docker(&["exec", "node", "ferrule", "upgrade"])
    });
    assert_eq!(upgraded.code, 0, "{}{}", upgraded.stdout, upgraded.stderr);
    assert!(tally.answered > 0 && tally.refused == 0 && tally.failed.is_empty(), "{tally:?}");
    wait::until("the predecessor has ended and was reaped", || engine.nodes().len() == 1);
    assert_eq!(engine.inspect("State.Running"), "true");
    wait::until("it is healthy still", || engine.inspect("State.Health.Status") == "healthy");
    let ((), tally) = engine.machine.while_asked(HTTP, "hello.test", || {
        wait::until("the health check has run again", || {
            engine.try_docker(&["exec", "node", "ferrule", "status", "--ready"]).code == 0
        });
    });
    assert!(tally.answered > 0 && tally.refused == 0, "{tally:?}");

    let started = std::time::Instant::now();
    engine.docker(&["stop", "--time", "30", "node"]);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let log = engine.try_docker(&["logs", "node"]).stderr;
    assert_eq!(engine.inspect("State.ExitCode"), "0", "{log}");
    assert!(log.contains("stopped tasks=0 connections=0 permits=0"), "{log}");

    // A node that cannot start ends the container, and says why by its code.
    let run =
        ["run", "--name", "broken", "--network", "none", "ferrule", "run", "--config", "/none"];
    assert_eq!(engine.try_docker(&run).code, 64, "the node's own exit code");
}
