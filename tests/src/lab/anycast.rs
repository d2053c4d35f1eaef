//! A small internet: three regions in a line, each with a router, a node and a client.
//!
//! ```text
//!   client ── router ams ──── 5 ms ──── router fra ──── 40 ms ──── router sin ── client
//!                 │                         │                          │
//!             node ams                  node fra                   node sin
//!      each with ferrule, ferrule announce and BIRD: 198.51.100.0/24, 2001:db8:1::/48
//! ```
//!
//! Every box is a network namespace. Each router is an autonomous system of its own, as is each
//! node, and runs BIRD, which writes what it learns into the kernel. The delays are a process's
//! (`delay.py`). The nodes' BIRDs run `config/bird/bird.conf`, with its addresses exchanged.
//! Everything ends with the lab, however the test ends, even if it is killed: namespaces with the
//! pipes of their keepers, processes with the thread that started them.

use std::cell::{RefCell, RefMut};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::{ClientConnection, StreamOwned};
use tempfile::TempDir;

use crate::announcer::Announcer;
use crate::certs::{Certs, Validity};
use crate::client::Tls;
use crate::edge::binary;
use crate::instance::Scripted;
use crate::need;
use crate::process::{Outcome, Process, run};
use crate::wait;

use super::{Bird, Namespace, PREFIXES, ip, ip_lines};

/// The regions, from west to east.
pub const REGIONS: [&str; 3] = ["ams", "fra", "sin"];

/// One way from a region to the next, in milliseconds.
pub const DELAYS_MS: [u32; 2] = [5, 40];

/// The name of the app that every node serves.
pub const HOST: &str = "lab.test";

/// Where its clients connect, in either family.
pub const ADDRESSES: [&str; 2] = ["198.51.100.1:443", "[2001:db8:1::1]:443"];

/// How patient the announcers are.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Between two looks, in milliseconds.
    pub interval_ms: u32,
    /// Before a node is announced, in milliseconds.
    pub rise_ms: u32,
    /// Looks that fail before it is withdrawn.
    pub fall: u32,
    /// Between the two steps of a drain, in milliseconds.
    pub settle_ms: u32,
}

/// The running lab.
pub struct Anycast {
    // Dropped in this order: processes before what they run in.
    sites: Vec<Site>,
    _delays: Process,
    _wan: Namespace,
    certs: Certs,
}

/// One region.
pub struct Site {
    region: &'static str,
    announcer: RefCell<Announcer>,
    node: RefCell<Process>,
    node_words: Vec<String>,
    node_bird: RefCell<Bird>,
    router_bird: Bird,
    instance: Option<Scripted>,
    folder: TempDir,
    _pins: TempDir,
    node_space: Namespace,
    router_space: Namespace,
    client_space: Namespace,
}

/// Whoever connects from a region.
#[derive(Clone)]
pub struct Client<'a> {
    space: &'a Namespace,
    tls: Tls,
}

/// The first autonomous systems of routers and of nodes.
const ROUTER_AS: u32 = 64_500;
const NODE_AS: u32 = 64_600;

/// Where the instance of a node listens, in its namespace.
const INSTANCE: &str = "127.0.0.1:8080";

/// What makes a router of a namespace, and spares it the wait for duplicate addresses.
const SYSCTLS: [(&str, &str); 3] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

// === impl Anycast ===

