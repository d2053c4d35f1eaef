//! Nodes under test: writes `edge.toml`, apps and certificates into a temporary folder, starts the
//! `ferrule` binary, and holds it to its word when it stops.

mod builder;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::app::{App, Ports};
use crate::certs::{self, Certs, Pair};
use crate::client::{Raw, Tls};
use crate::metrics::Metrics;
use crate::process::{Outcome, Process, run};
use crate::strict::Response;
use crate::wait;

pub use builder::{Builder, MeshIdentity};

/// Longest time a node may take to stop: its drain (the harness sets 5 s) and some more.
const STOP_MAX: Duration = Duration::from_secs(15);

/// One running node. Dropped at the end of a test that passes, it is asked to stop and must leave
/// with exit code 0, nothing held; in a test that fails it is killed and its log printed.
pub struct Edge {
    process: Process,
    name: String,
    /// The command line.
    words: Vec<String>,
    directory: TempDir,
    certs: Rc<Certs>,
    address: IpAddr,
    ports: Ports,
    admin: SocketAddr,
    mesh: Option<SocketAddr>,
    stopped: bool,
}

// === impl Edge ===

impl Edge {
    /// Describes a node `a` in region `ams`.
    pub fn builder() -> Builder {
        Builder::new("a", "ams")
    }

    /// A node with these apps and nothing else said.
    pub fn with(apps: impl IntoIterator<Item = App>) -> Self {
        Self::builder().apps(apps).start()
    }

    /// Nodes `a` (region `ams`, 127.0.0.1) and `b` (region `fra`, 127.0.0.2), joined by a mesh,
    /// with the same ports, apps and authority.
    pub fn two_regions(apps: impl IntoIterator<Item = App>) -> [Self; 2] {
        Self::joined(Builder::two_regions(apps))
    }

    /// Starts the nodes of [`Builder::two_regions`] and waits until they reach each other.
    pub fn joined(nodes: [Builder; 2]) -> [Self; 2] {
        let edges = nodes.map(Builder::start);
        for edge in &edges {
            wait::until("the nodes reach each other", || {
                edge.status()["peers"][0]["reachable"] == true
            });
        }
        edges
    }

