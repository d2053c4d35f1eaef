//! The unit file, under a systemd that is process 1 of a machine of the test's own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use tempfile::TempDir;
use tests::app::{App, Ports};
use tests::edge::binary;
use tests::instance::Echo;
use tests::machine::Machine;
use tests::need::{self, workspace};
use tests::process::Outcome;
use tests::wait;

const EDGE: &str = "\
[node]\nid = \"a\"\nregion = \"ams\"\n\n\
[listen]\nmode = \"bind\"\naddresses = [\"127.0.0.1\"]\n\n\
[filter]\nmode = \"off\"\n";

/// Whole prefixes, steered and filtered by the kernel, for which the unit gives capabilities.
const STEERED: &str = "\
[node]\nid = \"a\"\nregion = \"ams\"\n\n\
[listen]\nmode = \"steer\"\nprefixes = [\"198.51.100.0/24\"]\naddresses = [\"0.0.0.0\"]\n\n\
[filter]\nmode = \"cgroup\"\n";

const PORTS: Ports = Ports { http: 80, https: 443, tcp: 9 };

/// Where clients are; a port that only a capability opens.
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);

/// Any address of the prefix.
const STEERED_HTTP: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7)), 80);

/// A booted machine whose node serves one app.
struct Booted {
    machine: Machine,
    /// Where clients reach it.
    address: SocketAddr,
    _echo: Echo,
    _folder: TempDir,
}

impl Booted {
    /// `changes` is a drop-in to the unit.
    fn new(edge: &str, changes: &str) -> Option<Self> {
        if !geteuid().is_root() {
            need::skip("a machine of its own needs root");
            return None;
        }
        need::tool("systemd-analyze")?;
        let folder = TempDir::new().unwrap();
        let [root, units, etc] = ["root", "units", "etc"].map(|name| folder.path().join(name));
        copy(&workspace().join("tests/systemd/units"), &units);
        copy(&workspace().join("config/systemd"), &units);
        if !changes.is_empty() {
            fs::write(units.join("ferrule.service.d/changes.conf"), changes).unwrap();
        }
        for folder in [&root, &etc, &etc.join("apps"), &etc.join("certificates")] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(etc.join("edge.toml"), edge).unwrap();
        let mut boot = Command::new(workspace().join("tests/systemd/boot"));
        let machine = Machine::start(boot.arg(root).arg(binary()).arg(units).arg(etc));
        let echo = machine.inside(Echo::http1);
        let address = if edge == STEERED { STEERED_HTTP } else { HTTP };
        let booted = Self { machine, address, _echo: echo, _folder: folder };
        wait::until("systemd has booted", || {
            booted.systemctl(&["is-active", "multi-user.target"]).code == 0
        });
        let route = ["ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo"];
        assert_eq!(booted.machine.run(&route).code, 0);
        let started = booted.systemctl(&["start", "ferrule"]);
        assert_eq!(started.code, 0, "{}{}", started.stderr, booted.log());
        let app = App::new("hello").instance(booted._echo.address()).file(PORTS);
        fs::write(booted.machine.path("/etc/ferrule/apps/hello.toml"), app).unwrap();
        wait::until("the node serves", || booted.ask_once());
        Some(booted)
    }

    fn ask_once(&self) -> bool {
        let url = format!("http://{}/", self.address);
        let ask = ["curl", "-sf", "-m", "5", "-o", "/dev/null", "-H", "host: hello.test", &url];
        self.machine.run(&ask).code == 0
    }

    fn systemctl(&self, words: &[&str]) -> Outcome {
        self.machine.run(&[&["systemctl"], words].concat())
    }

    /// A property of the unit.
    fn show(&self, property: &str) -> String {
        self.systemctl(&["show", "--value", "--property", property, "ferrule"])
            .stdout
            .trim()
            .to_owned()
    }