impl Anycast {
    /// A lab in which every client reaches its own region's node, or `None` after noting that this
    /// machine does not let the test have one.
    ///
    /// # Panics
    /// With `CI=true` when it cannot be had, and when it can but does not come up.
    pub fn start(patience: Patience) -> Option<Self> {
        for name in ["ip", "nsenter", "unshare", "setpriv", "python3", "bird"] {
            need::tool(name)?;
        }
        let spaces = || -> io::Result<_> {
            let mut sites = Vec::new();
            for _ in REGIONS {
                let pins = TempDir::with_prefix("ferrule-bpf-")?;
                let node = Namespace::with_bpf(pins.path())?;
                sites.push((pins, node, Namespace::new()?, Namespace::new()?));
            }
            Ok((Namespace::new()?, sites))
        };
        let (wan, spaces) = match spaces() {
            Ok(spaces) => spaces,
            Err(error) => {
                need::skip(&format!("no network namespaces with a BPF file system: {error}"));
                return None;
            }
        };
        let certs = Certs::new();
        for (_, node, router, client) in &spaces {
            for space in [node, router, client] {
                space.run(prepare);
            }
        }
        wan.run(|| ip_lines("link set lo up"));
        for (n, (_, node, router, client)) in spaces.iter().enumerate() {
            connect_site(n, node, router, client);
        }
        for (link, _) in DELAYS_MS.iter().enumerate() {
            connect_routers(link, &spaces[link].2, &spaces[link + 1].2, &wan);
        }
        let delays = start_delays(&wan);
        let start = |(n, (pins, node, router, client))| {
            Site::start(n, patience, &certs, pins, [node, router, client])
        };
        let sites: Vec<Site> = spaces.into_iter().enumerate().map(start).collect();
        let lab = Self { sites, _delays: delays, _wan: wan, certs };
        for site in &lab.sites {
            site.announcer().comes_to("announced");
        }
        for site in &lab.sites {
            lab.reaches(site, site.region);
        }
        Some(lab)
    }

    /// The regions, from west to east.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The certificate of who signed the node's.
    pub fn ca(&self) -> PathBuf {
        self.certs.ca()
    }

    /// The client in the region of `site`.
    pub fn client<'a>(&self, site: &'a Site) -> Client<'a> {
        Client { space: &site.client_space, tls: Tls::new(self.certs.roots(), HOST) }
    }

    /// The node that a new connection of this region's client reaches, in either family; none where
    /// there is no answer within some seconds.
    pub fn reached(&self, site: &Site) -> [Option<String>; 2] {
        let client = self.client(site);
        ADDRESSES.map(|address| client.reached(address.parse().expect("an address")))
    }

    /// Waits until both families of this region's client reach `region`.
    #[track_caller]
    pub fn reaches(&self, site: &Site, region: &str) {
        let what = format!("the client in {} reaches {region}", site.region);
        wait::until(&what, || {
            self.reached(site).iter().all(|reached| reached.as_deref() == Some(region))
        });
    }
}

// === impl Client ===

impl Client<'_> {
    /// The node that a new connection to `address` reaches.
    pub fn reached(&self, address: SocketAddr) -> Option<String> {
        self.space.run(|| get(&self.tls, address)).ok()
    }

    /// The same again and again until told to stop, with the time at which each began.
    pub fn keep_asking(
        &self,
        address: SocketAddr,
        stop: &AtomicBool,
    ) -> Vec<(Instant, Option<String>)> {
        self.space.run(|| {
            let mut reached = Vec::new();
            while !stop.load(Relaxed) {
                let began = Instant::now();
                reached.push((began, get(&self.tls, address).ok()));
                std::thread::sleep(BETWEEN);
            }
            reached
        })
    }
}

// === impl Site ===

impl Site {
    fn start(
        n: usize,
        patience: Patience,
        certs: &Certs,
        pins: TempDir,
        spaces: [Namespace; 3],
    ) -> Self {
        let [node_space, router_space, client_space] = spaces;
        let region = REGIONS[n];
        let folder = TempDir::with_prefix("ferrule-lab-").expect("a temporary folder");
        let router_bird =
            Bird::start(&format!("router {region}"), &inside(&router_space), &router_conf(n));
        let include = folder.path().join("announced.conf");
        fs::write(&include, "define FERRULE_WITHDRAWN = 1;\ndefine FERRULE_DRAIN = false;\n")
            .expect("the folder is ours");
        let node_bird = Bird::start(
            &format!("BIRD of {region}"),
            &inside(&node_space),
            &node_conf(n, &include.display().to_string()),
        );
        let bird = node_bird.socket().display().to_string();
        write_node(n, patience, certs, folder.path(), pins.path(), &bird);
        let instance = node_space.run(|| {
            Scripted::start_at(INSTANCE.parse().expect("an address"), move |connection| {
                loop {
                    connection.request()?;
                    connection.ok(region)?;
                }
            })
        });
        let config = folder.path().join("edge.toml");
        let mut node_words = inside(&node_space);
        node_words.extend([binary().display().to_string(), "run".to_owned()]);
        node_words.extend(["--config".to_owned(), config.display().to_string()]);
        let name = format!("node {region}");
        let node = Process::start(&name, Command::new(&node_words[0]).args(&node_words[1..]));
        let announcer =
            Announcer::start(&format!("announcer {region}"), &inside(&node_space), &config);
        Self {
            region,
            announcer: announcer.into(),
            node: node.into(),
            node_words,
            node_bird: node_bird.into(),
            router_bird,
            instance: Some(instance),
            folder,
            _pins: pins,
            node_space,
            router_space,
            client_space,
        }
    }

