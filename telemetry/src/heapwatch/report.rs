//! What is said to people and programs: the shape of `/memory.json` and of snapshots.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::graph::{Graph, Total};
use super::profile::{Profile, State};
use super::tag::Subsystem;

/// How blocks are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One by one, by the allocator's hooks.
    Hooks,
    /// By profile dumps from time to time: no birth times, no subsystems, no verdict above growing.
    Dumps,
    Off,
}

/// Everything heapwatch knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub mode: Mode,
    pub profile: Profile,
    /// Which binary the addresses belong to.
    pub build_id: String,
    pub at_unix_ms: u64,
    pub uptime_ms: u64,
    /// Mean bytes between samples.
    pub interval_bytes: u64,
    pub requests: u64,
    /// From here on a block counts as old.
    pub old_after_ms: u64,
    pub suspects: Suspects,
    pub tables: Tables,
    pub subsystems: Vec<Share>,
    pub apps: Vec<AppShare>,
    pub owners: Vec<Owner>,
    pub stacks: Vec<Stack>,
    pub containers: Vec<Container>,
    /// Addresses whose names are being looked up.
    pub names_pending: usize,
    /// The newest snapshot of this process.
    pub last_snapshot: Option<String>,
    pub totals: Totals,
    /// Names for the numbers of apps above; of those that are gone there is none.
    #[serde(default)]
    pub app_names: BTreeMap<u32, String>,
}

/// Stacks and containers by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspects {
    pub growing: u64,
    pub probable: u64,
    pub leak: u64,
}

/// How full the fixed tables are, and what found no room in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    pub samples: u64,
    pub samples_dropped: u64,
    pub stacks: u64,
    pub stacks_dropped: u64,
    pub containers_dropped: u64,
    /// Bytes that the live samples stand for.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub subsystem: Subsystem,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppShare {
    pub app: u32,
    pub bytes: u64,
}

/// A declared owner: what it holds by the samples, and what it said it would hold at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub name: String,
    pub bytes: u64,
    pub cap: u64,
}

/// The blocks of one stack that are alive and as old as was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stack {
    pub id: String,
    pub state: State,
    /// How long it has been in this state.
    pub state_for_ms: u64,
    pub samples: u64,
    pub bytes: u64,
    /// Of those that count as old.
    pub old_bytes: u64,
    /// Of any age.
    pub live_bytes: u64,
    pub subsystem: Subsystem,
    /// The app most of it is charged to; 0 is none.
    pub app: u32,
    pub owner: Option<String>,
    pub bytes_per_request: Option<f64>,
    pub bytes_per_hour: f64,
    /// Until memory is at its limit, if this goes on and nothing else does.
    pub limit_in_ms: Option<u64>,
    /// Old bytes since the stack was first seen to have any.
    pub graph: Graph,
    pub frames: Vec<Frame>,
}

/// A large block that grows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub state: State,
    pub state_for_ms: u64,
    pub bytes: u64,
    pub doublings: u32,
    pub age_ms: u64,
    /// `b` in `size ~ requests^b`.
    pub exponent: Option<f64>,
    pub bytes_per_request: Option<f64>,
    pub subsystem: Subsystem,
    pub app: u32,
    pub owner: Option<String>,
    pub graph: Graph,
    pub frames: Vec<Frame>,
}

/// One return address, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// In the file: what `addr2line -e FILE` wants.
    pub offset: String,
    /// File name of the module; empty for the program itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub module: String,
    /// The calls at this address, innermost first: more than one where functions were inlined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Call>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    pub function: String,
    /// `file:line`; empty when the binary does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
}

/// The allocator through time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// The last ten minutes, by the second.
    pub seconds: Vec<Total>,
    /// The last day, by 15 seconds.
    pub quarters: Vec<Total>,
}

// === impl Report ===

impl Report {
    /// What is said while nothing is watched.
    pub fn off() -> Self {
        Self {
            mode: Mode::Off,
            profile: Profile::default(),
            build_id: crate::stack::build_id().to_owned(),
            at_unix_ms: 0,
            uptime_ms: 0,
            interval_bytes: 0,
            requests: 0,
            old_after_ms: 0,
            suspects: Suspects::default(),
            tables: Tables::default(),
            subsystems: Vec::new(),
            apps: Vec::new(),
            owners: Vec::new(),
            stacks: Vec::new(),
            containers: Vec::new(),
            names_pending: 0,
            last_snapshot: None,
            totals: Totals::default(),
            app_names: BTreeMap::new(),
        }
    }

    /// An app as people know it; by its number when it has gone.
    pub fn app(&self, number: u32) -> String {
        self.app_names.get(&number).cloned().unwrap_or_else(|| format!("#{number}"))
    }

    /// Numbers of all apps that are told of.
    pub(super) fn apps_named(&self) -> BTreeSet<u32> {
        let shares = self.apps.iter().map(|share| share.app);
        let stacks = self.stacks.iter().map(|stack| stack.app);
        let containers = self.containers.iter().map(|container| container.app);
        shares.chain(stacks).chain(containers).filter(|app| *app != 0).collect()
    }
}

// === impl Frame ===

impl Frame {
    /// The innermost call, or where it is when nobody knows its name.
    pub fn label(&self) -> String {
        match self.calls.first() {
            Some(call) => call.function.clone(),
            None if self.module.is_empty() => self.offset.clone(),
            None => format!("{}+{}", self.module, self.offset),
        }
    }
}

// === impl Mode ===

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Dumps => "dumps",
            Self::Off => "off",
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn report(stacks: Vec<Stack>) -> Report {
        Report { build_id: "b0".to_owned(), stacks, interval_bytes: 1 << 19, ..Report::off() }
    }

    /// One sample of `bytes` bytes from a stack whose functions are named, innermost first.
    pub(in super::super) fn stack(bytes: u64, functions: &[&str]) -> Stack {
        let frame = |function: &&str| Frame {
            offset: format!(
                "{:#x}",
                u64::from(function.as_bytes()[0]) << 8 | function.len() as u64
            ),
            module: String::new(),
            calls: vec![Call { function: (*function).to_owned(), place: "a.rs:7".to_owned() }],
        };
        Stack {
            id: String::new(),
            state: State::default(),
            state_for_ms: 0,
            samples: 1,
            bytes,
            old_bytes: bytes,
            live_bytes: bytes,
            subsystem: Subsystem::default(),
            app: 0,
            owner: None,
            bytes_per_request: None,
            bytes_per_hour: 0.0,
            limit_in_ms: None,
            graph: Graph::new(1_000),
            frames: functions.iter().map(frame).collect(),
        }
    }
}
