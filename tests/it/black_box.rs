//! What survives a death: processes that end in every way, and what the next start says of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use telemetry::black_box::{self, Contents, Verdict, postmortem, story};
use tempfile::TempDir;
use tests::app::App;
use tests::cgroup::MemoryCgroup;
use tests::client::Raw;
use tests::edge::{Edge, binary};
use tests::process::{Outcome, Process, run};

const MIB: u64 = 1 << 20;

const LIMIT: u64 = 256 * MIB;

/// Longest life of a process that ends by itself, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn victim() -> PathBuf {
    env!("CARGO_BIN_EXE_victim").into()
}

/// A process that keeps a black box in `storage` and ends as `how` says.
fn begin(mut command: Command, storage: &TempDir, how: &str) -> Process {
    Process::start("the victim", command.arg(storage.path()).arg(how))
}

fn live(command: Command, storage: &TempDir, how: &str) -> Process {
    let mut process = begin(command, storage, how);
    process.wait(PATIENCE);
    process
}

/// What the next start says of the process before.
#[track_caller]
fn next_start(command: Command, storage: &TempDir) -> String {
    let output = live(command, storage, "clean").output();
    let said = output.lines().find_map(|line| line.strip_prefix("last "));
    said.unwrap_or_else(|| panic!("no verdict in\n{output}")).to_owned()
}

/// The file of the process before the last one.
fn before(storage: &TempDir) -> PathBuf {
    storage.path().join("blackbox.1")
}

fn contents(file: &Path) -> Contents {
    black_box::read(file).expect("a black box").contents
}

/// Where the functions that a victim names are.
fn functions(output: &str) -> BTreeMap<u64, String> {
    output
        .lines()
        .filter_map(|line| {
            let (name, address) = line.split_once(' ')?;
            Some((address.parse().ok()?, name.to_owned()))
        })
        .collect()
}

/// Whether a stack passes through `function`. Two functions of a victim are never further apart than
/// they are long, but the last one has no neighbour.
fn passes(pcs: &[u64], function: &str, functions: &BTreeMap<u64, String>) -> bool {
    const LONGEST: u64 = 2048;
    pcs.iter().any(|pc| {
        let found = functions.range(..pc).next_back();
        found.is_some_and(|(start, name)| name == function && pc - start < LONGEST)
    })
}