    /// Its name, which is also its node's.
    pub fn region(&self) -> &'static str {
        self.region
    }

    /// The announcer beside the node.
    pub fn announcer(&self) -> RefMut<'_, Announcer> {
        self.announcer.borrow_mut()
    }

    /// The BIRD beside the node.
    pub fn node_bird(&self) -> RefMut<'_, Bird> {
        self.node_bird.borrow_mut()
    }

    /// The BIRD of the router.
    pub fn router_bird(&self) -> &Bird {
        &self.router_bird
    }

    /// Whether the router sends the first prefix to this region's node.
    #[track_caller]
    pub fn router_prefers_own_node(&self) -> bool {
        self.router_bird.best(PREFIXES[0]).is_some_and(|route| route.contains("[node4 "))
    }

    /// Updates and withdrawals that the router heard from its node, in both families.
    #[track_caller]
    pub fn heard(&self) -> [[u64; 2]; 2] {
        ["node4", "node6"].map(|session| self.router_bird.heard_from(session))
    }

    /// Runs `ferrule <arguments> --config <the node's>`.
    pub fn command(&self, arguments: &[&str]) -> Outcome {
        let words = inside(&self.node_space);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(binary()).args(arguments);
        run(command.arg("--config").arg(self.folder.path().join("edge.toml")))
    }

    /// Runs `ferrule upgrade` for the node, and follows it to its next process.
    ///
    /// # Panics
    /// When the upgrade fails.
    #[track_caller]
    pub fn upgrade_node(&self) {
        let outcome = self.command(&["upgrade"]);
        assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
        let mut node = self.node.borrow_mut();
        let before = u64::from(node.pid());
        let mut pid = before;
        wait::until("the announcer sees the next process", || {
            pid = self.announcer().status()["node"]["pid"].as_u64().expect("a number");
            pid != before
        });
        node.follow(u32::try_from(pid).expect("the id of a process"));
    }

    /// Whoever tries the lab may have upgraded the node: the process that serves is ended with the
    /// lab, too. It is known by its command line.
    fn follow_node(&mut self) {
        let Some(pid) = self.announcer.get_mut().node_pid() else { return };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let folder = self.folder.path().display().to_string();
        if String::from_utf8_lossy(&command).contains(&folder) {
            self.node.get_mut().follow(pid);
        }
    }

    /// Signals the node's process.
    pub fn signal_node(&self, signal: Signal) {
        self.node.borrow_mut().signal(signal);
    }

    /// Kills the node's process.
    pub fn kill_node(&self) {
        let mut node = self.node.borrow_mut();
        node.signal(Signal::KILL);
        node.wait(wait::PATIENCE);
    }

    /// Starts the node again; whoever wants to know asks whether it is ready.
    pub fn start_node_again(&self) {
        let mut command = Command::new(&self.node_words[0]);
        let name = format!("node {}", self.region);
        *self.node.borrow_mut() = Process::start(&name, command.args(&self.node_words[1..]));
    }

    /// The node's process.
    pub fn node_pid(&self) -> u32 {
        self.node.borrow().pid()
    }

    /// What the node logged lately.
    pub fn node_log(&self) -> String {
        self.node.borrow().output()
    }

    /// The words before a command that is to run where clients of this region are.
    pub fn at_client(&self) -> String {
        format!("nsenter --net -t {}", self.client_space.pid())
    }

    /// The same where the router is.
    pub fn at_router(&self) -> String {
        format!("nsenter --net -t {}", self.router_space.pid())
    }

    /// The node's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.follow_node();
        // It wakes its listener by a connection, which has to come from inside.
        let instance = self.instance.take();
        self.node_space.run(|| drop(instance));
    }
}

