//! Places of attachment: which one is taken, and what is said of those that are not.

use std::error::Error as _;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ebpf_filter::{ActiveMode, Config, Family, Filter, FilterError, Mode, Steering, Verdict, pins};
use rustix::process::Uid;
use rustix::thread::{
    CapabilitySet, capabilities, set_capabilities, set_keep_capabilities, set_thread_uid,
};

use crate::kernel::{Own, alone, run};
use crate::table::dedicated;

#[test]
fn auto_takes_native_xdp_where_the_driver_has_it() {
    alone(|own| {
        run("ip link add left type veth peer name right");
        let filter =
            Filter::open(&Config { interfaces: names(&["left"]), ..own.config() }).unwrap();
        assert_eq!(filter.mode(), ActiveMode::Xdp);
        assert_eq!(filter.interfaces(), [(String::from("left"), ActiveMode::Xdp)]);
        assert!(filter.reasons().is_empty(), "{:?}", filter.reasons());
    });
}

#[test]
fn auto_takes_the_next_place_and_says_why() {
    alone(|own| {
        run("ip link add left.7 type veth peer name right");
        let config = Config { interfaces: names(&["left.7", "lo"]), ..own.config() };
        let filter = Filter::open(&config).unwrap();
        assert_eq!(filter.mode(), ActiveMode::XdpGeneric, "the later of the two");
        let modes: Vec<_> = filter.interfaces().iter().map(|(_, mode)| mode.as_str()).collect();
        assert_eq!(modes, ["xdp", "xdp-generic"]);
        let [reason] = filter.reasons() else { panic!("{:?}", filter.reasons()) };
        assert!(
            reason.starts_with("xdp on lo: the interface's driver has no native XDP"),
            "{reason}"
        );
    });
}

#[test]
fn auto_goes_to_the_cgroup_when_an_interface_is_no_place() {
    alone(|own| {
        let config = Config { interfaces: names(&["gone0"]), ..own.config() };
        let filter = Filter::open(&config).unwrap();
        assert_eq!(filter.mode(), ActiveMode::Cgroup);
        assert_eq!(filter.reasons(), ["interface gone0: there is no such interface"]);
    });
}

#[test]
fn auto_ends_in_user_space_and_leaves_nothing_attached() {
    alone(|own| {
        let config = Config {
            interfaces: names(&["lo", "gone0"]),
            cgroup: Some(own.pins().join("no-cgroup")),
            ..own.config()
        };
        let filter = Filter::open(&config).unwrap();
        assert_eq!(filter.mode(), ActiveMode::Userspace);
        assert_eq!(filter.reasons().len(), 2, "{:?}", filter.reasons());
        let links = pins::show(&own.pins()).unwrap();
        assert!(links.iter().all(|pinned| !pinned.name.starts_with("link-")), "{links:?}");
    });
}

#[test]
fn a_forced_place_that_is_impossible_is_an_error_that_names_what_is_missing() {
    alone(|own| {
        let error =
            |config: Config| Filter::open(&config).err().expect("it is impossible").to_string();
        let forced = |mode| Config { mode, ..own.config() };
        assert_eq!(error(forced(Mode::Xdp)), "xdp on lo: the interface's driver has no native XDP");
        let missing = Config { interfaces: names(&["gone0"]), ..forced(Mode::Tcx) };
        assert_eq!(error(missing), "interface gone0: there is no such interface");
        let none = Config { interfaces: vec![], ..forced(Mode::XdpGeneric) };
        assert_eq!(error(none), "filter.mode \"xdp-generic\" needs filter.interfaces");
        let file = Config { cgroup: Some("/proc/self".into()), ..forced(Mode::Cgroup) };
        assert!(error(file).starts_with("cgroup on /proc/self: not a cgroup v2"));
    });
}

#[test]
fn a_device_that_another_program_has_is_named() {
    alone(|own| {
        let mine = Config { mode: Mode::XdpGeneric, ..own.config() };
        Filter::open(&mine).unwrap();
        let other = Config { pins: own.pins().join("../other"), ..mine };
        let error = Filter::open(&other).err().expect("a device takes one program").to_string();
        assert_eq!(error, "xdp-generic on lo: another XDP program is attached to the interface");
        // Tcx takes several.
        let auto = Config { mode: Mode::Auto, ..other };
        assert_eq!(Filter::open(&auto).unwrap().mode(), ActiveMode::Tcx);
    });
}