#[test]
fn a_kill_for_memory_is_told_with_its_crossing_and_stack_ten_times_of_ten() {
    for round in 1..=10 {
        let storage = TempDir::new().unwrap();
        let Some(cgroup) = MemoryCgroup::new(LIMIT) else { return };
        let dead = live(cgroup.command(&victim()), &storage, "devour");
        let said = next_start(cgroup.command(&victim()), &storage);
        assert_eq!(said, "out_of_memory", "round {round}");

        let contents = contents(&before(&storage));
        let functions = functions(&dead.output());
        let spike = contents.spikes.iter().find(|spike| spike.percent >= 70);
        let spike = spike.unwrap_or_else(|| panic!("no crossing, round {round}: {contents:?}"));
        assert!(spike.used >= LIMIT / 100 * 70 && spike.limit == LIMIT, "{spike:?}");
        assert_eq!(spike.thread, "worker-0");
        let passing =
            contents.spikes.iter().filter(|spike| passes(&spike.pcs, "devour", &functions));
        assert!(passing.count() > 0, "nobody is named, round {round}: {contents:?}");

        let report = postmortem(&before(&storage)).unwrap();
        assert_eq!(report.verdict, Verdict::OutOfMemory, "judged the same way later");
        let life = report.life.as_ref().unwrap();
        let culprit = &life.allocated_by[0];
        assert!(culprit.thread == "worker-0" && culprit.bytes > 16 * MIB, "{culprit:?}");
        let text = story(&report, &|_| None);
        for part in ["out of memory: the kernel counts 1 kill", "of 256.0 MiB (cgroup)", "worker-0"]
        {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(text.contains("  0.0 MiB  01JVICTIM of shop, response for 0.1 s"), "{text}");
    }
}

#[test]
fn a_block_that_is_larger_than_the_limit_is_told_with_its_stack() {
    let storage = TempDir::new().unwrap();
    let Some(cgroup) = MemoryCgroup::new(LIMIT) else { return };
    let dead = live(cgroup.command(&victim()), &storage, "large");
    assert_eq!(next_start(cgroup.command(&victim()), &storage), "out_of_memory");
    let contents = contents(&before(&storage));
    let functions = functions(&dead.output());
    let passes = |spike: &&black_box::Spike| passes(&spike.pcs, "large", &functions);
    let spike = contents.spikes.iter().find(passes).expect("the stack of the block");
    assert!(spike.bytes >= 1024 * MIB, "{spike:?}");
}

#[test]
fn a_kill_for_memory_is_told_when_its_cgroup_is_gone() {
    let storage = TempDir::new().unwrap();
    let Some(cgroup) = MemoryCgroup::new(LIMIT) else { return };
    live(cgroup.command(&victim()), &storage, "devour");
    drop(cgroup);
    // As a container is started again: in a cgroup whose counters begin at nothing.
    let Some(cgroup) = MemoryCgroup::new(LIMIT) else { return };
    assert_eq!(next_start(cgroup.command(&victim()), &storage), "out_of_memory");
}

#[test]
fn every_other_end_is_told_apart() {
    let storage = TempDir::new().unwrap();
    let command = || Command::new(victim());
    assert_eq!(next_start(command(), &storage), "first_start");
    assert_eq!(next_start(command(), &storage), "clean");
    for how in ["panic", "abort"] {
        live(command(), &storage, how);
        assert_eq!(next_start(command(), &storage), "panic", "{how}");
    }
    for (how, panics) in [("wait", 0), ("stumble", 1)] {
        let mut process = begin(command(), &storage, how);
        tests::wait::until("it waits", || process.output().contains("ready"));
        process.signal(Signal::KILL);
        process.wait(PATIENCE);
        assert_eq!(next_start(command(), &storage), "killed", "{how}");
        let contents = contents(&before(&storage));
        assert_eq!(contents.panics.len(), panics, "{how}: contained");
        let tick = contents.ticks.last().expect("it lived for some ticks");
        assert!(tick.resident > tick.active && tick.active > 0, "{tick:?}");
        assert_eq!((tick.in_flight, contents.seconds[0].threads > 0), (2, true));
    }
}

#[test]
fn a_panic_leaves_its_place_and_stack_but_not_what_it_said() {
    let storage = TempDir::new().unwrap();
    let dead = live(Command::new(victim()), &storage, "panic");
    let output = dead.output();
    assert!(output.contains("location=tests/src/bin/victim.rs:"), "{output}");
    assert!(!output.contains("hunter2"), "{output}");
    let file = storage.path().join(black_box::FILE);
    let contents = contents(&file);
    let [panic] = &contents.panics[..] else { panic!("one panic in {contents:?}") };
    assert!(panic.file.ends_with("victim.rs") && panic.thread == "victim", "{panic:?}");
    assert!(passes(&panic.pcs, "stumble", &functions(&output)), "{panic:?}");
    let warning = &contents.lines[0].text;
    assert_eq!(warning, "victim: about to stumble client=198.51.100.7");
    let bytes = std::fs::read(&file).unwrap();
    assert!(!bytes.windows(7).any(|bytes| bytes == b"hunter2"));
}

#[test]
fn a_spike_between_two_scrapes_is_in_the_exported_maximum() {
    let storage = TempDir::new().unwrap();
    let done = run(Command::new(victim()).arg(storage.path()).arg("spike"));
    let figures = |name: &str| -> [f64; 2] {
        let line = done.stdout.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let figures: Vec<f64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        figures.try_into().unwrap()
    };
    let ([before, polled_before], [after, polled_after]) = (figures("before"), figures("after"));
    let spike = 200.0 * MIB as f64;
    assert!(after - before >= 0.95 * spike, "{}", done.stdout);
    // The control: whoever looks once in an interval has seen nothing.
    assert!(polled_after - polled_before < 0.1 * spike, "{}", done.stdout);
}

/// The binary as a node with the folder `directory`, until it is ready.
fn node(directory: &TempDir) -> Process {
    let mut command = Command::new(binary());
    command.args(["run", "--config"]).arg(directory.path().join("edge.toml"));
    let mut process = Process::start("the node", &mut command);
    tests::wait::until("the node is ready", || {
        assert!(process.has_ended().is_none(), "{}", process.output());
        process.output().contains(" ready")
    });
    process
}

fn postmortem_of(directory: &TempDir, arguments: &[&str]) -> Outcome {
    let config = directory.path().join("edge.toml");
    run(Command::new(binary()).arg("postmortem").arg("--config").arg(config).args(arguments))
}

#[test]
fn a_node_says_everywhere_how_its_last_process_ended() {
    let directory = TempDir::new().unwrap();
    let app = App::new("hello").instance(tests::port::free_address(1));
    let admin = Edge::builder().app(app).write(directory.path());
    assert_eq!(postmortem_of(&directory, &[]).code, 69, "nothing ran here yet");

    let mut first = node(&directory);
    first.signal(Signal::KILL);
    first.wait(PATIENCE);
    let done = postmortem_of(&directory, &[]);
    assert!(done.code == 0 && done.stdout.starts_with("killed: "), "{done:?}");

    let mut second = node(&directory);
    assert!(second.output().contains("last exit verdict=\"killed\""), "{}", second.output());
    let page = Raw::tcp(admin).get("any", "/last-exit");
    let report: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!((&report["verdict"], &report["pid"]), (&"killed".into(), &first.pid().into()));
    let text = Raw::tcp(admin).get("any", "/last-exit.txt");
    assert!(text.text().starts_with("killed: "), "{}", text.text());
    let metrics = Raw::tcp(admin).get("any", "/metrics");
    for line in [
        "ferrule_last_exit{verdict=\"killed\"} 1",
        "ferrule_last_exit{verdict=\"clean\"} 0",
        "# TYPE ferrule_memory_resident_max_bytes gauge",
        "# TYPE ferrule_memory_pressure_ratio gauge",
        "# TYPE ferrule_process_descriptors gauge",
    ] {
        assert!(metrics.text().contains(line), "{line} is not in\n{}", metrics.text());
    }
    // While a node runs, the last exit is that of the one before.
    assert!(postmortem_of(&directory, &[]).stdout.starts_with("killed: "));

    // A start that fails, because the first has everything, changes nothing of that.
    let config = directory.path().join("edge.toml");
    let third = run(Command::new(binary()).args(["run", "--config"]).arg(config));
    assert_ne!(third.code, 0, "{third:?}");
    assert!(postmortem_of(&directory, &[]).stdout.starts_with("killed: "));

    second.signal(Signal::TERM);
    assert!(second.wait(PATIENCE).success());
    let done = postmortem_of(&directory, &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&report["verdict"], &report["node"]), (&"clean".into(), &"a".into()));
}

#[test]
fn a_limit_in_the_configuration_is_what_memory_is_held_against() {
    let directory = TempDir::new().unwrap();
    let app = App::new("hello").instance(tests::port::free_address(1));
    let admin = Edge::builder().app(app).write(directory.path());
    let config = directory.path().join("edge.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\n[memory]\nlimit = \"1GiB\"\n").unwrap();
    let mut process = node(&directory);
    let metrics = Raw::tcp(admin).get("any", "/metrics");
    assert!(metrics.text().contains("ferrule_memory_limit_bytes 1073741824\n"));
    process.signal(Signal::TERM);
    assert!(process.wait(PATIENCE).success());
}
