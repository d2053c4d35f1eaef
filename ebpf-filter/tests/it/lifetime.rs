//! What outlives the process, and how the next one takes its place.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ebpf_filter::{Config, Filter, FilterError, Mode, Steering, Verdict, pins};

use crate::kernel::{Own, alone, run};
use crate::packet::syn;
use crate::run::Program;
use crate::table::dedicated;

const PASS: u32 = 2;
const DROP: u32 = 1;

fn generic(own: &Own) -> Config {
    Config { mode: Mode::XdpGeneric, ..own.config() }
}

fn detail(own: &Own, name: &str) -> String {
    let pinned = pins::show(&own.pins()).unwrap();
    pinned.into_iter().find(|pinned| pinned.name == name).expect("it is pinned").detail
}

fn links(own: &Own) -> Vec<String> {
    let names = pins::show(&own.pins()).unwrap().into_iter().map(|pinned| pinned.name);
    names.filter(|name| name.starts_with("link-")).collect()
}

#[test]
fn a_filter_outlives_its_process_and_the_next_one_finds_its_maps() {
    alone(|own| {
        let mut filter = Filter::open(&generic(own)).unwrap();
        filter.replace_all(dedicated().into_iter()).unwrap();
        let full = filter.occupancy();
        let first = detail(own, "link-generic-lo");
        drop(filter);

        let frames = [syn("198.51.100.7", 443).build(), syn("198.51.100.7", 22).build()];
        let program = Program::pinned(&own.program("admit_xdp"));
        assert_eq!(frames.each_ref().map(|frame| program.run(frame, 1).unwrap().0), [PASS, DROP]);

        let filter = Filter::open(&generic(own)).unwrap();
        assert_eq!(filter.occupancy(), full, "nothing was loaded again");
        let second = detail(own, "link-generic-lo");
        assert_ne!(first, second, "the same link has another program");
        let replaced = Program::pinned(&own.program("admit_xdp"));
        assert_eq!(frames.each_ref().map(|frame| replaced.run(frame, 1).unwrap().0), [PASS, DROP]);
        assert_eq!(filter.counters().of(Verdict::DropPort), 2, "counted on");
    });
}

#[test]
fn in_every_place_the_link_stays_and_the_program_changes() {
    alone(|own| {
        run("ip link add left.1 type veth peer name right");
        let places = [
            (Mode::Xdp, "left.1", "link-xdp-left~1"),
            (Mode::XdpGeneric, "lo", "link-generic-lo"),
            (Mode::Tcx, "lo", "link-tcx-lo"),
            (Mode::Cgroup, "lo", "link-cgroup"),
        ];
        for (mode, interface, link) in places {
            let config = Config { mode, interfaces: vec![interface.to_owned()], ..own.config() };
            drop(Filter::open(&config).unwrap());
            let (first, place) = split(&detail(own, link));
            drop(Filter::open(&config).unwrap());
            let (second, same) = split(&detail(own, link));
            assert_eq!(place, same);
            assert_ne!(first, second, "{mode:?}");
            assert_eq!(links(own), [link]);
        }
    });
}

/// Program and place.
fn split(detail: &str) -> (String, String) {
    let (program, place) = detail.split_once(" on ").expect("a link is on something");
    (program.to_owned(), place.to_owned())
}

#[test]
fn programs_are_replaced_under_connections_without_a_gap() {
    alone(|own| {
        let mut filter = Filter::open(&generic(own)).unwrap();
        filter.replace_all(dedicated().into_iter()).unwrap();
        let mut steering = Steering::open(&own.config()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        steering.set_socket(ebpf_filter::Family::V4, &listener).unwrap();

        let stop = Arc::new(AtomicBool::new(false));
        let accepting = std::thread::spawn({
            let (stop, listener) = (Arc::clone(&stop), listener.try_clone().unwrap());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let (socket, _) = listener.accept().unwrap();
                    let local = socket.local_addr().unwrap();
                    assert!([80, 443].contains(&local.port()), "{local} was asked for by nobody");
                }
            }
        });
        let connecting = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let wait = Duration::from_secs(2);
                let mut connections = 0;
                while !stop.load(Ordering::Relaxed) {
                    for port in [80, 443] {
                        let to = SocketAddr::from(([198, 51, 100, 7], port));
                        TcpStream::connect_timeout(&to, wait).unwrap();
                        connections += 1;
                    }
                    // One that would be accepted in a gap: steering takes every port.
                    let to = SocketAddr::from(([198, 51, 100, 7], 22));
                    let wait = Duration::from_millis(1);
                    TcpStream::connect_timeout(&to, wait).unwrap_err();
                }
                // The last one wakes the acceptor.
                connections
            }
        });
        for _ in 0..20 {
            drop(Filter::open(&generic(own)).unwrap());
            drop(Steering::open(&own.config()).unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        let connections = connecting.join().unwrap();
        let to = SocketAddr::from(([198, 51, 100, 7], 443));
        let _last = TcpStream::connect(to).unwrap();
        accepting.join().unwrap();
        assert!(connections > 20, "{connections} connections in 40 replacements");
    });
}

