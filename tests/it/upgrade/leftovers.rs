//! What many upgrades leave behind: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::edge::{Builder, Edge};
use tests::lab::Lab;
use tests::traffic::{Class, Over, Report, Scraper, Stage, Target, Traffic};
use tests::wait;

use super::{brisk, times, turn, upgrade};

/// How much more memory the newest generation may hold at rest than the second did. What a leak of a
/// generation's own size would add 50 times is far above it, and so is what two processes differ by
/// below it: the allocator keeps some of what its threads have used.
const MEMORY_MORE_BYTES: u64 = 3 << 20;

/// Heap snapshots, of which each drain writes one and the newest stay.
const SNAPSHOTS_MAX: usize = 8;

/// Black boxes: the one that is written, and those of the last exits.
const BLACK_BOXES_MAX: usize = 5;

/// What belongs to a node on this machine while nobody asks it anything.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Belongings {
    /// Processes that were started with its configuration.
    processes: usize,
    /// Descriptors of the newest, by what they are.
    descriptors: BTreeMap<String, usize>,
    /// Sockets that listen, on the whole machine, at a port that is the node's.
    listening: usize,
    /// Everything in its folder but snapshots and black boxes.
    files: Vec<String>,
    /// Its pins.
    pins: Vec<String>,
}

impl Belongings {
    fn of(edge: &Edge, pins: Option<&Path>) -> Self {
        let config = edge.path("edge.toml").display().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&config)
        });
        let files = tree(&edge.path(""));
        let (bounded, files): (Vec<String>, Vec<String>) = files
            .into_iter()
            .partition(|file| file.contains("/snapshots/") || file.contains("/blackbox"));
        let (snapshots, boxes): (Vec<String>, Vec<String>) =
            bounded.into_iter().partition(|file| file.contains("/snapshots/"));
        assert!(snapshots.len() <= SNAPSHOTS_MAX, "{snapshots:?}");
        assert!(boxes.len() <= BLACK_BOXES_MAX, "{boxes:?}");
        Self {
            processes: processes.count(),
            descriptors: descriptors(edge.pid()),
            listening: listening([edge.http(), edge.https(), edge.tcp(), edge.admin()]),
            files,
            pins: pins.map(tree).unwrap_or_default(),
        }
    }
}

/// Open descriptors: paths, and of what has none the kind.
fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let Ok(link) = fs::read_link(descriptor.path()) else { continue };
        let link = link.display().to_string().replace(&format!("/proc/{pid}/"), "/proc/self/");
        let kind = link.split_once(":[").map_or(link.as_str(), |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// How many sockets of this network listen at the ports of these places.
fn listening(places: [SocketAddr; 4]) -> usize {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let tables = tables.map(|table| fs::read_to_string(table).unwrap());
    let ends = places.map(|place| format!(":{:04X}", place.port()));
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let found = lines.filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[3] == "0A" && ends.iter().any(|end| fields[1].ends_with(end.as_str()))
    });
    found.count()
}

fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path().display().to_string());
        }
    }
    found.sort();
    found
}

/// Memory that is the process's own and was not read from a file, at rest: the least of some looks,
/// because the allocator gives back a second after what was freed.
fn bytes_at_rest(pid: u32) -> u64 {
    let looks = (0..30).map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    });
    looks.min().unwrap_or_default()
}

/// Upgrades `edge` so often under traffic and compares what there was before and is after.
fn leaves_nothing_behind(
    edge: &mut Edge,
    times: u64,
    pins: Option<&Path>,
    traffic: impl Fn(&Edge) -> Traffic,
) -> Vec<Report> {
    // The first process was handed nothing, so the second is the measure.
    upgrade(edge);
    edge.predecessors_end();
    let first = traffic(edge);
    first.flows();
    let first = first.stop();
    edge.idle();
    let memory_before = bytes_at_rest(edge.pid());
    let before = Belongings::of(edge, pins);
    let second = traffic(edge);
    for _ in 0..times {
        upgrade(edge);
        second.next_generation();
        second.flows();
        edge.predecessors_end();
    }
    let second = second.stop();
    edge.idle();
    let memory = bytes_at_rest(edge.pid());
    let start = Instant::now();
    while Belongings::of(edge, pins) != before {
        let now = Belongings::of(edge, pins);
        assert!(start.elapsed() < wait::PATIENCE, "{now:#?}\nwas\n{before:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("bytes at rest: {memory_before} after the first upgrade, {memory} after the last");
    let bound = memory_before + MEMORY_MORE_BYTES;
    assert!(memory < bound, "{memory_before} bytes became {memory}");
    vec![first, second]
}

/// A node that keeps no connection to an instance that is not used.
fn quiet(node: Builder) -> Builder {
    brisk(node).timeout("upstream_idle", "500ms")
}

const LIGHT: [Class; 3] =
    [Class::Fresh(Over::Clear), Class::Fresh(Over::Resumed), Class::KeepAlive(Over::Clear)];

#[test]
fn upgrades_leave_no_process_descriptor_or_file_behind_and_no_counter_goes_back() {
    let _turn = turn();
    let stage = Stage::new();
    let mut edge = quiet(Edge::builder()).apps(stage.apps()).start();
    let scraper = Scraper::start(edge.admin(), Duration::from_millis(50));
    let reports = leaves_nothing_behind(&mut edge, times(50), None, |edge| {
        Traffic::start(&Target::of(edge), &LIGHT)
    });
    let scraped = scraper.stop();
    for report in &reports {
        eprintln!("{report}");
        report.assert_nothing_lost();
    }
    assert!(scraped.scrapes > 20, "{scraped:?}");
    assert!(scraped.failed.is_empty() && scraped.back.is_empty(), "{scraped:#?}");
    // What clients saw is what is counted, over all generations.
    let tallies = reports.iter().flat_map(|report| &report.tallies);
    let answered: u64 = tallies.map(|(_, tally)| tally.ok).sum();
    let counted = edge.metric("ferrule_requests_total");
    assert_eq!(counted, answered as f64, "requests counted over all generations");
}

#[test]
fn upgrades_in_steer_mode_leave_no_pin_behind() {
    let _turn = turn();
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let stage = Stage::new();
        let node = quiet(lab.node("steer", "xdp"))
            .set("listen", "addresses = [\"198.51.100.1\"]")
            .apps(stage.apps());
        let mut edge = node.start_until_ready();
        let pins = format!("/proc/{}/root{}", lab.edge().pid(), lab.pins());
        let reports = leaves_nothing_behind(&mut edge, times(12), Some(Path::new(&pins)), |edge| {
            let http = SocketAddr::new("198.51.100.1".parse().unwrap(), edge.http().port());
            let target = Target { http, ..Target::of(edge) };
            lab.client().run(|| Traffic::start(&target, &[Class::Fresh(Over::Clear)]))
        });
        reports.iter().for_each(Report::assert_nothing_lost);
    });
}