/// Between two connections of a client that keeps asking.
const BETWEEN: Duration = Duration::from_millis(5);

/// For each step of a client's request: one SYN that is lost is sent again, a second is not.
const CLIENT: Duration = Duration::from_secs(2);

/// One request on a connection of its own: the body, which is the region's name.
fn get(tls: &Tls, address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, CLIENT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CLIENT))?;
    let session = ClientConnection::new(Arc::new(tls.config()), tls.name());
    let mut stream = StreamOwned::new(session.map_err(io::Error::other)?, stream);
    write!(stream, "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other("another answer")),
    }
}

// === what it is made of ===

/// The words before a command that is to run inside, and to end with the thread that starts it.
fn inside(space: &Namespace) -> Vec<String> {
    let target = space.pid().to_string();
    let words = ["nsenter", "--target", &target, "--net", "--mount", "--"];
    let with_us = ["setpriv", "--pdeathsig", "KILL", "--"];
    words.into_iter().chain(with_us).map(str::to_owned).collect()
}

fn prepare() {
    for (name, value) in SYSCTLS {
        fs::write(format!("/proc/sys/{name}"), value).expect("the namespace is ours");
    }
    ip_lines("link set lo up");
}

/// A cable between two namespaces, with an address of either family at each end.
fn cable(
    (a, a_name, a_addresses): (&Namespace, &str, [String; 2]),
    (b, b_name, b_addresses): (&Namespace, &str, [String; 2]),
) {
    let (at, bt) = (a.pid().to_string(), b.pid().to_string());
    let line = format!("link add name {a_name} netns {at} type veth peer name {b_name} netns {bt}");
    ip(&line.split(' ').collect::<Vec<_>>());
    for (space, name, [v4, v6]) in [(a, a_name, a_addresses), (b, b_name, b_addresses)] {
        space.run(|| {
            ip_lines(&format!(
                "link set {name} up\naddr add {v4} dev {name}\naddr add {v6} dev {name} nodad"
            ));
        });
    }
}

fn connect_site(n: usize, node: &Namespace, router: &Namespace, client: &Namespace) {
    let i = n + 1;
    let ends = |net: usize| {
        [1, 2].map(|end| {
            [format!("10.{i}.{net}.{end}/30"), format!("2001:db8:ffff:{i}{net}::{end}/64")]
        })
    };
    for (net, space, name) in [(1, node, "n0"), (2, client, "c0")] {
        let [there, here] = ends(net);
        let at_router = if net == 1 { "r0" } else { "r1" };
        cable((router, at_router, there), (space, name, here));
        space.run(|| {
            ip_lines(&format!(
                "route add default via 10.{i}.{net}.1\n\
                 -6 route add default via 2001:db8:ffff:{i}{net}::1"
            ));
        });
    }
    let [v4, v6] = PREFIXES;
    node.run(|| {
        ip_lines(&format!("route add local {v4} dev lo\n-6 route add local {v6} dev lo"));
    });
}

/// The way from one router to the next leads through the namespace of the delays.
fn connect_routers(link: usize, west: &Namespace, east: &Namespace, wan: &Namespace) {
    let wan_pid = wan.pid().to_string();
    for (space, name, end) in [(west, "w1", "a"), (east, "w0", "b")] {
        let (pid, last) = (space.pid().to_string(), if end == "a" { 1 } else { 2 });
        let there = format!("l{link}{end}");
        let line =
            format!("link add name {name} netns {pid} type veth peer name {there} netns {wan_pid}");
        ip(&line.split(' ').collect::<Vec<_>>());
        wan.run(|| ip_lines(&format!("link set {there} up")));
        space.run(|| {
            ip_lines(&format!(
                "link set {name} up\naddr add 10.100.{link}.{last}/30 dev {name}\n\
                 addr add 2001:db8:ffff:f{link}::{last}/64 dev {name} nodad"
            ));
        });
    }
}

