//! What a node is told before it starts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use tempfile::TempDir;

use super::{Edge, binary};
use crate::app::{App, Ports};
use crate::certs::{Certs, Validity};
use crate::collector::{Collector, Transport};
use crate::port::{free, is_listening, loopback};
use crate::process::{Outcome, Process, run};
use crate::wait;

/// A node to be.
pub struct Builder {
    id: String,
    region: String,
    workers: usize,
    address: IpAddr,
    ports: Ports,
    apps: Vec<App>,
    /// App files as they are, by name.
    files: BTreeMap<String, String>,
    certs: Rc<Certs>,
    sections: BTreeMap<&'static str, Vec<String>>,
    mesh: Option<Mesh>,
    wrapper: Vec<String>,
    user: Option<User>,
    seed: Option<String>,
}

/// Who runs the node instead of the test's own user.
struct User {
    id: u32,
    capabilities: String,
}

struct Mesh {
    address: SocketAddr,
    peers: Vec<(String, String, SocketAddr)>,
    identity: MeshIdentity,
}

/// What a node shows its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeshIdentity {
    /// What it should: its own name, signed by the authority of all nodes.
    Own,
    /// A certificate that names another node.
    AnotherNode,
    /// Its own name, no longer valid.
    Expired,
    /// Its own name, signed by an authority that nobody trusts.
    AnotherAuthority,
}

// === impl Builder ===

impl Builder {
    pub(super) fn new(id: &str, region: &str) -> Self {
        let builder = Self {
            id: id.to_owned(),
            region: region.to_owned(),
            workers: 2,
            address: loopback(1),
            ports: Ports { http: free(), https: free(), tcp: free() },
            apps: Vec::new(),
            files: BTreeMap::new(),
            certs: Rc::new(Certs::new()),
            sections: BTreeMap::new(),
            mesh: None,
            wrapper: Vec::new(),
            user: None,
            seed: None,
        };
        // Nothing that a test waits for by default takes longer than it must.
        builder
            .timeout("drain", "5s")
            .timeout("drain_websocket", "5s")
            .timeout("drain_tcp", "5s")
            .timeout("drain_delay", "0ms")
            .timeout("drain_spread", "100ms")
    }

    /// The two nodes of [`Edge::two_regions`], before they start.
    pub fn two_regions(apps: impl IntoIterator<Item = App>) -> [Self; 2] {
        Self::pair(apps, "fra")
    }

    /// The same with both in region `ams`, so that they share what is between soft and hard limits.
    pub fn one_region(apps: impl IntoIterator<Item = App>) -> [Self; 2] {
        Self::pair(apps, "ams")
    }

    fn pair(apps: impl IntoIterator<Item = App>, region_b: &str) -> [Self; 2] {
        let apps: Vec<App> = apps.into_iter().collect();
        let (port_a, port_b) = (free(), free());
        let at_a = SocketAddr::new(loopback(1), port_a);
        let at_b = SocketAddr::new(loopback(2), port_b);
        let mut a = Self::new("a", "ams").apps(apps.clone());
        let mut b = Self::new("b", region_b).apps(apps);
        b.address = loopback(2);
        b.ports = a.ports;
        b.certs = a.certs.clone();
        a.mesh = Some(Mesh::new(at_a, ("b", region_b, at_b)));
        b.mesh = Some(Mesh::new(at_b, ("a", "ams", at_a)));
        [a, b]
    }

    /// These apps too.
    pub fn apps(mut self, apps: impl IntoIterator<Item = App>) -> Self {
        self.apps.extend(apps);
        self
    }

    /// This app too.
    pub fn app(self, app: App) -> Self {
        self.apps([app])
    }

    /// An app file `apps/<name>.toml` with exactly this text.
    pub fn app_file(mut self, name: &str, text: &str) -> Self {
        self.files.insert(name.to_owned(), text.to_owned());
        self
    }

    /// A line `key = value` of any section; the last one of a key counts.
    pub fn set(self, section: &'static str, line: &str) -> Self {
        self.line(section, line.to_owned())
    }

    /// So many worker threads instead of two.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// A bound of `[limits]`.
    pub fn limit(self, key: &str, value: u64) -> Self {
        self.line("limits", format!("{key} = {value}"))
    }

    /// A wait of `[timeouts]`, such as `"500ms"`.
    pub fn timeout(self, key: &str, value: &str) -> Self {
        self.line("timeouts", format!("{key} = {value:?}"))
    }

    /// A line of `[telemetry]` or, as `telemetry.otlp`, of a part of it.
    pub fn telemetry(self, section: &'static str, line: &str) -> Self {
        self.line(section, line.to_owned())
    }

    /// Sends what it keeps to `collector`, at once, and no metrics.
    pub fn exporting(self, collector: &Collector, transport: Transport) -> Self {
        self.exporting_to(&collector.endpoint(), transport)
    }

