//! Upgrades that go wrong under load: whatever breaks, and wherever, the node goes on.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::edge::{Builder, Edge};
use tests::need::tool;
use tests::process::{Process, run};
use tests::traffic::{Class, Over, Stage, Target, Traffic};
use tests::wait;

use super::{brisk, turn, upgrade};

/// What notices first, without much work for the machine: many of these tests run side by side.
const CLASSES: [Class; 4] = [
    Class::Fresh(Over::Clear),
    Class::Fresh(Over::Resumed),
    Class::KeepAlive(Over::Clear),
    Class::RawLong,
];

/// How far a successor has come, in the words of `ferrule upgrade --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// It was started.
    Spawned,
    /// It has said hello.
    Hello,
    /// It has the sockets.
    Adopted,
    /// It has loaded catalog, certificates and apps.
    Loaded,
    /// It is ready.
    Ready,
    /// It serves, on probation.
    Serving,
    /// It serves for good, and its predecessor drains.
    Committed,
}

const OF_SUCCESSOR: [Point; 6] =
    [Point::Spawned, Point::Hello, Point::Adopted, Point::Loaded, Point::Ready, Point::Serving];

const OF_PREDECESSOR: [Point; 3] = [Point::Loaded, Point::Serving, Point::Committed];

impl Point {
    fn is_reached(self, line: &Value) -> bool {
        let step = match self {
            Self::Spawned => return line["event"] == "spawned",
            Self::Committed => return line["event"] == "committed",
            Self::Hello => "hello",
            Self::Adopted => "adopted",
            Self::Loaded => "loaded",
            Self::Ready => "ready",
            Self::Serving => "serving",
        };
        line["event"] == "successor" && line["step"] == step
    }
}

/// A node with traffic.
struct Busy {
    stage: Stage,
    edge: Edge,
    traffic: Traffic,
}

impl Busy {
    fn start(node: Builder, classes: &[Class]) -> Self {
        let stage = Stage::new();
        // Long enough that a kill in the middle of it is in the middle of it.
        let node = brisk(node).timeout("handoff_probation", "1s").timeout("handoff", "5s");
        let edge = node.apps(stage.apps()).start();
        let traffic = Traffic::start(&Target::of(&edge), classes);
        Self { stage, edge, traffic }
    }

