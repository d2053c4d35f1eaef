//! The filter over time: it follows the inventory, outlives its node, is replaced in place, and
//! holds off a flood.

use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::edge::Edge;
use tests::lab::{Attempt, INTERFACE, Lab, attempt, attempt_all, syn_flood};
use tests::metrics::Metrics;
use tests::wait;

use crate::steer::{Apps, Stranger, UNANSWERED, hold_to_account, pairs};

const SECOND: Duration = Duration::from_secs(1);

/// A port of the app `db`, and one that nobody has.
const ALLOWED: &str = "198.51.100.7:5432";
const DENIED: &str = "198.51.100.7:5433";

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// What becomes of one connection from the client's namespace.
fn from_client(lab: &Lab, destination: &str, patience: Duration) -> Attempt {
    lab.client().run(|| attempt(address(destination), patience))
}

fn packets(edge: &Edge, verdict: &str) -> f64 {
    edge.metrics().sum_with("ferrule_filter_packets_total", &[("verdict", verdict)])
}

#[test]
fn the_kernel_follows_the_inventory_within_a_second() {
    let Some(lab) = Lab::new() else { return };
    for mode in ["xdp", "tcx"] {
        lab.edge().run(|| {
            let apps = Apps::start();
            let edge = apps.on(lab.node("steer", mode)).start_until_ready();
            let soon = Duration::from_millis(50);
            let answers = || matches!(from_client(&lab, ALLOWED, soon), Attempt::Answered(_));
            let silent = || from_client(&lab, ALLOWED, soon) == Attempt::Silent;
            wait::until("the app answers", answers);
            let mut took = Vec::new();
            for _ in 0..3 {
                edge.remove_app("db");
                took.push(wait::within(SECOND, "the app is denied", silent));
                edge.write_app_file("db", &apps.file("db"));
                took.push(wait::within(SECOND, "the app is allowed again", answers));
            }
            eprintln!("{mode}: from the file to the first packet that notices: {took:?}");
            hold_to_account(&lab, &pairs(20), Stranger::Dropped);
        });
    }
}

#[test]
fn what_is_pinned_outlives_a_node_that_is_killed_and_its_successor_takes_over() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let mut edge = apps.on(lab.node("steer", "xdp")).start_until_ready();
        let pairs = pairs(30);
        let (ours, others) = pairs.split_at(30);
        hold_to_account(&lab, &pairs, Stranger::Dropped);
        for round in 0..3 {
            edge.kill();
            let dead = lab.client().run(|| attempt_all(&pairs, UNANSWERED));
            let refused = &dead[..ours.len()];
            assert!(refused.iter().all(|attempt| *attempt == Attempt::Refused), "{refused:?}");
            let silent = &dead[ours.len()..];
            assert!(silent.iter().all(|attempt| *attempt == Attempt::Silent), "{silent:?}");
            assert_eq!(silent.len(), others.len());
            edge.start_again();
            assert_eq!(edge.status()["filter_mode"], "xdp", "round {round}");
            hold_to_account(&lab, &pairs, Stranger::Dropped);
        }
        let counted = packets(&edge, "drop_port") + packets(&edge, "drop_address");
        assert!(counted >= 7.0 * 30.0, "what was dropped while nobody ran is counted: {counted}");
    });
}

#[test]
fn an_app_that_went_while_no_node_ran_is_denied_by_the_next() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let mut edge = apps.on(lab.node("steer", "xdp")).start_until_ready();
        edge.kill();
        edge.remove_app("db");
        edge.start_again();
        wait::until("it is denied", || from_client(&lab, ALLOWED, UNANSWERED) == Attempt::Silent);
    });
}

#[test]
fn a_node_that_neither_steers_nor_filters_is_free_of_the_one_before_it() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        apps.on(lab.node("steer", "xdp")).start_until_ready().kill();
        let _node = apps.on(lab.node("bind", "off")).start_until_ready();
        hold_to_account(&lab, &pairs(30), Stranger::Refused);
    });
}

#[test]
fn in_bind_mode_the_kernel_drops_what_nobody_asked_for_too() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let edge = apps.on(lab.node("bind", "tcx")).start_until_ready();
        assert_eq!(edge.status()["listen_mode"], "bind");
        hold_to_account(&lab, &pairs(30), Stranger::Dropped);
    });
}