#[test]
fn a_missing_capability_is_named_and_auto_does_without() {
    alone(|own| {
        let mut sets = capabilities(None).unwrap();
        sets.effective -= CapabilitySet::BPF | CapabilitySet::PERFMON;
        // Root's other capabilities would stand in for these.
        sets.effective -= CapabilitySet::SYS_ADMIN;
        set_capabilities(None, sets).unwrap();
        let forced = Config { mode: Mode::Tcx, ..own.config() };
        let error = Filter::open(&forced).err().expect("it may not").to_string();
        assert_eq!(error, "the filter needs CAP_BPF, CAP_PERFMON");
        let filter = Filter::open(&own.config()).unwrap();
        assert_eq!(filter.mode().as_str(), "userspace");
        assert_eq!(filter.reasons(), ["the filter needs CAP_BPF, CAP_PERFMON"]);
        sets.effective = sets.permitted;
        set_capabilities(None, sets).unwrap();
    });
}

#[test]
fn three_capabilities_of_a_user_who_is_not_root_are_enough() {
    alone(|own| {
        own.open_to_others();
        set_keep_capabilities(true).unwrap();
        set_thread_uid(Uid::from_raw(65_534)).unwrap();
        let mut sets = capabilities(None).unwrap();
        sets.effective = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON;
        set_capabilities(None, sets).unwrap();
        for mode in [Mode::XdpGeneric, Mode::Tcx, Mode::Cgroup] {
            let mut filter = Filter::open(&Config { mode, ..own.config() }).unwrap();
            filter.replace_all(dedicated().into_iter()).unwrap();
        }
        let mut steering = Steering::open(&own.config()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        steering.set_socket(Family::V4, &listener).unwrap();
        pins::show(&own.pins()).unwrap();
        pins::detach(&own.pins()).unwrap();
        sets.effective = sets.permitted;
        set_capabilities(None, sets).unwrap();
    });
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none() {
    alone(|own| {
        let plain = tempfile::tempdir().unwrap();
        let config = Config { pins: plain.path().join("pins"), ..own.config() };
        assert_eq!(Filter::open(&config).unwrap().mode(), ActiveMode::XdpGeneric);
        assert!(config.pins.join("EXACT_V4").exists());
        pins::detach(&config.pins).unwrap();
        rustix::mount::unmount(&config.pins, rustix::mount::UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn a_directory_that_cannot_be_a_bpf_file_system_is_an_error_with_its_path() {
    alone(|own| {
        let config = Config { pins: "/proc/self/pins".into(), mode: Mode::Tcx, ..own.config() };
        let error = Filter::open(&config).err().expect("/proc takes no directories");
        assert!(matches!(error, FilterError::Pins { .. }), "{error}");
        assert!(error.source().is_some());
    });
}

#[test]
fn each_place_drops_connections_that_nobody_asked_for() {
    for mode in [Mode::XdpGeneric, Mode::Tcx, Mode::Cgroup] {
        alone(move |own| connections_in(own, mode));
    }
}

fn connections_in(own: &Own, mode: Mode) {
    let config = Config { mode, ..own.config() };
    let mut filter = Filter::open(&config).unwrap();
    filter.replace_all(dedicated().into_iter()).unwrap();
    let _listeners = Listeners::start(own);
    for host in ["198.51.100.7", "2001:db8::7"] {
        let host: IpAddr = host.parse().unwrap();
        let (allowed, denied) = (SocketAddr::new(host, 443), SocketAddr::new(host, 444));
        connect(allowed, LONG).unwrap_or_else(|error| panic!("{mode:?} {allowed}: {error}"));
        let error = connect(denied, SHORT).expect_err("nobody asked for it").kind();
        assert_eq!(error, ErrorKind::TimedOut, "{mode:?} {denied}");
    }
    assert!(filter.counters().of(Verdict::DropPort) >= 2, "{mode:?}");
    // The control: without the filter the same ports answer.
    drop(Filter::open(&Config { mode: Mode::Off, ..config }).unwrap());
    for host in ["198.51.100.7:444", "[2001:db8::7]:444"] {
        connect(host.parse().unwrap(), LONG)
            .unwrap_or_else(|error| panic!("{mode:?} {host}: {error}"));
    }
}

/// A process in the test's cgroup that listens on ports 443 and 444 of every address: a socket
/// belongs to the cgroup of the process that made it, and a thread cannot enter one alone.
struct Listeners(Child);

// === impl Listeners ===

impl Listeners {
    fn start(own: &Own) -> Self {
        let listen = "import socket, sys
open(sys.argv[1], 'w').write('0')
sockets = [socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
           for port in (443, 444)]
print('ready', flush=True)
sys.stdin.read()";
        let processes = own.cgroup().join("cgroup.procs");
        let mut child = Command::new("python3");
        child.arg("-c").arg(listen).arg(processes);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("python3 is installed");
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).expect("it listens");
        Self(child)
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("it is our child");
    }
}

/// Waits long for an answer that must come, and not for one that must not.
const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);

fn connect(to: SocketAddr, wait: Duration) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, wait)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