    /// Starts an upgrade and waits until it has come to `point`; the successor's process id.
    fn upgrade_until(&self, point: Point) -> (Process, Pid) {
        let upgrade = self.edge.start_upgrade(&["--json"]);
        let start = Instant::now();
        loop {
            let output = upgrade.output();
            let lines: Vec<Value> =
                output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            if lines.iter().any(|line| point.is_reached(line)) {
                let spawned = lines.iter().find(|line| line["event"] == "spawned");
                let pid = spawned.and_then(|line| line["pid"].as_i64()).expect("it has an id");
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                return (upgrade, pid.expect("the id of a process"));
            }
            assert!(start.elapsed() < wait::PATIENCE, "it never comes to {point:?}: {output}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whoever is the node now is well: serves all, and can be replaced.
    fn goes_on(&mut self) {
        self.edge.follow();
        self.traffic.flows();
        upgrade(&mut self.edge);
        self.traffic.flows();
    }
}

#[test]
fn a_successor_that_is_killed_at_any_point_costs_nobody_anything() {
    let _turn = turn();
    for point in OF_SUCCESSOR {
        let mut busy = Busy::start(Edge::builder(), &CLASSES);
        let (mut upgrade, successor) = busy.upgrade_until(point);
        kill_process(successor, Signal::KILL).unwrap();
        let code = upgrade.wait(wait::PATIENCE).code();
        assert_eq!(code, Some(69), "killed at {point:?}: {}", upgrade.output());
        assert_eq!(busy.edge.follow(), 1, "the node is the one it was");
        busy.traffic.flows();
        let Busy { stage, edge, traffic } = busy;
        let report = traffic.stop();
        eprintln!("killed at {point:?}\n{report}");
        for (class, tally) in &report.tallies {
            // What it had accepted by itself dies with it, and nothing else does.
            let lost = if point == Point::Serving { tally.refused } else { tally.lost() };
            assert_eq!(lost, 0, "killed at {point:?}: {class:?}: {tally}");
        }
        assert_eq!(stage.web().duplicated(), 0);
        busy = Busy { traffic: Traffic::start(&Target::of(&edge), &CLASSES[..1]), stage, edge };
        busy.goes_on();
        busy.traffic.stop().assert_nothing_lost();
    }
}

#[test]
fn a_successor_that_hangs_is_ended_and_costs_nobody_anything() {
    let _turn = turn();
    for point in [Point::Spawned, Point::Adopted, Point::Serving] {
        let mut busy = Busy::start(Edge::builder(), &CLASSES);
        let (mut upgrade, successor) = busy.upgrade_until(point);
        kill_process(successor, Signal::STOP).unwrap();
        let gone = format!("/proc/{}", successor.as_raw_nonzero());
        let code = upgrade.wait(wait::PATIENCE).code();
        assert_eq!(code, Some(69), "hangs at {point:?}: {}", upgrade.output());
        assert!(!PathBuf::from(gone).exists(), "it is ended");
        assert_eq!(busy.edge.follow(), 1, "the node is the one it was");
        busy.traffic.flows();
        let report = busy.traffic.stop();
        for (class, tally) in &report.tallies {
            // What it had accepted by itself is lost with it, and nothing else is.
            let lost = if point == Point::Serving { tally.refused } else { tally.lost() };
            assert_eq!(lost, 0, "hangs at {point:?}: {class:?}: {tally}");
        }
    }
}

#[test]
fn a_predecessor_that_is_killed_leaves_a_node_that_refuses_nobody() {
    let _turn = turn();
    for point in OF_PREDECESSOR {
        let mut busy = Busy::start(Edge::builder(), &CLASSES);
        let (mut upgrade, successor) = busy.upgrade_until(point);
        busy.edge.signal(Signal::KILL);
        let pid = u64::try_from(successor.as_raw_nonzero().get()).unwrap();
        wait::until("the successor is the node", || {
            busy.edge.try_status().is_some_and(|status| status["pid"] == pid)
        });
        assert_eq!(busy.edge.follow(), 2);
        let code = upgrade.wait(wait::PATIENCE).code();
        assert_eq!(code, Some(0), "killed at {point:?}: {}", upgrade.output());
        busy.traffic.next_generation();
        busy.traffic.flows();
        let Busy { stage, edge, traffic } = busy;
        let report = traffic.stop();
        eprintln!("killed at {point:?}\n{report}");
        for (class, tally) in &report.tallies {
            // What it was serving dies with it; whoever comes is served.
            assert_eq!(tally.refused, 0, "killed at {point:?}: {class:?}: {tally}");
        }
        busy = Busy { traffic: Traffic::start(&Target::of(&edge), &CLASSES), stage, edge };
        busy.goes_on();
        busy.traffic.stop().assert_nothing_lost();
    }
}

#[test]
fn a_configuration_that_does_not_parse_costs_nobody_anything() {
    let _turn = turn();
    let mut busy = Busy::start(Edge::builder(), &CLASSES);
    let config = busy.edge.path("edge.toml");
    let sound = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{sound}\n[nonsense]\nkey = 1\n")).unwrap();
    let outcome = busy.edge.try_upgrade(&[]);
    assert_eq!(outcome.code, 64, "{outcome:?}");
    assert!(outcome.stderr.contains("nonsense"), "{outcome:?}");
    fs::write(&config, sound).unwrap();
    busy.goes_on();
    busy.traffic.stop().assert_nothing_lost();
}

#[test]
fn a_catalog_of_a_newer_schema_costs_nobody_anything() {
    let _turn = turn();
    let Some(python) = tool("python3") else { return };
    let mut busy = Busy::start(Edge::builder(), &CLASSES);
    let catalog = busy.edge.path("storage/inventory.db");
    let schema = |version: &str| {
        let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                      print(c.execute('PRAGMA user_version').fetchone()[0]); \
                      c.execute('PRAGMA user_version = ' + sys.argv[2]); c.commit()";
        let done = run(Command::new(&python).args(["-c", script]).arg(&catalog).arg(version));
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout.trim().to_owned()
    };
    let ours = schema("99");
    let outcome = busy.edge.try_upgrade(&[]);
    assert_eq!(outcome.code, 69, "{outcome:?}");
    assert!(outcome.stderr.contains("schema version is 99"), "{outcome:?}");
    schema(&ours);
    busy.goes_on();
    busy.traffic.stop().assert_nothing_lost();
}

#[test]
fn a_full_disk_costs_nobody_anything() {
    let _turn = turn();
    for name in ["unshare", "mount"] {
        let Some(_) = tool(name) else { return };
    }
    // A storage folder on a small disk of the node's own.
    let mount = "d=$(dirname \"$4\")/storage; mkdir \"$d\" && \
                 mount -t tmpfs -o size=64m tmpfs \"$d\" && exec \"$@\"";
    let words = ["unshare", "--mount", "sh", "-c", mount, "sh"];
    let mut busy = Busy::start(Edge::builder().through(&words), &CLASSES);
    let filler = |edge: &Edge| {
        let path = edge.path("storage/filler").display().to_string();
        PathBuf::from(format!("/proc/{}/root{path}", edge.pid()))
    };
    assert!(fs::write(filler(&busy.edge), vec![0_u8; 64 << 20]).is_err(), "the disk is full");
    let outcome = busy.edge.try_upgrade(&[]);
    assert!([0, 69].contains(&outcome.code), "{outcome:?}");
    busy.traffic.flows();
    busy.edge.predecessors_end();
    fs::remove_file(filler(&busy.edge)).unwrap();
    busy.goes_on();
    busy.traffic.stop().assert_nothing_lost();
}