#[test]
fn auto_takes_the_first_way_that_works_and_says_why_not_an_earlier_one() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let edge = apps.on(lab.node("auto", "auto")).start_until_ready();
        let status = edge.status();
        assert_eq!([&status["listen_mode"], &status["filter_mode"]], ["steer", "xdp"], "{status}");
        assert_eq!(status["filter_reasons"], serde_json::json!([]));
        drop(edge);
        // The loopback's driver has no XDP of its own.
        let node = lab.node("auto", "auto").set("filter", "interfaces = [\"e0\", \"lo\"]");
        let edge = apps.on(node).start_until_ready();
        let status = edge.status();
        assert_eq!(status["filter_mode"], "xdp-generic", "the latest of all: {status}");
        let reasons = status["filter_reasons"].to_string();
        assert!(reasons.contains("xdp") && reasons.contains("lo"), "{reasons}");
        hold_to_account(&lab, &pairs(20), Stranger::Dropped);
    });
}

/// Connects again and again, on several threads, until told to stop.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicU32,
    refused: AtomicU32,
    denied: AtomicU32,
    /// What should not happen, with when it did.
    wrong: Mutex<Vec<(Duration, bool, Attempt)>>,
}

impl Load {
    fn run(&self, lab: &Lab, during: impl FnOnce()) {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let hammer = move || {
                    while !self.stop.load(Relaxed) {
                        self.once(thread % 2 == 0);
                    }
                };
                scope.spawn(move || lab.client().run(hammer));
            }
            let stop = StopOnDrop(&self.stop);
            during();
            drop(stop);
        });
    }

    fn wrong(&self) -> Vec<(Duration, bool, Attempt)> {
        self.wrong.lock().expect("no thread panics with it").clone()
    }

    fn once(&self, stranger: bool) {
        let destination = if stranger { DENIED } else { ALLOWED };
        let patience = if stranger { Duration::from_millis(100) } else { Duration::from_secs(5) };
        let began = Instant::now();
        let counter = match (stranger, attempt(address(destination), patience)) {
            (true, Attempt::Silent) => &self.denied,
            (false, Attempt::Answered(_)) => &self.answered,
            (false, Attempt::Refused) => &self.refused,
            (_, attempt) => {
                let mut wrong = self.wrong.lock().expect("no thread panics with it");
                return wrong.push((began.elapsed(), stranger, attempt));
            }
        };
        counter.fetch_add(1, Relaxed);
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_newer_node_replaces_programs_and_sockets_without_a_gap() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let older = apps.on(lab.node("steer", "xdp")).start_until_ready();
        let load = Load::default();
        let mut nodes = vec![older];
        load.run(&lab, || {
            for _ in 0..3 {
                // A folder and an admin socket of its own, the same pins.
                let newer = apps.on(lab.node("steer", "xdp")).start_until_ready();
                let accepted = || newer.metric("ferrule_downstream_accepted_total");
                wait::until("connections come to the newer one", || accepted() >= 50.0);
                nodes.push(newer);
            }
        });
        let count = |counter: &AtomicU32| counter.load(Relaxed);
        let (answered, denied) = (count(&load.answered), count(&load.denied));
        eprintln!("three replacements under {answered} connections and {denied} strangers");
        assert!(answered > 150 && denied > 0, "{answered}, {denied}");
        assert_eq!(count(&load.refused), 0);
        assert_eq!(load.wrong(), []);
        nodes.iter_mut().for_each(Edge::kill);
    });
}

#[test]
fn a_node_that_is_killed_under_load_accepts_nobody_wrongly() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let mut edge = apps.on(lab.node("steer", "xdp")).start_until_ready();
        let load = Load::default();
        load.run(&lab, || {
            for _ in 0..3 {
                let before = load.answered.load(Relaxed);
                wait::until("connections are answered", || {
                    load.answered.load(Relaxed) > before + 50
                });
                edge.kill();
                let before = load.refused.load(Relaxed);
                wait::until("connections are refused", || load.refused.load(Relaxed) > before + 50);
                edge.start_again();
            }
        });
        let count = |counter: &AtomicU32| counter.load(Relaxed);
        let counts = [&load.answered, &load.refused, &load.denied].map(count);
        let wrong = load.wrong();
        eprintln!("three kills: answered, refused, strangers denied: {counts:?}; cut: {wrong:?}");
        // What had been accepted or waited in a queue is cut. The kernel closes a dead process's
        // sockets one after the other, so a thread may be cut once as the connection goes and once
        // more with each worker's queue.
        let is_cut = |(_, stranger, attempt): &(Duration, bool, Attempt)| {
            !stranger && *attempt == Attempt::Closed
        };
        assert!(wrong.iter().all(is_cut), "{wrong:?}");
        assert!(wrong.len() <= 3 * 2 * (1 + 2), "{wrong:?}");
    });
}

