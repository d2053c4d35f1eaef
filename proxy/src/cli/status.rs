//! `ferrule status`: one node in a glance.

use clap::Args;

use super::table::{columns, counted, span};
use super::{Exit, Failure, Node, answer, client};
use crate::admin;
use crate::admin::drain::Draining;
use crate::admin::status::{Generation, Peer, Pressure, Quarantined};

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    node: Node,
    /// Only say whether it is ready for traffic: exit code 0, else 69.
    #[arg(long)]
    ready: bool,
}

// === impl Status ===

impl Status {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { node, ready } = self;
        let (json, status) = client::page(&node.socket()?, "/status")?;
        if ready {
            return readiness(&status);
        }
        if node.json { answer(&json) } else { answer(text(&status)) }
    }
}

fn readiness(status: &admin::Status) -> Result<Exit, Failure> {
    if status.ready && !status.draining {
        return answer("ready\n");
    }
    let message = format!("the node is {}", status.state());
    Err(Failure { exit: Exit::Unavailable, message })
}

fn text(status: &admin::Status) -> String {
    let mut text = String::new();
    for (name, value) in lines(status) {
        text.push_str(&format!("{name:<10} {value}\n"));
        if name == "process"
            && let Some(other) = &status.other
        {
            text.push_str(&format!("{:<10} {}\n", "beside it", generation(other)));
        }
        if name == "state"
            && let Some(Draining { seconds, connections, requests, .. }) = &status.drain
        {
            let since = span(*seconds);
            let connections = counted(*connections, "connection");
            let requests = counted(*requests, "request");
            text.push_str(&format!("{:<10} for {since}: {connections}, {requests} left\n", ""));
        }
        if name == "modes" {
            for reason in status.listen_reason.iter().chain(&status.filter_reasons) {
                text.push_str(&format!("{:<10} {reason}\n", ""));
            }
        }
    }
    if !status.peers.is_empty() {
        let rows: Vec<_> = status.peers.iter().map(peer).collect();
        text.push('\n');
        text.push_str(&columns(["PEER", "REGION", "RTT"], &rows));
    }
    if !status.quarantined.is_empty() {
        let rows: Vec<_> = status.quarantined.iter().map(quarantined).collect();
        text.push('\n');
        text.push_str(&columns(["QUARANTINED", "REASON"], &rows));
    }
    text
}

