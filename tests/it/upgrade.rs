//! A node that is replaced under load: nobody notices.
//!
//! How often and how much is for every run of the tests; `FERRULE_UPGRADES` and
//! `FERRULE_TRANSFER_BYTES` make it more, and `FERRULE_PROOF` names a file for what became of each
//! class (`make proof-upgrade` does all of that).

mod control;
mod load;
mod steer;
mod mesh;
mod limits;
mod leftovers;
mod broken;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tests::edge::{Builder, Edge};
use tests::traffic::{Class, Http, Origin, Over, Report, Size, Tally};

/// Every class of traffic but the crowd.
const ALL: [Class; 14] = [
    Class::Fresh(Over::Clear),
    Class::Fresh(Over::Tls),
    Class::Fresh(Over::Resumed),
    Class::KeepAlive(Over::Clear),
    Class::KeepAlive(Over::Resumed),
    Class::Http2,
    Class::WebSocket,
    Class::Download(Http::One),
    Class::Download(Http::Two),
    Class::Upload(Http::One),
    Class::Upload(Http::Two),
    Class::Grpc,
    Class::RawShort,
    Class::RawLong,
];

/// One of these tests at a time: a node under every class of traffic, and its clients, want both cores
/// for themselves, and deadlines that starved clients miss say nothing about the node.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner) // one that failed has had its turn
}

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// How many upgrades in a row.
fn times(usually: u64) -> u64 {
    number("FERRULE_UPGRADES").unwrap_or(usually)
}

/// How large transfers are. They are as slow as small ones or 50 MB/s, so that each outlives a
/// generation and an upgrade need not wait long for it.
fn transfers() -> Size {
    let bytes = number("FERRULE_TRANSFER_BYTES").unwrap_or_else(|| Size::default().bytes);
    let within = Duration::from_nanos(bytes * 20).max(Size::default().within);
    Size { bytes, within }
}

/// A node whose upgrades take no longer than what they have to finish.
fn brisk(node: Builder) -> Builder {
    node.timeout("drain", "30s")
        .timeout("drain_websocket", "30s")
        .timeout("drain_tcp", "30s")
        .timeout("drain_spread", "500ms")
        .timeout("handoff_probation", "200ms")
}

/// Replaces the node.
#[track_caller]
fn upgrade(edge: &mut Edge) {
    edge.upgrade();
}

/// A line per class for the table of the proof, if there is to be one.
fn write_down(mode: &str, upgrades: u64, report: &Report) {
    for (class, tally) in &report.tallies {
        let Tally { sent, ok, refused, reset, failed, cut, .. } = tally;
        let slowest = tally.slowest.as_millis();
        append(&format!(
            "{class:?}|{mode}|{upgrades}|{sent}|{ok}|{refused}|{reset}|{failed}|{cut}|-|{slowest}"
        ));
    }
}

/// And one for all that must not reach an instance twice, whatever class sent it.
fn write_down_once(mode: &str, upgrades: u64, origin: &Origin) {
    let (ids, twice) = (origin.ids(), origin.duplicated());
    append(&format!("POST, once|{mode}|{upgrades}|{ids}|{ids}|-|-|-|-|{twice}|-"));
}

fn append(line: &str) {
    let Some(path) = std::env::var_os("FERRULE_PROOF") else { return };
    let file = OpenOptions::new().append(true).create(true).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{line}"));
    written.expect("the file of the proof can be written");
}