    /// Processes of the unit.
    fn processes(&self) -> usize {
        let group = self.machine.path("/sys/fs/cgroup/system.slice/ferrule.service/cgroup.procs");
        fs::read_to_string(group).map_or(0, |list| list.lines().count())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.machine.path("/var/log/ferrule.log")).unwrap_or_default()
    }

    fn crash(&self) {
        let before = self.show("NRestarts").parse::<u32>().unwrap();
        let killed = self.systemctl(&["kill", "--signal=KILL", "--kill-whom=main", "ferrule"]);
        assert_eq!(killed.code, 0, "{}", killed.stderr);
        wait::until("it is started again", || {
            self.show("NRestarts").parse::<u32>().unwrap() == before + 1
                && self.show("ActiveState") == "active"
        });
        wait::until("it serves again", || self.ask_once());
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-rT").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    if need::tool("systemd-analyze").is_none() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let unit = fs::read_to_string(workspace().join("config/systemd/ferrule.service")).unwrap();
    let check = |unit: &str| {
        let path = folder.path().join("ferrule.service");
        // Where the binary is is a matter of the machine.
        let here = unit.replace("/usr/local/bin/ferrule", &binary().display().to_string());
        fs::write(&path, here).unwrap();
        tests::process::run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path))
    };
    let fine = check(&unit);
    assert_eq!((fine.code, fine.stderr.as_str()), (0, ""));
    let typo = check(&unit.replace("NotifyAccess=", "NotifyAcces="));
    assert!(typo.stderr.contains("NotifyAcces"), "{}", typo.stderr);
}

#[test]
fn systemd_reloads_a_node_into_its_successor_and_stops_it() {
    let Some(booted) = Booted::new(EDGE, "") else { return };
    let first = booted.show("MainPID");
    assert!(booted.show("StatusText").starts_with("listen bind"), "{}", booted.show("StatusText"));

    for generation in 2..=3 {
        let main = booted.show("MainPID");
        let (reloaded, tally) = booted
            .machine
            .while_asked(HTTP, "hello.test", || booted.systemctl(&["reload", "ferrule"]));
        assert_eq!(reloaded.code, 0, "{}{}", reloaded.stderr, booted.log());
        assert!(tally.answered > 0 && tally.refused == 0 && tally.failed.is_empty(), "{tally:?}");
        assert_ne!(booted.show("MainPID"), main, "generation {generation} is the main process");
        assert_eq!(booted.show("ActiveState"), "active");
        wait::until("the predecessor has ended", || booted.processes() == 1);
        assert_eq!(booted.show("NRestarts"), "0");
    }
    assert_ne!(booted.show("MainPID"), first);

    // A configuration that is not one changes nothing.
    let main = booted.show("MainPID");
    let edge = booted.machine.path("/etc/ferrule/edge.toml");
    fs::write(&edge, "[node]\nid = 7\n").unwrap();
    assert_ne!(booted.systemctl(&["reload", "ferrule"]).code, 0);
    assert_eq!((booted.show("MainPID"), booted.show("ActiveState")), (main, "active".to_owned()));
    assert!(booted.ask_once());
    fs::write(&edge, EDGE).unwrap();

    // Its main process is none that systemd has started, and drains all the same.
    let mut slow = booted.machine.inside(|| TcpStream::connect(HTTP).unwrap());
    slow.write_all(b"GET /bytes/1000000 HTTP/1.1\r\nhost: hello.test\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(booted.systemctl(&["stop", "--no-block", "ferrule"]).code, 0);
    wait::until("it drains", || booted.log().matches(" draining ").count() == 3);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > 1_000_000, "{}", rest.len());
    wait::until("it has ended", || booted.show("ActiveState") == "inactive");
    assert_eq!(booted.show("Result"), "success");
    assert_eq!(booted.show("NFileDescriptorStore"), "0", "nothing listens any more");
    assert!(!booted.ask_once());
    assert!(booted.log().contains("stopped tasks=0 connections=0 permits=0"), "{}", booted.log());
}

