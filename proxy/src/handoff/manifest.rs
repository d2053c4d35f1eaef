//! What the two processes say to each other.
//!
//! Either side's first message has the number of the manifest. Fields may be added without a new
//! number as long as who does not know them may do without; anything else is another manifest, and
//! two processes that do not speak the same part with a reason that names both numbers.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use telemetry::verbosity::Listed;

use super::channel::{MESSAGE_BYTES_MAX, Message};
use crate::listener::steer::Family;
use crate::tls::TicketKeys;

/// The manifest of this version.
pub const MANIFEST: u32 = 1;

/// What every manifest's first message has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    pub manifest: u32,
    /// Of the program, for people.
    pub version: String,
}

/// What the successor says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum FromSuccessor {
    /// Its configuration is read; it wants what there is.
    Hello {
        #[serde(flatten)]
        greeting: Greeting,
        pid: u32,
        /// A descriptor comes along: of the file with its counts.
        #[serde(default)]
        counts: bool,
    },
    /// How far it is.
    At { step: Step },
    /// It gives up.
    Refused {
        #[serde(flatten)]
        greeting: Greeting,
        reason: String,
        /// Its configuration is to blame.
        #[serde(default)]
        configuration: bool,
    },
    /// It ends because it was told to: the predecessor need not come back.
    Farewell,
}

/// Named points on the successor's way, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It runs, and has read nothing.
    Started,
    /// It has said who it is.
    Hello,
    /// It has every socket.
    Adopted,
    /// Catalog, certificates and inventory are loaded; it could serve.
    Loaded,
    /// It accepts connections, beside the predecessor.
    Ready,
    /// It is the node.
    Serving,
}

/// What the predecessor says.
#[derive(Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum FromPredecessor {
    Manifest(Manifest),
    Knowledge(Knowledge),
    /// Sockets, each with its descriptor, in this order.
    Sockets {
        places: Vec<Place>,
    },
    /// The node is the successor's.
    Go,
    /// Is it well? It says once more that it serves.
    Probe,
    /// A descriptor comes along: of a file with all that the predecessor has counted. Once before it
    /// stops accepting, then every second, and at its end.
    Metrics,
    /// How it does while it drains.
    Draining(Draining),
    /// It has done what it had begun, and ends.
    Farewell,
}

/// Everything but the sockets themselves.
#[derive(Serialize, Deserialize)]
pub struct Manifest {
    #[serde(flatten)]
    pub greeting: Greeting,
    pub pid: u32,
    /// The predecessor's; the successor's is one higher.
    pub generation: u64,
    /// Sockets that follow.
    pub sockets: usize,
    /// Apps that the predecessor knows. Who knows fewer has not read everything.
    pub apps: u64,
    /// Since when an operator has wanted no new work for the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<SystemTime>,
    /// A descriptor comes along: of the file with its counts.
    #[serde(default)]
    pub counts: bool,
    /// TLS session tickets resume with these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tickets: Option<TicketKeys>,
    /// Messages with what the predecessor knows; they follow before the sockets.
    #[serde(default)]
    pub knowledge: usize,
}

/// What the predecessor knows and nobody else; in as many messages as it needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Knowledge {
    /// Verbosity rules that are in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Listed>,
    /// Services of instances that their checks have taken out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unhealthy: Vec<Unhealthy>,
    /// Other nodes that answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Reached>,
}

/// A node that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub id: String,
    /// 0: not measured yet.
    pub rtt_microseconds: u64,
    /// It has said that it drains.
    #[serde(default)]
    pub draining: bool,
    /// Requests were sent there a short while ago: there are connections to it.
    #[serde(default)]
    pub connected: bool,
}

/// One service of one instance of this node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unhealthy {
    pub app: String,
    pub instance: String,
    pub internal_port: u16,
}

/// A process that finishes what it had begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    pub connections: u64,
    pub requests: u64,
    /// What is left then is cut.
    pub seconds_left: u64,
}

/// What a listening socket is for, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Place {
    /// One address and port of clients.
    Clients { address: SocketAddr },
    /// Clients, brought by the kernel from whole prefixes. Number 0 is the one the kernel knows.
    Steered { family: Family, number: usize },
    /// Other nodes.
    Peers { address: SocketAddr },
    /// The pages.
    Admin { address: SocketAddr },
    /// Pages and commands.
    AdminSocket { path: PathBuf },
    /// No socket: what ends when whoever started the node does.
    Leash,
}

// === impl Greeting ===

impl Greeting {
    /// This program's.
    pub fn own() -> Self {
        Self { manifest: MANIFEST, version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

// === impl FromSuccessor ===

impl Message for FromSuccessor {
    fn descriptors(&self) -> usize {
        matches!(self, Self::Hello { counts: true, .. }).into()
    }
}

// === impl FromPredecessor ===

impl Message for FromPredecessor {
    fn descriptors(&self) -> usize {
        match self {
            Self::Manifest(manifest) => manifest.counts.into(),
            Self::Sockets { places } => places.len(),
            Self::Metrics => 1,
            Self::Knowledge(_) | Self::Go | Self::Probe | Self::Draining(_) | Self::Farewell => 0,
        }
    }
}

// === impl Knowledge ===

impl Knowledge {
    /// The same in messages that are not too long. What is too long by itself is left out.
    pub fn parts(self) -> Vec<Self> {
        let Self { rules, unhealthy, nodes } = self;
        let mut parts = Parts::default();
        for rule in rules {
            parts.put(&rule.clone(), |part| part.rules.push(rule));
        }
        for unhealthy in unhealthy {
            parts.put(&unhealthy.clone(), |part| part.unhealthy.push(unhealthy));
        }
        for node in nodes {
            parts.put(&node.clone(), |part| part.nodes.push(node));
        }
        parts.done
    }

    pub fn add(&mut self, part: Self) {
        let Self { rules, unhealthy, nodes } = part;
        self.rules.extend(rules);
        self.unhealthy.extend(unhealthy);
        self.nodes.extend(nodes);
    }
}

#[derive(Default)]
struct Parts {
    done: Vec<Knowledge>,
    /// Of the last.
    bytes: usize,
}

impl Parts {
    fn put(&mut self, item: &impl Serialize, put: impl FnOnce(&mut Knowledge)) {
        /// What is around the items of a message.
        const FRAME: usize = 256;
        let bytes = serde_json::to_vec(item).map_or(MESSAGE_BYTES_MAX, |item| item.len() + 1);
        if bytes + FRAME > MESSAGE_BYTES_MAX {
            return;
        }
        if self.done.is_empty() || self.bytes + bytes + FRAME > MESSAGE_BYTES_MAX {
            self.done.push(Knowledge::default());
            self.bytes = 0;
        }
        self.bytes += bytes;
        put(self.done.last_mut().expect("one has just been made sure of"));
    }
}

// === impl Step ===

impl Step {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Hello => "hello",
            Self::Adopted => "adopted",
            Self::Loaded => "loaded",
            Self::Ready => "ready",
            Self::Serving => "serving",
        }
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clients { address } => write!(f, "clients at {address}"),
            Self::Steered { family, number } => write!(f, "steered {family:?} number {number}"),
            Self::Peers { address } => write!(f, "nodes at {address}"),
            Self::Admin { address } => write!(f, "admin pages at {address}"),
            Self::AdminSocket { path } => write!(f, "admin socket {}", path.display()),
            Self::Leash => f.write_str("the end of who started the node"),
        }
    }
}

#[cfg(test)]
mod tests;