#[test]
fn a_flood_takes_nothing_from_those_who_mean_it() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let edge = apps.on(lab.node("steer", "xdp")).start_until_ready();
        hold_to_account(&lab, &pairs(40), Stranger::Dropped);
        edge.idle();
        let before = held(&edge);
        let dropped = || packets(&edge, "drop_port") + packets(&edge, "drop_address");
        let dropped_before = dropped();
        const SYNS: u32 = 4_000;
        let flood = |destination: &str| {
            lab.client().run(|| syn_flood(address(destination), SYNS).expect("a raw socket"));
        };
        std::thread::scope(|scope| {
            // Ports that nobody has, and, with sources that never answer, ports of an app.
            for destination in [DENIED, "[2001:db8:1::8]:80", ALLOWED, "[2001:db8:1::7]:5432"] {
                scope.spawn(move || flood(destination));
            }
            let ours: Vec<_> = pairs(100).into_iter().take(100).collect();
            let attempts = lab.client().run(|| attempt_all(&ours, Duration::from_secs(5)));
            for (destination, attempt) in ours.iter().zip(attempts) {
                assert!(matches!(attempt, Attempt::Answered(_)), "{destination}: {attempt:?}");
            }
        });
        // The cable's own queue is short and loses some of a burst.
        wait::until("stray SYNs are counted", || dropped() - dropped_before >= f64::from(SYNS));
        edge.idle();
        wait::until("no more descriptors are open than before", || held(&edge).0 <= before.0);
        let after = held(&edge);
        eprintln!("descriptors and resident KiB: {before:?} before the flood, {after:?} after");
        assert!(after.1 < before.1 + 8 * 1024, "resident KiB: {before:?}, {after:?}");
    });
}

/// Open descriptors, and resident memory in KiB.
fn held(edge: &Edge) -> (usize, u64) {
    let process = format!("/proc/{}", edge.pid());
    let descriptors = fs::read_dir(format!("{process}/fd")).expect("our own child").count();
    let status = fs::read_to_string(format!("{process}/status")).expect("our own child");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = resident.and_then(|text| text.trim().strip_suffix(" kB"));
    (descriptors, number.and_then(|number| number.parse().ok()).expect("a number"))
}

#[test]
fn counters_occupancy_and_drops_are_told() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let edge = apps.on(lab.node("steer", "xdp")).start_until_ready();
        let metrics = || edge.metrics();
        for _ in 0..3 {
            assert!(matches!(from_client(&lab, ALLOWED, UNANSWERED), Attempt::Answered(_)));
        }
        for (destination, times) in [(DENIED, 2), ("198.51.100.8:80", 1)] {
            for _ in 0..times {
                let attempt = from_client(&lab, destination, Duration::from_millis(100));
                assert_eq!(attempt, Attempt::Silent);
            }
        }
        let count =
            |metrics: &Metrics, name, labels: &[(&str, &str)]| metrics.sum_with(name, labels);
        let now = metrics();
        let packets = "ferrule_filter_packets_total";
        assert_eq!(count(&now, packets, &[("verdict", "pass_allowed")]), 3.0);
        assert_eq!(count(&now, packets, &[("verdict", "drop_port")]), 2.0);
        assert_eq!(count(&now, packets, &[("verdict", "drop_address")]), 1.0);
        let of_app = "ferrule_filter_app_packets_total";
        assert_eq!(count(&now, of_app, &[("app", "db"), ("verdict", "allowed")]), 3.0);
        assert_eq!(count(&now, of_app, &[("app", "db"), ("verdict", "dropped")]), 2.0);
        assert!(count(&now, "ferrule_filter_entries", &[]) >= 7.0);
        assert_eq!(count(&now, "ferrule_filter_mode", &[("mode", "xdp")]), 1.0);
        assert_eq!(count(&now, "ferrule_listen_mode", &[("mode", "steer")]), 1.0);
        assert_eq!(count(&now, "ferrule_filter_behind", &[]), 0.0);

        let config = edge.path("edge.toml").display().to_string();
        let shown = || {
            let outcome = lab.command(&["filter", "show", "--json", "--config", &config]);
            assert_eq!(outcome.code, 0, "{}", outcome.stderr);
            serde_json::from_str::<Value>(&outcome.stdout).expect("JSON")
        };
        wait::until("the drops are told", || {
            let drops = shown()["node"]["drops"].as_array().map_or(0, Vec::len);
            drops >= 3
        });
        let drops = shown()["node"]["drops"].to_string();
        assert!(drops.contains("5433") && drops.contains("drop_port"), "{drops}");
        let text = lab.command(&["filter", "show", "--config", &config]);
        assert!(text.stdout.contains("xdp") && text.stdout.contains(INTERFACE), "{}", text.stdout);

        edge.remove_app("db");
        wait::until("the app's series are gone", || {
            count(&metrics(), of_app, &[("app", "db")]) == 0.0
        });
    });
}