    /// Where clients reach cleartext HTTP.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.http)
    }

    /// Where clients reach HTTP over TLS.
    pub fn https(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.https)
    }

    /// Where clients reach the raw port.
    pub fn tcp(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.tcp)
    }

    /// The read-only admin address.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where peers reach the node.
    ///
    /// # Panics
    /// When the node stands alone.
    pub fn mesh(&self) -> SocketAddr {
        self.mesh.expect("a node with a mesh")
    }

    /// Who signed the certificates.
    pub fn certs(&self) -> &Certs {
        &self.certs
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Replaces the process by another of the same binary, which serves when this returns. The old one
    /// may still drain: [`Edge::predecessors_end`].
    ///
    /// # Panics
    /// When `ferrule upgrade` fails.
    #[track_caller]
    pub fn upgrade(&mut self) -> Outcome {
        let outcome = self.try_upgrade(&[]);
        assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
        outcome
    }

    /// Runs `ferrule upgrade` with these arguments to its end, whatever that is, and follows the node.
    #[track_caller]
    pub fn try_upgrade(&mut self, arguments: &[&str]) -> Outcome {
        let outcome = self.command(&[&["upgrade"], arguments].concat());
        self.follow();
        outcome
    }

    /// Starts `ferrule upgrade` and does not wait for it. When it is over, [`Edge::follow`].
    pub fn start_upgrade(&self, arguments: &[&str]) -> Process {
        let socket = self.path("admin.sock");
        let mut command = Command::new(binary());
        Process::start(
            "ferrule upgrade",
            command.arg("upgrade").args(arguments).arg("--socket").arg(socket),
        )
    }

    /// Finds out which process is the node now; returns its generation. What ends or is asked to end
    /// from now on is that one.
    #[track_caller]
    pub fn follow(&mut self) -> u64 {
        let status = self.status();
        let number = |key: &str| status[key].as_u64().expect("/status has it");
        self.process.follow(u32::try_from(number("pid")).expect("the id of a process"));
        number("generation")
    }

    /// Waits until no process but the newest is left, and holds those that were to their word.
    ///
    /// # Panics
    /// Unless each left with exit code 0.
    #[track_caller]
    pub fn predecessors_end(&mut self) {
        let older = self.process.generations() - 1;
        wait::within(STOP_MAX, "every predecessor ends", || {
            self.process.predecessors_ended().len() == older
        });
        let ended = self.process.predecessors_ended();
        assert!(ended.iter().all(ExitStatus::success), "how predecessors ended: {ended:?}");
        wait::until("the node knows that it is alone", || self.status()["other"].is_null());
    }

    /// What it logged lately.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// A file or folder of the node, by its path in the node's folder.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(path)
    }

    /// A cleartext connection.
    pub fn connect(&self) -> Raw {
        Raw::tcp(self.http())
    }

    /// A TLS connection that asks for `sni` and speaks HTTP/1.1.
    pub fn connect_tls(&self, sni: &str) -> Raw {
        self.tls(sni).connect(self.https()).expect("the handshake succeeds")
    }

    /// A TLS client's side: trusts the test's authority and asks for `sni`.
    pub fn tls(&self, sni: &str) -> Tls {
        Tls::new(self.certs.roots(), sni)
    }

    /// `GET path` of `host` on a cleartext connection of its own.
    #[track_caller]
    pub fn get(&self, host: &str, path: &str) -> Response {
        self.connect().get(host, path)
    }

    /// Writes (or replaces) the app's file, whole.
    pub fn write_app(&self, app: &App) {
        self.write_app_file(app.name(), &app.file(self.ports));
    }

    /// Writes `apps/<name>.toml` with this text, whole.
    pub fn write_app_file(&self, name: &str, text: &str) {
        certs::write_whole(&self.path(format!("apps/{name}.toml")), text);
    }

    /// Removes the app's file.
    pub fn remove_app(&self, name: &str) {
        fs::remove_file(self.path(format!("apps/{name}.toml"))).expect("the app has a file");
    }

    /// Writes `certificates/<name>.pem` and `.key`.
    pub fn write_certificate(&self, name: &str, pair: &Pair) {
        pair.write(&self.path(format!("certificates/{name}.pem")));
    }

    /// `GET path` of the admin page.
    #[track_caller]
    pub fn admin_get(&self, path: &str) -> Response {
        Raw::tcp(self.admin).get("localhost", path)
    }

    /// A scrape.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let response = self.admin_get("/metrics");
        assert_eq!(response.status, 200);
        Metrics::parse(response.text())
    }

    /// The sum of all series of a metric.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics().sum(name)
    }

    /// How often this error code was counted.
    #[track_caller]
    pub fn errors(&self, code: &str) -> f64 {
        self.metrics().sum_with("ferrule_errors_total", &[("code", code)])
    }

    /// `/status`.
    #[track_caller]
    pub fn status(&self) -> Value {
        let response = self.admin_get("/status");
        assert_eq!(response.status, 200);
        serde_json::from_slice(&response.body).expect("/status is JSON")
    }

    /// `/status`, if somebody answers.
    pub fn try_status(&self) -> Option<Value> {
        let response = Raw::try_tcp(self.admin).ok()?.try_get("/status").ok()?;
        serde_json::from_slice(&response.body).ok()
    }

    /// Waits until no permit, no request and no connection is held.
    ///
    /// # Panics
    /// With what is still held.
    #[track_caller]
    pub fn idle(&self) {
        for name in [
            "ferrule_requests_in_flight",
            "ferrule_permits_in_use",
            "ferrule_downstream_connections",
        ] {
            wait::until(&format!("{name} is 0"), || self.metric(name) == 0.0);
        }
    }

    /// Runs `ferrule <arguments> --socket <the node's>`.
    pub fn command(&self, arguments: &[&str]) -> Outcome {
        let socket = self.path("admin.sock");
        run(Command::new(binary()).args(arguments).arg("--socket").arg(socket))
    }

    /// Kills the process. Its folder stays, and with it what it had stored.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(STOP_MAX);
        self.stopped = true;
    }

    /// Starts the process again in the same folder and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start_again(&mut self) {
        let mut command = Command::new(&self.words[0]);
        self.process = Process::start(&self.name, command.args(&self.words[1..]));
        self.stopped = false;
        self.becomes_ready();
    }

    #[track_caller]
    fn becomes_ready(&mut self) {
        let admin = self.admin;
        wait::until("the node is ready", || {
            if let Some(status) = self.process.has_ended() {
                panic!("the node ended while starting: {status}");
            }
            let ready = Raw::try_tcp(admin).ok().and_then(|mut raw| raw.try_get("/readyz").ok());
            ready.is_some_and(|response| response.status == 200)
        });
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for a stop that was asked for.
    ///
    /// # Panics
    /// Unless the node leaves with exit code 0 and says that it held no task, connection or permit.
    #[track_caller]
    pub fn stopped(&mut self) {
        let status = self.process.wait(STOP_MAX);
        self.stopped = true;
        let log = self.log();
        assert_eq!(status.code(), Some(0), "the exit code after SIGTERM ({status})");
        let all = ["tasks=0", "connections=0", "permits=0"];
        let clean = log.lines().filter(|line| all.iter().all(|held| line.contains(held))).count();
        // One that was killed says nothing.
        let ended = self.process.predecessors_ended();
        let expected = 1 + ended.iter().filter(|status| status.success()).count();
        assert_eq!(clean, expected, "closing lines with {all:?} in the log");
    }

    /// Asks the node to stop and holds it to its word.
    #[track_caller]
    pub fn stop(mut self) {
        self.terminate();
    }

    #[track_caller]
    fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
        self.stopped();
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if !self.stopped && !std::thread::panicking() {
            self.terminate();
        }
    }
}

/// The `ferrule` binary that was built beside the running test, or the one `FERRULE_BINARY` names.
///
/// # Panics
/// When it has not been built.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FERRULE_BINARY") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the running test has a path");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let binary = profile.join("ferrule");
    assert!(binary.is_file(), "{} is missing: run `make build`", binary.display());
    binary
}