fn start_delays(wan: &Namespace) -> Process {
    let script = need::workspace().join("tests/src/lab/delay.py");
    let mut words = inside(wan);
    words.extend(["python3".to_owned(), script.display().to_string()]);
    for (link, milliseconds) in DELAYS_MS.iter().enumerate() {
        words.extend([format!("l{link}a"), format!("l{link}b"), milliseconds.to_string()]);
    }
    let delays = Process::start("the delays", Command::new(&words[0]).args(&words[1..]));
    wait::until("the delays carry", || delays.output().contains("carrying"));
    delays
}

/// The example in `config/bird`, with the addresses of this region's node.
fn node_conf(n: usize, include: &str) -> String {
    let i = n + 1;
    let example = need::workspace().join("config/bird/bird.conf");
    let mut text = fs::read_to_string(example).expect("it is part of the project");
    let mut exchange = |line: &str, by: String| {
        let old = text.lines().find(|found| found.starts_with(line));
        let old = old.unwrap_or_else(|| panic!("no line begins with {line:?}")).to_owned();
        text = text.replacen(&old, &by, 1);
    };
    exchange("log syslog", "log stderr all;".to_owned());
    // 3 s instead of 900 ms: a machine that runs a dozen tests is not dead when it is late.
    exchange("    multiplier", "    multiplier 10;".to_owned());
    exchange("router id", format!("router id 10.{i}.1.2;"));
    for (name, value) in [
        ("NODE_AS", (NODE_AS + i as u32).to_string()),
        ("NODE4", format!("10.{i}.1.2")),
        ("NODE6", format!("2001:db8:ffff:{i}1::2")),
        ("ROUTER_AS", (ROUTER_AS + i as u32).to_string()),
        ("ROUTER4", format!("10.{i}.1.1")),
        ("ROUTER6", format!("2001:db8:ffff:{i}1::1")),
    ] {
        exchange(&format!("define {name} ="), format!("define {name} = {value};"));
    }
    exchange("include", format!("include \"{include}\";"));
    text
}

fn router_conf(n: usize) -> String {
    let i = n + 1;
    let own = ROUTER_AS + i as u32;
    let mut text = format!(
        "log stderr all;\nrouter id 10.{i}.1.1;\nprotocol device {{ }}\n\
         protocol direct {{ ipv4; ipv6; interface \"r*\", \"w*\"; }}\n\
         protocol bfd {{ interface \"r0\" {{\n\
           min rx interval 300 ms; min tx interval 300 ms; multiplier 10; }}; }}\n\
         # RFC 8326: what is about to go is taken only if there is nothing else.\n\
         filter learnt {{ if (65535, 0) ~ bgp_community then bgp_local_pref = 0; accept; }}\n\
         template bgp peer {{ local as {own}; hold time 9; connect delay time 1;\n\
           connect retry time 1; error wait time 1, 2; graceful restart off; }}\n"
    );
    for (family, to_kernel) in [("ipv4", "kernel4"), ("ipv6", "kernel6")] {
        text += &format!(
            "protocol kernel {to_kernel} {{ {family} {{ import none;\n\
               export where source = RTS_BGP; }}; }}\n"
        );
    }
    let mut neighbour = |name: &str, at: String, family: &str, number: u32, is_node: bool| {
        let (export, bfd) =
            if is_node { ("none", "bfd;") } else { ("where source ~ [RTS_BGP, RTS_DEVICE]", "") };
        text += &format!(
            "protocol bgp {name} from peer {{ neighbor {at} as {number}; {bfd}\n\
               {family} {{ import filter learnt; export {export}; }}; }}\n"
        );
    };
    let node = NODE_AS + i as u32;
    neighbour("node4", format!("10.{i}.1.2"), "ipv4", node, true);
    neighbour("node6", format!("2001:db8:ffff:{i}1::2"), "ipv6", node, true);
    if n > 0 {
        let link = n - 1;
        neighbour("west4", format!("10.100.{link}.1"), "ipv4", own - 1, false);
        neighbour("west6", format!("2001:db8:ffff:f{link}::1"), "ipv6", own - 1, false);
    }
    if n + 1 < REGIONS.len() {
        neighbour("east4", format!("10.100.{n}.2"), "ipv4", own + 1, false);
        neighbour("east6", format!("2001:db8:ffff:f{n}::2"), "ipv6", own + 1, false);
    }
    text
}