    /// The same, to whatever is there.
    pub fn exporting_to(self, endpoint: &str, transport: Transport) -> Self {
        let protocol = match transport {
            Transport::Http => "http/protobuf",
            Transport::Grpc => "grpc",
        };
        self.telemetry("telemetry.otlp", &format!("endpoint = {endpoint:?}"))
            .telemetry("telemetry.otlp", &format!("protocol = {protocol:?}"))
            .telemetry("telemetry.otlp", "schedule_delay = \"10ms\"")
            .telemetry("telemetry.otlp", "metric_interval = \"1h\"")
    }

    /// Keeps so many of a hundred requests that nothing is special about, without a cap.
    pub fn sampling(self, percent: u32) -> Self {
        self.telemetry("telemetry.records", &format!("sample_percent = {percent}.0"))
            .telemetry("telemetry.records", "exports_per_second_max = 1_000_000")
            .telemetry("telemetry.records", "app_exports_per_second_max = 1_000_000")
    }

    /// Watches the heap in the scales of a test: a leak is named within a minute.
    pub fn heapwatch_for_tests(self) -> Self {
        self.line("memory", "profile = \"test\"".to_owned())
    }

    /// Starts `ferrule-seeded` with this leak instead of `ferrule`.
    pub fn seeded(mut self, leak: &str) -> Self {
        self.seed = Some(leak.to_owned());
        self
    }

    /// What the node shows its peers.
    ///
    /// # Panics
    /// When the node has no mesh.
    pub fn mesh_identity(mut self, identity: MeshIdentity) -> Self {
        self.mesh.as_mut().expect("a node with a mesh").identity = identity;
        self
    }

    /// Starts the binary through this command, such as `prlimit --nofile=64`.
    pub fn through(mut self, command: &[impl AsRef<str>]) -> Self {
        self.wrapper = command.iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Runs the node as the user `id` with these ambient capabilities and no others, such as
    /// `net_admin`: what a service manager does.
    pub fn as_user(mut self, id: u32, capabilities: &[&str]) -> Self {
        let capabilities = capabilities.iter().map(|name| format!(",+{name}")).collect();
        self.user = Some(User { id, capabilities });
        self
    }

    /// Who signs the node's certificates.
    pub fn certs(&self) -> Rc<Certs> {
        self.certs.clone()
    }

    /// Where peers will reach the node.
    ///
    /// # Panics
    /// When it has no mesh.
    pub fn mesh_address(&self) -> SocketAddr {
        self.mesh.as_ref().expect("a node with a mesh").address
    }

    /// The ports that app files will name.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    fn line(mut self, section: &'static str, line: String) -> Self {
        let lines = self.sections.entry(section).or_default();
        let key = line.split(' ').next().unwrap_or_default().to_owned() + " ";
        lines.retain(|line| !line.starts_with(&key)); // the last word counts
        lines.push(line);
        self
    }

