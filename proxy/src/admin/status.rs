//! What `/status` says: the numbers an operator asks for first.

use serde::{Deserialize, Serialize};

use super::drain::Draining;

/// One node in a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub pid: u32,
    pub version: String,
    /// Rises with every process that took over from another. The first is 1.
    pub generation: u64,
    /// The other process of the node, while there is one.
    #[serde(default)]
    pub other: Option<Generation>,
    pub node: String,
    pub region: String,
    pub ready: bool,
    /// Why not, when not ready.
    pub not_ready_reason: Option<String>,
    pub draining: bool,
    /// Why, since when, and what is left; absent when it does not.
    #[serde(default)]
    pub drain: Option<Draining>,
    /// Where the kernel drops what no app asked for: `xdp`, `xdp-generic`, `tcx`, `cgroup`;
    /// `userspace` after accept, `off` when that is what was asked for.
    pub filter_mode: String,
    /// Why not earlier, a sentence for each way that was tried.
    #[serde(default)]
    pub filter_reasons: Vec<String>,
    /// How clients get in: `steer` or `bind`; `none` before the node is ready.
    pub listen_mode: String,
    /// Why they are not steered, where that was wanted if possible.
    #[serde(default)]
    pub listen_reason: Option<String>,
    /// Time since the inventory was last known to be complete; absent before that.
    pub inventory_age_seconds: Option<f64>,
    /// For how long the thread that hangs longest has not come back from a poll.
    #[serde(default)]
    pub hangs_for_seconds: f64,
    pub uptime_seconds: f64,
    pub apps: u64,
    pub instances: u64,
    pub connections: u64,
    pub requests_in_flight: u64,
    pub permits_in_use: u64,
    pub memory: Memory,
    /// How near memory is to its limit; absent where nothing looks.
    #[serde(default)]
    pub pressure: Option<Pressure>,
    /// What was refused while its last good version stays in use.
    pub quarantined: Vec<Quarantined>,
    pub peers: Vec<Peer>,
}

/// A process of the node beside the one that answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub pid: u32,
    pub generation: u64,
    /// `starting`, or `draining`.
    pub state: String,
    pub connections: u64,
    pub requests_in_flight: u64,
    /// It ends in so many seconds at most.
    pub seconds_left: u64,
}

/// Bytes as jemalloc accounts for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub allocated: u64,
    pub active: u64,
    pub resident: u64,
    pub mapped: u64,
    pub retained: u64,
    pub metadata: u64,
    /// Freed memory goes back to the kernel from a thread of the allocator's own.
    pub background_thread: bool,
}

/// Memory against its limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// What is given up: `calm`, `trim`, `close`, `shed`, `refuse`, `reset`.
    pub level: String,
    /// Bytes that count against the limit.
    pub used: u64,
    /// 0 when there is none.
    pub limit: u64,
}

/// One refused app or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    pub name: String,
    pub reason: String,
}

/// Another node as this one sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    pub id: String,
    pub region: String,
    /// Smoothed; absent until it was measured.
    pub rtt_ms: Option<f64>,
    pub reachable: bool,
    /// It wants no new requests.
    #[serde(default)]
    pub draining: bool,
}

// === impl Status ===

impl Status {
    /// Whether it serves, in words.
    pub fn state(&self) -> String {
        match (&self.not_ready_reason, self.draining, self.ready) {
            (Some(reason), true, _) => reason.clone(),
            (None, true, _) => "draining".to_owned(),
            (_, _, true) => "ready".to_owned(),
            (Some(reason), _, _) => format!("not ready: {reason}"),
            (None, _, _) => "not ready".to_owned(),
        }
    }
}

// === impl Memory ===

impl Memory {
    /// The totals as of now.
    pub fn read() -> Self {
        let telemetry::memory::Memory { allocated, active, resident, mapped, retained, metadata } =
            telemetry::memory::read();
        let bytes = |bytes: usize| bytes as u64;
        Self {
            allocated: bytes(allocated),
            active: bytes(active),
            resident: bytes(resident),
            mapped: bytes(mapped),
            retained: bytes(retained),
            metadata: bytes(metadata),
            background_thread: telemetry::memory::has_background_thread(),
        }
    }
}

/// A node in good health, for tests of whatever shows a status.
#[cfg(test)]
pub(crate) fn example() -> Status {
    Status {
        pid: 4711,
        version: "0.0.0".to_owned(),
        generation: 1,
        other: None,
        node: "ams-1".to_owned(),
        region: "ams".to_owned(),
        ready: true,
        not_ready_reason: None,
        draining: false,
        drain: None,
        filter_mode: "off".to_owned(),
        filter_reasons: Vec::new(),
        listen_mode: "bind".to_owned(),
        listen_reason: None,
        inventory_age_seconds: Some(0.4),
        hangs_for_seconds: 0.0,
        uptime_seconds: 93_784.0,
        apps: 3,
        instances: 12,
        connections: 1_204,
        requests_in_flight: 17,
        permits_in_use: 17,
        memory: Memory { allocated: 9 << 20, resident: 27 << 20, ..Memory::default() },
        pressure: Some(Pressure { level: "calm".to_owned(), used: 31 << 20, limit: 512 << 20 }),
        quarantined: Vec::new(),
        peers: vec![
            Peer {
                id: "fra-1".to_owned(),
                region: "fra".to_owned(),
                rtt_ms: Some(6.25),
                reachable: true,
                draining: false,
            },
            Peer {
                id: "sin-1".to_owned(),
                region: "sin".to_owned(),
                rtt_ms: None,
                reachable: false,
                draining: false,
            },
        ],
    }
}