#[test]
fn the_process_that_took_over_is_the_only_one_that_writes() {
    alone(|own| {
        let mut old = Filter::open(&generic(own)).unwrap();
        old.replace_all(dedicated().into_iter()).unwrap();
        let mut new = Filter::open(&generic(own)).unwrap();
        // Until it takes over, the old one goes on.
        old.apply(&dedicated()[0]).unwrap();
        assert!(matches!(new.apply(&dedicated()[0]), Err(FilterError::Superseded)));
        new.replace_all(dedicated().into_iter()).unwrap();
        assert!(matches!(old.apply(&dedicated()[0]), Err(FilterError::Superseded)));
        assert!(matches!(old.remove("web"), Err(FilterError::Superseded)));
        new.apply(&dedicated()[0]).unwrap();
        // The new one fails at some later step: the old one takes it back.
        drop(new);
        old.replace_all(dedicated().into_iter()).unwrap();
        old.remove("web").unwrap();
    });
}

#[test]
fn another_place_is_taken_before_the_first_one_is_left() {
    alone(|own| {
        let mut filter = Filter::open(&generic(own)).unwrap();
        filter.replace_all(dedicated().into_iter()).unwrap();
        let tcx = Filter::open(&Config { mode: Mode::Tcx, ..own.config() }).unwrap();
        assert_eq!(links(own), ["link-tcx-lo"]);
        assert_eq!(tcx.occupancy(), filter.occupancy(), "the maps are the same");
        // What is there is kept where nothing else is asked for.
        let auto = Filter::open(&own.config()).unwrap();
        assert_eq!(auto.mode().as_str(), "tcx");
        assert_eq!(links(own), ["link-tcx-lo"]);
    });
}

#[test]
fn an_interface_that_was_made_anew_is_attached_anew() {
    alone(|own| {
        let config = Config { interfaces: vec![String::from("left")], ..own.config() };
        for _ in 0..2 {
            run("ip link add left type veth peer name right");
            let filter = Filter::open(&config).unwrap();
            assert_eq!(filter.mode().as_str(), "xdp");
            run("ip link del left");
            let gone = detail(own, "link-xdp-left");
            assert!(gone.ends_with("nothing: it is gone"), "{gone}");
        }
    });
}

/// As systemd does with a service's; and a socket that is kept holds on to the old one.
#[test]
fn a_cgroup_that_was_made_anew_is_attached_anew() {
    alone(|own| {
        let group = own.cgroup().join("service");
        let cgroup = |path: &Path| Config {
            mode: Mode::Cgroup,
            cgroup: Some(path.to_owned()),
            ..own.config()
        };
        std::fs::create_dir(&group).unwrap();
        Filter::open(&cgroup(&group)).unwrap();
        let keep = "import os, socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
kept = socket.create_server(('127.0.0.1', 0))
open(sys.argv[2] + '/cgroup.procs', 'w').write('0')
os.rmdir(sys.argv[1])
print('ready', flush=True)
sys.stdin.read()";
        let mut keeper = Command::new("python3");
        keeper.arg("-c").arg(keep).arg(&group).arg(own.cgroup());
        let keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut keeper = keeper.expect("python3 is installed");
        keeper.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).expect("it keeps a socket");
        let before = detail(own, "link-cgroup");
        std::fs::create_dir(&group).unwrap();
        Filter::open(&cgroup(&group)).unwrap();
        assert_ne!(detail(own, "link-cgroup"), before);
        // The control: one that is there is somebody's.
        let other = own.cgroup().join("other");
        std::fs::create_dir(&other).unwrap();
        let error = Filter::open(&cgroup(&other)).err().expect("it is another node's");
        assert!(error.to_string().contains("two nodes need two directories"), "{error}");
        keeper.kill().and_then(|()| keeper.wait()).expect("it is our child");
        std::fs::remove_dir(group).and_then(|()| std::fs::remove_dir(other)).unwrap();
    });
}

#[test]
fn pins_of_another_network_namespace_are_not_touched() {
    alone(|own| {
        Steering::open(&own.config()).unwrap();
        let _alive = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        #[allow(unsafe_code, reason = "the thread gets another network namespace")]
        // SAFETY: as for the first one: the thread is the test's.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let error = Steering::open(&own.config()).err().expect("it is another node's");
        assert!(error.to_string().contains("two nodes need two directories"), "{error}");
        assert_eq!(links(own), ["link-steering"]);
    });
}

#[test]
fn off_leaves_the_device_and_detach_leaves_nothing() {
    alone(|own| {
        drop(Filter::open(&generic(own)).unwrap());
        drop(Steering::open(&own.config()).unwrap());
        drop(Filter::open(&Config { mode: Mode::Off, ..own.config() }).unwrap());
        assert_eq!(links(own), ["link-steering"], "steering is not the filter's");
        let shown = pins::show(&own.pins()).unwrap();
        assert!(shown.iter().any(|pinned| pinned.kind.as_str() == "map"), "{shown:?}");
        let removed = pins::detach(&own.pins()).unwrap();
        assert_eq!(removed.len(), shown.len());
        assert!(!own.pins().exists());
        assert_eq!(pins::show(&own.pins()).unwrap(), []);
        assert!(pins::detach(&own.pins()).unwrap().is_empty(), "there is nothing to detach twice");
    });
}