    /// Writes the node's folder without starting anything: `edge.toml`, `apps/`, `certificates/`.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn write(&self, directory: &Path) -> SocketAddr {
        let admin = SocketAddr::new(loopback(1), free());
        fs::create_dir_all(directory.join("apps")).expect("the folder is ours");
        fs::create_dir_all(directory.join("certificates")).expect("the folder is ours");
        fs::write(directory.join("edge.toml"), self.config(admin)).expect("the folder is ours");
        for app in &self.apps {
            let path = directory.join("apps").join(app.name()).with_extension("toml");
            fs::write(path, app.file(self.ports)).expect("the folder is ours");
            let names: Vec<&str> = app.hostnames().iter().map(String::as_str).collect();
            self.certs.leaf(&names).write(&directory.join("certificates").join(app.name()));
        }
        for (name, text) in &self.files {
            let path = directory.join("apps").join(name).with_extension("toml");
            fs::write(path, text).expect("the folder is ours");
        }
        if let Some(mesh) = &self.mesh {
            mesh.pair(&self.id, &self.certs).write(&directory.join("mesh"));
            fs::copy(self.certs.ca(), directory.join("mesh-ca.pem")).expect("the folder is ours");
        }
        admin
    }

    /// Starts the node and waits until it is ready and listens for its apps.
    ///
    /// # Panics
    /// When it does not come to that.
    #[track_caller]
    pub fn start(self) -> Edge {
        let (web, raw) = (self.apps.iter().any(App::is_web), self.apps.iter().any(App::is_raw));
        let edge = self.start_until_ready();
        wait::until("the node listens", || {
            let web = !web || is_listening(edge.http()) && is_listening(edge.https());
            web && (!raw || is_listening(edge.tcp()))
        });
        edge
    }

    /// Starts the node and waits until it says that it is ready, and for nothing more.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start_until_ready(self) -> Edge {
        let directory = TempDir::with_prefix("ferrule-edge-").expect("a temporary folder");
        let admin = self.write(directory.path());
        let words = self.words(directory.path());
        let Self { id, certs, address, ports, mesh, .. } = self;
        let name = format!("node {id}");
        let process = Process::start(&name, Command::new(&words[0]).args(&words[1..]));
        let mesh = mesh.map(|mesh| mesh.address);
        let stopped = false;
        let mut edge =
            Edge { process, name, words, directory, certs, address, ports, admin, mesh, stopped };
        edge.becomes_ready();
        edge
    }

    /// Starts the node, which is expected to give up.
    ///
    /// # Panics
    /// When it still runs after a while.
    #[track_caller]
    pub fn gives_up(self) -> Outcome {
        let directory = TempDir::with_prefix("ferrule-edge-").expect("a temporary folder");
        self.write(directory.path());
        let words = self.words(directory.path());
        let mut process = Process::start("a node", Command::new(&words[0]).args(&words[1..]));
        let code = process.wait(wait::PATIENCE).code().unwrap_or(-1);
        Outcome { code, stdout: String::new(), stderr: process.output() }
    }

    /// The command line that starts the node in `directory`.
    fn words(&self, directory: &Path) -> Vec<String> {
        let mut words = self.wrapper.clone();
        let mut program = binary();
        if let Some(seed) = &self.seed {
            words.extend(["env".to_owned(), format!("FERRULE_SEED={seed}")]);
            program.set_file_name("ferrule-seeded");
            assert!(program.is_file(), "{} is missing: run `make build`", program.display());
        }
        if let Some(User { id, capabilities }) = &self.user {
            // The user may not be able to reach the folder that the binary was built in.
            let copy = directory.join("ferrule");
            fs::copy(&program, &copy).expect("the folder is ours");
            program = copy;
            let owner = format!("{id}:{id}");
            let owned = run(Command::new("chown").args(["-R", &owner]).arg(directory));
            assert_eq!(owned.code, 0, "{}", owned.stderr);
            let id = id.to_string();
            let only = format!("-all{capabilities}");
            words.extend(["setpriv", "--reuid", &id, "--regid", &id].map(str::to_owned));
            words.extend(["--clear-groups", "--no-new-privs"].map(str::to_owned));
            for set in ["--bounding-set", "--inh-caps", "--ambient-caps"] {
                words.extend([set, &only].map(str::to_owned));
            }
            words.push("--".to_owned());
        }
        let config = directory.join("edge.toml");
        words.extend([program.display().to_string(), "run".to_owned(), "--config".to_owned()]);
        words.push(config.display().to_string());
        words
    }

    fn config(&self, admin: SocketAddr) -> String {
        let Self { id, region, workers, address, .. } = self;
        let mut text = format!(
            "[node]\nid = {id:?}\nregion = {region:?}\nworkers = {workers}\n\n\
             [storage]\ndirectory = \"storage\"\n\n\
             [inventory]\nsource = \"directory\"\ndirectory = \"apps\"\n\n\
             [certificates]\ndirectory = \"certificates\"\n\n\
             [admin]\naddress = \"{admin}\"\nsocket = \"admin.sock\"\n"
        );
        if !self.sections.contains_key("listen") {
            write!(text, "\n[listen]\nmode = \"bind\"\naddresses = [\"{address}\"]\n")
                .expect("a String takes everything");
        }
        for (section, lines) in &self.sections {
            write!(text, "\n[{section}]\n{}\n", lines.join("\n"))
                .expect("a String takes everything");
        }
        if let Some(mesh) = &self.mesh {
            text.push_str(&mesh.config());
        }
        text
    }
}

// === impl Mesh ===

impl Mesh {
    fn new(address: SocketAddr, (id, region, at): (&str, &str, SocketAddr)) -> Self {
        let peers = vec![(id.to_owned(), region.to_owned(), at)];
        Self { address, peers, identity: MeshIdentity::Own }
    }

    fn pair(&self, id: &str, certs: &Certs) -> crate::certs::Pair {
        match self.identity {
            MeshIdentity::Own => certs.node(id, Validity::Valid),
            MeshIdentity::AnotherNode => certs.node("somebody-else", Validity::Valid),
            MeshIdentity::Expired => certs.node(id, Validity::Expired),
            MeshIdentity::AnotherAuthority => Certs::new().node(id, Validity::Valid),
        }
    }

    fn config(&self) -> String {
        let mut text = format!(
            "\n[mesh]\naddress = \"{}\"\ncertificate = \"mesh.pem\"\nkey = \"mesh.key\"\n\
             ca = \"mesh-ca.pem\"\n",
            self.address
        );
        for (id, region, address) in &self.peers {
            write!(
                text,
                "\n[[mesh.peers]]\nid = {id:?}\nregion = {region:?}\naddress = \"{address}\"\n"
            )
            .expect("a String takes everything");
        }
        text
    }
}