fn lines(status: &admin::Status) -> [(&'static str, String); 8] {
    let admin::Status { node, region, version, pid, generation, .. } = status;
    let up = span(status.uptime_seconds);
    let apps = counted(status.apps, "app");
    let instances = counted(status.instances, "instance");
    let age = match status.inventory_age_seconds {
        Some(seconds) => format!("{} old", span(seconds)),
        None => "not complete yet".to_owned(),
    };
    let connections = counted(status.connections, "connection");
    let requests = counted(status.requests_in_flight, "request");
    let permits = counted(status.permits_in_use, "permit");
    let resident = mebibytes(status.memory.resident);
    let allocated = mebibytes(status.memory.allocated);
    [
        ("node", format!("{node} in {region}")),
        ("state", status.state()),
        ("process", format!("version {version}, pid {pid}, generation {generation}, up {up}")),
        ("modes", format!("listen {}, filter {}", status.listen_mode, status.filter_mode)),
        ("inventory", format!("{apps}, {instances}, {age}")),
        ("traffic", format!("{connections}, {requests} in flight, {permits} in use")),
        ("memory", format!("{resident} resident, {allocated} allocated")),
        ("pressure", status.pressure.as_ref().map_or_else(|| "nobody looks".to_owned(), pressure)),
    ]
}

fn generation(other: &Generation) -> String {
    let Generation { pid, generation, state, connections, requests_in_flight, seconds_left } =
        other;
    let connections = counted(*connections, "connection");
    let requests = counted(*requests_in_flight, "request");
    format!(
        "pid {pid}, generation {generation}, {state}: {connections}, {requests} in flight, \
         for at most {seconds_left} s"
    )
}

fn pressure(pressure: &Pressure) -> String {
    let Pressure { level, used, limit } = pressure;
    let used = mebibytes(*used);
    match limit {
        0 => format!("{level}, {used} of no limit"),
        limit => format!("{level}, {used} of {}", mebibytes(*limit)),
    }
}

fn peer(peer: &Peer) -> [String; 3] {
    let rtt = match (peer.reachable, peer.rtt_ms) {
        (false, _) => "does not answer".to_owned(),
        (true, Some(milliseconds)) => format!("{milliseconds:.1} ms"),
        (true, None) => "not measured yet".to_owned(),
    };
    let rtt = if peer.draining { format!("{rtt}, draining") } else { rtt };
    [peer.id.clone(), peer.region.clone(), rtt]
}

fn quarantined(refused: &Quarantined) -> [String; 2] {
    [refused.name.clone(), refused.reason.clone()]
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::example;

    #[test]
    fn a_status_reads_as_a_table() {
        let expected = "\
node       ams-1 in ams
state      ready
process    version 0.0.0, pid 4711, generation 1, up 1 d 2 h
modes      listen bind, filter off
inventory  3 apps, 12 instances, 0.4 s old
traffic    1204 connections, 17 requests in flight, 17 permits in use
memory     27.0 MiB resident, 9.0 MiB allocated
pressure   calm, 31.0 MiB of 512.0 MiB

PEER   REGION  RTT
fra-1  fra     6.2 ms
sin-1  sin     does not answer
";
        assert_eq!(text(&example()), expected);
    }

    #[test]
    fn a_node_that_is_not_ready_or_drains_is_no_place_for_traffic() {
        assert_eq!(readiness(&example()).expect("it is ready"), Exit::Success);
        let not_ready_reason = Some("no certificates".to_owned());
        let starting = admin::Status { ready: false, not_ready_reason, ..example() };
        let failure = readiness(&starting).expect_err("it is not");
        assert_eq!(failure.exit, Exit::Unavailable);
        assert_eq!(failure.message, "the node is not ready: no certificates");
        let draining = admin::Status { draining: true, ..example() };
        assert_eq!(readiness(&draining).expect_err("it drains").message, "the node is draining");
    }

    #[test]
    fn what_is_wrong_is_shown() {
        let refused = Quarantined { name: "shop".to_owned(), reason: "no such region".to_owned() };
        let status = admin::Status {
            ready: false,
            not_ready_reason: Some("no certificates".to_owned()),
            inventory_age_seconds: None,
            quarantined: vec![refused],
            peers: Vec::new(),
            listen_reason: Some("the kernel does not steer: CAP_BPF is missing".to_owned()),
            filter_reasons: vec!["xdp: CAP_BPF is missing".to_owned()],
            ..example()
        };
        let text = text(&status);
        assert!(text.contains("state      not ready: no certificates\n"), "{text}");
        let reasons = "modes      listen bind, filter off\n           \
            the kernel does not steer: CAP_BPF is missing\n           xdp: CAP_BPF is missing\n";
        assert!(text.contains(reasons), "{text}");
        assert!(text.contains("12 instances, not complete yet\n"), "{text}");
        assert!(text.ends_with("\nQUARANTINED  REASON\nshop         no such region\n"), "{text}");
        let status = admin::Status { draining: true, ..status };
        assert_eq!(status.state(), "no certificates");
        let status = admin::Status { not_ready_reason: None, ..status };
        assert_eq!(status.state(), "draining");
    }

    #[test]
    fn a_predecessor_that_drains_is_shown() {
        let other = Generation {
            pid: 4710,
            generation: 1,
            state: "draining".to_owned(),
            connections: 12,
            requests_in_flight: 1,
            seconds_left: 25,
        };
        let text = text(&admin::Status { generation: 2, other: Some(other), ..example() });
        let expected = "beside it  pid 4710, generation 1, draining: \
                        12 connections, 1 request in flight, for at most 25 s\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_drain_is_shown_with_what_is_left() {
        let mut status = example();
        status.peers[0].draining = true;
        let status = admin::Status {
            draining: true,
            not_ready_reason: Some("drained by an operator".to_owned()),
            drain: Some(Draining {
                by: "operator".to_owned(),
                since: 0.0,
                seconds: 4.0,
                connections: 2,
                requests: 1,
            }),
            ..status
        };
        let text = text(&status);
        let expected = "state      drained by an operator\n           \
            for 4.0 s: 2 connections, 1 request left\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("fra-1  fra     6.2 ms, draining\n"), "{text}");
    }
}