#[test]
fn detaching_waits_for_the_node_to_be_gone() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let mut edge = apps.on(lab.node("steer", "xdp")).start_until_ready();
        let config = edge.path("edge.toml").display().to_string();
        let refused = lab.command(&["filter", "detach", "--config", &config]);
        assert_eq!(refused.code, 69, "{}", refused.stderr);
        assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
        assert_eq!(from_client(&lab, DENIED, UNANSWERED), Attempt::Silent);
        edge.kill();
        let detached = lab.command(&["filter", "detach", "--config", &config]);
        assert_eq!(detached.code, 0, "{}", detached.stderr);
        for destination in [ALLOWED, DENIED] {
            assert_eq!(from_client(&lab, destination, UNANSWERED), Attempt::Refused);
        }
        let again = lab.command(&["filter", "detach", "--config", &config]);
        assert_eq!(again.code, 0, "nothing to do is done: {}", again.stderr);
        let shown = lab.command(&["filter", "show", "--pins", &lab.pins()]);
        assert_eq!(shown.code, 0, "{}", shown.stderr);
        assert!(shown.stdout.contains("nothing is pinned"), "{}", shown.stdout);
    });
}

#[test]
fn a_mode_that_is_named_and_cannot_be_had_is_no_start() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let check = |mode: &str, line: &str, code: i32, reason: &str| {
            let node = lab.node("steer", mode).set("filter", line).gives_up();
            assert_eq!(node.code, code, "{mode}, {line}: {}", node.stderr);
            assert!(node.stderr.contains(reason), "{mode}, {line}: {}", node.stderr);
        };
        check("xdp", "interfaces = []", 64, "needs interfaces");
        check("xdp", "interfaces = [\"none0\"]", 69, "none0");
        check("xdp", "interfaces = [\"lo\"]", 69, "lo");
        check("tcx", "interfaces = [\"none0\"]", 69, "none0");
        check("cgroup", "cgroup = \"/nowhere\"", 69, "/nowhere");
        check("xdp", "pins = \"/proc/none\"", 69, "/proc/none");
        let mut words = lab.wrapper();
        words.extend(["setpriv", "--bounding-set=-net_admin,-sys_admin", "--"].map(str::to_owned));
        let node = lab.node("bind", "xdp").through(&words).gives_up();
        assert_eq!(node.code, 77, "{}", node.stderr);
        assert!(node.stderr.contains("CAP_NET_ADMIN"), "{}", node.stderr);
    });
}

/// `AT_SECURE` of the auxiliary vector (getauxval(3)); with it set, preload libraries are ignored.
const AT_SECURE: u64 = 23;

#[test]
fn ambient_capabilities_are_enough_and_keep_secure_execution_off() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        let capabilities = ["net_bind_service", "bpf", "net_admin", "perfmon"];
        let node = apps.on(lab.node("steer", "xdp")).as_user(65_534, &capabilities);
        let edge = node.start_until_ready();
        let process = format!("/proc/{}", edge.pid());
        let status = fs::read_to_string(format!("{process}/status")).expect("our own child");
        let uid = status.lines().find(|line| line.starts_with("Uid:")).expect("a line");
        assert_eq!(uid.split_whitespace().nth(1), Some("65534"));
        let vector = fs::read(format!("{process}/auxv")).expect("our own child");
        let words: Vec<u64> = vector
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect();
        let secure = words.chunks_exact(2).find(|pair| pair[0] == AT_SECURE).map(|pair| pair[1]);
        assert_eq!(secure, Some(0));
        let status = edge.status();
        assert_eq!([&status["listen_mode"], &status["filter_mode"]], ["steer", "xdp"], "{status}");
        hold_to_account(&lab, &pairs(20), Stranger::Dropped);
    });
}

#[test]
fn the_service_file_gives_the_capabilities_that_are_tested() {
    let unit = tests::need::workspace().join("config/systemd/ferrule.service");
    let unit = fs::read_to_string(unit).expect("it is in the repository");
    let set = "CAP_NET_BIND_SERVICE CAP_BPF CAP_NET_ADMIN CAP_PERFMON";
    for line in [format!("AmbientCapabilities={set}"), format!("CapabilityBoundingSet={set}")] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