/// Writes the folder of this region's node.
fn write_node(n: usize, patience: Patience, certs: &Certs, folder: &Path, pins: &Path, bird: &str) {
    let Patience { interval_ms, rise_ms, fall, settle_ms } = patience;
    let region = REGIONS[n];
    let mesh = |n: usize| format!("10.{}.1.2:7443", n + 1);
    let own = mesh(n);
    let pins = pins.join("ferrule").display().to_string();
    let ca = certs.ca().display().to_string();
    let mut text = format!(
        "[node]\nid = {region:?}\nregion = {region:?}\nworkers = 2\n\
         [storage]\ndirectory = \"storage\"\n\
         [admin]\naddress = \"127.0.0.1:9900\"\nsocket = \"admin.sock\"\n\
         [inventory]\ndirectory = \"apps\"\n[certificates]\ndirectory = \"certificates\"\n\
         [listen]\nmode = \"auto\"\nprefixes = {PREFIXES:?}\n\
         addresses = [\"198.51.100.1\", \"2001:db8:1::1\"]\n\
         [filter]\nmode = \"auto\"\ninterfaces = [\"n0\"]\npins = {pins:?}\n\
         [timeouts]\ndrain = \"5s\"\n\
         [announce]\nbird = {bird:?}\nbird_include = \"announced.conf\"\n\
         socket = \"announce.sock\"\ninterval = \"{interval_ms}ms\"\ntimeout = \"2s\"\n\
         rise = \"{rise_ms}ms\"\nfall = {fall}\nsettle = \"{settle_ms}ms\"\ndrain_max = \"30s\"\n\
         [announce.probe]\naddresses = {ADDRESSES:?}\nserver_name = {HOST:?}\nca = {ca:?}\n\
         [mesh]\naddress = {own:?}\ncertificate = \"mesh.pem\"\nkey = \"mesh.key\"\n\
         ca = \"mesh-ca.pem\"\n"
    );
    let mut app = format!(
        "app = \"lab\"\nhostnames = [{HOST:?}]\n[[services]]\nprotocol = \"tcp\"\n\
         internal_port = 8080\n[[services.ports]]\nport = 80\nhandlers = [\"http\"]\n\
         [[services.ports]]\nport = 443\nhandlers = [\"tls\", \"http\"]\n"
    );
    for (peer, id) in REGIONS.iter().enumerate() {
        if peer != n {
            let address = mesh(peer);
            text +=
                &format!("[[mesh.peers]]\nid = {id:?}\nregion = {id:?}\naddress = {address:?}\n");
        }
        app +=
            &format!("[[instances]]\nid = \"lab-{id}\"\nnode = {id:?}\naddress = \"127.0.0.1\"\n");
    }
    for name in ["apps", "certificates"] {
        fs::create_dir(folder.join(name)).expect("the folder is ours");
    }
    fs::write(folder.join("edge.toml"), text).expect("the folder is ours");
    fs::write(folder.join("apps/lab.toml"), app).expect("the folder is ours");
    certs.leaf(&[HOST]).write(&folder.join("certificates/lab"));
    certs.node(region, Validity::Valid).write(&folder.join("mesh"));
    fs::copy(certs.ca(), folder.join("mesh-ca.pem")).expect("the folder is ours");
}