/// Who is being served when a process is killed is cut off; whoever connects afterwards is not refused.
#[test]
fn a_node_that_is_killed_goes_on_with_the_queues_it_had() {
    let Some(booted) = Booted::new(EDGE, "") else { return };
    // Clients in cleartext and over TLS, the pages, the socket.
    wait::until("all are stored", || booted.show("NFileDescriptorStore") == "4");
    for crash in ["the first process", "its successor"] {
        let ((), tally) = booted.machine.while_asked(HTTP, "hello.test", || booted.crash());
        assert!(tally.answered > 0 && tally.refused == 0, "{crash}: {tally:?}");
        assert!(tally.failed.len() <= 1, "{crash}: {tally:?}");
        assert!(
            booted.log().contains("a socket of an earlier process place=clients at 127.0.0.1:80")
        );
        let asked = booted.machine.run(&["ferrule", "status", "--ready"]);
        assert_eq!(asked.code, 0, "the admin socket is the old one: {}", asked.stderr);
        let reloaded = booted.systemctl(&["reload", "ferrule"]);
        assert_eq!(reloaded.code, 0, "{}", reloaded.stderr);
        wait::until("the predecessor has ended", || booted.processes() == 1);
    }
    // A port that nobody wants any more is not kept either.
    fs::remove_file(booted.machine.path("/etc/ferrule/apps/hello.toml")).unwrap();
    wait::until("its sockets are out of the store", || booted.show("NFileDescriptorStore") == "2");
}

/// Its cgroup is a new one, its sockets are of the old one.
#[test]
fn a_node_that_is_killed_goes_on_with_what_the_kernel_steers_to_it() {
    let Some(booted) = Booted::new(STEERED, "") else { return };
    let modes = || booted.machine.run(&["ferrule", "status"]).stdout;
    assert!(modes().contains("listen steer, filter cgroup"), "{}{}", modes(), booted.log());
    let ((), tally) = booted.machine.while_asked(STEERED_HTTP, "hello.test", || booted.crash());
    assert!(tally.answered > 0 && tally.refused == 0 && tally.failed.len() <= 1, "{tally:?}");
    assert!(booted.log().contains("a socket of an earlier process place=steered V4 number 0"));
    assert!(modes().contains("listen steer, filter cgroup"), "{}", booted.log());
    let (reloaded, tally) = booted
        .machine
        .while_asked(STEERED_HTTP, "hello.test", || booted.systemctl(&["reload", "ferrule"]));
    assert_eq!(reloaded.code, 0, "{}{}", reloaded.stderr, booted.log());
    assert!(tally.answered > 0 && tally.refused == 0 && tally.failed.is_empty(), "{tally:?}");
}

/// systemd is told of the end of a process by its parent, which here is the one that drains.
#[test]
fn a_successor_that_is_killed_while_its_predecessor_drains_is_started_again() {
    // Its drain could take 30 s, for which nobody would serve.
    let Some(booted) = Booted::new(EDGE, "") else { return };
    let mut slow = booted.machine.inside(|| TcpStream::connect(HTTP).unwrap());
    slow.write_all(b"GET /drip HTTP/1.1\r\nhost: hello.test\r\n\r\n").unwrap();
    slow.read_exact(&mut [0; 12]).unwrap();
    assert_eq!(booted.systemctl(&["reload", "ferrule"]).code, 0);
    assert_eq!(booted.processes(), 2, "the predecessor drains");
    let began = Instant::now();
    booted.crash();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(booted.log().contains("it hurries"), "{}", booted.log());
}

/// The control of the tests above.
#[test]
fn without_the_store_a_node_that_is_killed_refuses_connections() {
    let Some(booted) = Booted::new(EDGE, "[Service]\nFileDescriptorStoreMax=0\n") else { return };
    assert_eq!(booted.show("NFileDescriptorStore"), "0");
    let ((), tally) = booted.machine.while_asked(HTTP, "hello.test", || booted.crash());
    assert!(tally.refused > 0, "{tally:?}");
}
