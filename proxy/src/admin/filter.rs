//! What `/filter` says: what the kernel drops, for whom, and how full its maps are.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The filter in a glance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    pub mode: String,
    /// Why not earlier, a sentence for each way that was tried.
    pub reasons: Vec<String>,
    /// Where packets are judged, by interface; empty where no interface is involved.
    pub interfaces: Vec<Interface>,
    /// Drops are counted and pass.
    pub dry_run: bool,
    /// Apps whose newest policy is not in the kernel yet.
    pub behind: u64,
    /// Since the maps were made, which may be before this process.
    pub packets: Vec<Packets>,
    pub apps: Vec<App>,
    pub maps: Vec<Map>,
    /// The last sampled ones, oldest first.
    pub drops: Vec<Drop>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub mode: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    pub verdict: String,
    pub packets: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    pub app: String,
    pub allowed: u64,
    pub dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    pub name: String,
    pub entries: u64,
    pub capacity: u64,
}

/// A packet that was dropped. Who sent it is not kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    pub seconds_ago: f64,
    pub verdict: String,
    /// Absent where it could not be read.
    pub destination: Option<IpAddr>,
    pub port: Option<u16>,
    /// Whose address it is.
    pub app: Option<String>,
    pub interface: Option<String>,
}
