//! What a look at the node comes to: the sum of what it says of itself and what a client sees.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

/// The node at one look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    Serving,
    Draining { by: Asker, left: u64 },
    Failing(Fault),
}

/// Who wants a node to drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Somebody who wants its clients to go elsewhere; it goes on serving until they have.
    Operator,
    /// Whoever stops it, perhaps to start it again at once.
    Stop,
}

/// Why traffic should not come here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The node does not say how it is.
    Silent(String),
    /// A thread has not come back from a poll for so long that its connections are stuck.
    Hangs {
        lasted: Duration,
    },
    /// Memory is short: nothing is accepted.
    Pressure,
    NotReady(String),
    /// What it would serve by is too old, or was never complete.
    Stale {
        age: Option<Duration>,
    },
    /// A request through an anycast address did not get the answer it should.
    Probe {
        address: SocketAddr,
        error: String,
    },
}

/// From when on a node that answers is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub inventory_age_max: Duration,
    /// A thread that hangs for longer; none where the node would not drain for it.
    pub hang_max: Option<Duration>,
}

/// What of a node's `/status` matters here. Fields that an older node does not have are as if all
/// were well.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Said {
    pub pid: u32,
    pub generation: u64,
    pub ready: bool,
    pub not_ready_reason: Option<String>,
    pub draining: bool,
    #[serde(default)]
    pub drain: Option<Drain>,
    pub inventory_age_seconds: Option<f64>,
    pub connections: u64,
    #[serde(default)]
    pub hangs_for_seconds: f64,
    #[serde(default)]
    pub pressure: Option<Pressure>,
    pub peers: Vec<Peer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Drain {
    pub by: String,
    pub connections: u64,
    pub requests: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pressure {
    pub level: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Peer {
    pub reachable: bool,
    #[serde(default)]
    pub draining: bool,
}

// === impl Said ===

impl Said {
    /// How the node is, by its own account.
    pub fn sight(&self, limits: &Limits) -> Sight {
        let Limits { inventory_age_max, hang_max } = limits;
        let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let hangs = span(self.hangs_for_seconds);
        if hang_max.is_some_and(|max| hangs >= max) {
            return Sight::Failing(Fault::Hangs { lasted: hangs });
        }
        if self.draining {
            return self.draining();
        }
        if self.pressure.as_ref().is_some_and(Pressure::refuses) {
            return Sight::Failing(Fault::Pressure);
        }
        if !self.ready {
            let reason = self.not_ready_reason.as_deref().unwrap_or("it does not say why");
            return Sight::Failing(Fault::NotReady(reason.to_owned()));
        }
        let age = self.inventory_age_seconds.map(span);
        if age.is_none_or(|age| age > *inventory_age_max) {
            return Sight::Failing(Fault::Stale { age });
        }
        Sight::Serving
    }

    fn draining(&self) -> Sight {
        let (by, left) = match &self.drain {
            Some(drain) => (drain.by.as_str(), drain.connections.max(drain.requests)),
            None => ("stop", self.connections),
        };
        let by = if by == "operator" { Asker::Operator } else { Asker::Stop };
        Sight::Draining { by, left }
    }

    /// Other nodes to which clients could go.
    pub fn peers_serving(&self) -> usize {
        self.peers.iter().filter(|peer| peer.reachable && !peer.draining).count()
    }
}

// === impl Pressure ===

impl Pressure {
    fn refuses(&self) -> bool {
        matches!(self.level.as_str(), "refuse" | "reset")
    }
}

// === impl Fault ===

impl Fault {
    /// What kind of fault, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Silent(_) => "silent",
            Self::Hangs { .. } => "hangs",
            Self::Pressure => "pressure",
            Self::NotReady(_) => "not_ready",
            Self::Stale { .. } => "stale",
            Self::Probe { .. } => "probe",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(error) => write!(f, "the node does not say how it is: {error}"),
            Self::Hangs { lasted } => {
                write!(f, "a thread of the node has hung for {:.1} s", lasted.as_secs_f64())
            }
            Self::Pressure => f.write_str("the node is so short of memory that it accepts nobody"),
            Self::NotReady(reason) => write!(f, "the node is not ready: {reason}"),
            Self::Stale { age: Some(age) } => {
                write!(f, "the node's inventory is {:.0} s old", age.as_secs_f64())
            }
            Self::Stale { age: None } => f.write_str("the node's inventory was never complete"),
            Self::Probe { address, error } => write!(f, "a request through {address}: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        inventory_age_max: Duration::from_secs(600),
        hang_max: Some(Duration::from_secs(10)),
    };

    fn well() -> Said {
        let peer = |reachable, draining| Peer { reachable, draining };
        Said {
            pid: 1,
            generation: 1,
            ready: true,
            not_ready_reason: None,
            draining: false,
            drain: None,
            inventory_age_seconds: Some(4.0),
            connections: 7,
            hangs_for_seconds: 0.1,
            pressure: Some(Pressure { level: "shed".to_owned() }),
            peers: vec![peer(true, false), peer(true, true), peer(false, false)],
        }
    }

    fn fault(said: Said) -> String {
        match said.sight(&LIMITS) {
            Sight::Failing(fault) => fault.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_that_serves_is_seen_to() {
        assert_eq!(well().sight(&LIMITS), Sight::Serving);
    }

    #[test]
    fn each_fault_is_one_for_itself() {
        let reason = Some("starting".to_owned());
        let starting = Said { ready: false, not_ready_reason: reason, ..well() };
        assert_eq!(fault(starting), "the node is not ready: starting");
        let stale = Said { inventory_age_seconds: Some(601.0), ..well() };
        assert_eq!(fault(stale), "the node's inventory is 601 s old");
        let empty = Said { inventory_age_seconds: None, ..well() };
        assert_eq!(fault(empty), "the node's inventory was never complete");
        for level in ["refuse", "reset"] {
            let short = Said { pressure: Some(Pressure { level: level.to_owned() }), ..well() };
            assert!(fault(short).contains("short of memory"));
        }
        let hangs = Said { hangs_for_seconds: 10.0, ..well() };
        assert_eq!(fault(hangs), "a thread of the node has hung for 10.0 s");
    }

    #[test]
    fn a_node_that_drains_does_so_however_it_is_and_one_that_hangs_drains_no_more() {
        let draining = Said { draining: true, ready: false, ..well() };
        assert_eq!(draining.sight(&LIMITS), Sight::Draining { by: Asker::Stop, left: 7 });
        let by = |by: &str| Some(Drain { by: by.to_owned(), connections: 2, requests: 3 });
        let asked = Said { drain: by("operator"), ..draining.clone() };
        assert_eq!(asked.sight(&LIMITS), Sight::Draining { by: Asker::Operator, left: 3 });
        let stopping = Said { drain: by("stop"), ..draining.clone() };
        assert_eq!(stopping.sight(&LIMITS), Sight::Draining { by: Asker::Stop, left: 3 });
        let hangs = Said { hangs_for_seconds: 11.0, ..draining };
        assert!(fault(hangs.clone()).contains("hung"));
        let patient = Limits { hang_max: None, ..LIMITS };
        assert_eq!(hangs.sight(&patient), Sight::Draining { by: Asker::Stop, left: 7 });
    }

    #[test]
    fn peers_that_drain_or_cannot_be_reached_do_not_count() {
        assert_eq!(well().peers_serving(), 1);
    }

    #[test]
    fn a_status_without_the_newer_fields_is_understood() {
        let text = r#"{ "pid": 1, "generation": 1, "ready": true, "not_ready_reason": null,
            "draining": false, "inventory_age_seconds": 0.5, "connections": 0,
            "peers": [{ "id": "b", "region": "fra", "rtt_ms": null, "reachable": true }] }"#;
        let said: Said = serde_json::from_str(text).expect("what an older node says");
        assert_eq!(said.sight(&LIMITS), Sight::Serving);
        assert_eq!(said.peers_serving(), 1);
    }
}
