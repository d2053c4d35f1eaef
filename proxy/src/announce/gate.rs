//! When to announce, to drain and to withdraw. Pure: it is told what was seen, and the time.
//!
//! ```text
//!              serving for `rise`                asked to drain
//!  Withdrawn ────────────────────▶ Announced ────────────────────▶ Draining
//!      ▲ ▲                            │  ▲                          │  │
//!      │ └── failing `fall` times ────┘  └── serving for `rise` ────┘  │
//!      │     unless it is the last                                     │
//!      └──── empty after `settle`, `drain_max` over, or failing ───────┘
//! ```
//!
//! What lasts for less than `fall` looks changes nothing, so a restart or an upgrade of the node
//! does not: each change re-hashes the router's paths and costs healthy nodes connections. That goes
//! for a node that drains because it is stopped, too; one that an operator drains is left at once.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::sight::{Asker, Fault, Sight};

/// What BGP says of this node's prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody has told yet.
    Unknown,
    Withdrawn,
    Announced,
    /// Announced as a last resort: with the graceful-shutdown community, and a longer path.
    Draining,
}

/// How patient the gate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The node must have served for so long before it is announced.
    pub rise: Duration,
    /// Looks in a row that must fail before it is withdrawn.
    pub fall: u32,
    /// Shortest time between the two steps of a drain: routers far away learn of the first.
    pub settle: Duration,
    /// Longest time between them.
    pub drain_max: Duration,
    /// So many other nodes must serve before this one is withdrawn for its health.
    pub peers_min: u32,
    /// Looks further apart than this do not add up: what was between them, nobody saw.
    pub gap_max: Duration,
}

/// The state, and what was seen lately.
#[derive(Debug)]
pub struct Gate {
    rules: Rules,
    state: State,
    since: Instant,
    serving_since: Option<Instant>,
    looked: Option<Instant>,
    failures: u32,
    drains: u32,
    empty: u32,
    /// An operator wants it to go.
    is_asked: bool,
    is_held: bool,
}

/// A step that is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub from: State,
    pub to: State,
    pub why: Why,
}

/// What led to a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    Served { lasted: Duration },
    Failed { fault: Fault, looks: u32 },
    Drains { by: Asker },
    Empty,
    Overdue { after: Duration },
}

/// What a look led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Stay,
    Change(Change),
    /// It would be withdrawn for this, if it were not the last; said once in a row.
    Hold(Why),
}

/// A node that is empty at one look only may be between two connections.
const EMPTY_MIN: u32 = 2;

// === impl Gate ===

impl Gate {
    pub fn new(rules: Rules, now: Instant) -> Self {
        Self {
            rules,
            state: State::Unknown,
            since: now,
            serving_since: None,
            looked: None,
            failures: 0,
            drains: 0,
            empty: 0,
            is_asked: false,
            is_held: false,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// When the state was entered, or found.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Looks in a row that failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether only the guard keeps it announced.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Goes on from what is in force.
    pub fn adopt(&mut self, state: State, now: Instant) {
        (self.state, self.since) = (state, now);
    }

    /// Takes one look at the node; `peers` are the others that serve, as far as anybody knows.
    pub fn look(&mut self, sight: &Sight, peers: Option<usize>, now: Instant) -> Verdict {
        self.count(sight, now);
        match (self.state, sight) {
            (State::Announced, Sight::Serving) => Verdict::Stay,
            (State::Unknown | State::Withdrawn | State::Draining, Sight::Serving) => {
                match self.served(now) {
                    Some(lasted) => self.change(State::Announced, Why::Served { lasted }, now),
                    None => Verdict::Stay,
                }
            }
            (State::Unknown | State::Announced, Sight::Draining { by, .. }) => {
                let looks_min = if *by == Asker::Operator { 1 } else { self.rules.fall };
                if self.drains < looks_min {
                    return Verdict::Stay;
                }
                self.change(State::Draining, Why::Drains { by: *by }, now)
            }
            (State::Draining, Sight::Draining { .. }) => {
                let lasted = now - self.since;
                if lasted >= self.rules.drain_max {
                    self.withdraw(Why::Overdue { after: lasted }, peers, now)
                } else if self.empty >= EMPTY_MIN && lasted >= self.rules.settle {
                    self.withdraw(Why::Empty, peers, now)
                } else {
                    Verdict::Stay
                }
            }
            (State::Unknown | State::Announced | State::Draining, Sight::Failing(fault)) => {
                self.failing(fault, peers, now)
            }
            (State::Withdrawn, Sight::Draining { .. } | Sight::Failing(_)) => Verdict::Stay,
        }
    }

    fn count(&mut self, sight: &Sight, now: Instant) {
        let gap = self.looked.replace(now).is_some_and(|last| now - last > self.rules.gap_max);
        if gap || *sight != Sight::Serving {
            self.serving_since = None;
        }
        match sight {
            Sight::Serving => {
                self.serving_since.get_or_insert(now);
                (self.failures, self.drains, self.empty) = (0, 0, 0);
                (self.is_asked, self.is_held) = (false, false);
            }
            Sight::Draining { by, left } => {
                self.drains = self.drains.saturating_add(1);
                self.empty = if *left == 0 { self.empty.saturating_add(1) } else { 0 };
                self.is_asked = *by == Asker::Operator;
                self.failures = 0;
            }
            Sight::Failing(_) => {
                self.failures = self.failures.saturating_add(1);
                (self.drains, self.empty) = (0, 0);
            }
        }
    }

    fn served(&self, now: Instant) -> Option<Duration> {
        let lasted = now - self.serving_since?;
        (lasted >= self.rules.rise).then_some(lasted)
    }

    fn failing(&mut self, fault: &Fault, peers: Option<usize>, now: Instant) -> Verdict {
        if self.failures < self.rules.fall {
            return Verdict::Stay;
        }
        let why = Why::Failed { fault: fault.clone(), looks: self.failures };
        self.withdraw(why, peers, now)
    }

    /// The one way out, and the guard before it.
    fn withdraw(&mut self, why: Why, peers: Option<usize>, now: Instant) -> Verdict {
        let is_last = peers.unwrap_or(0) < self.rules.peers_min as usize;
        if is_last && !self.is_asked {
            let was_held = std::mem::replace(&mut self.is_held, true);
            return if was_held { Verdict::Stay } else { Verdict::Hold(why) };
        }
        self.change(State::Withdrawn, why, now)
    }

    fn change(&mut self, to: State, why: Why, now: Instant) -> Verdict {
        let from = std::mem::replace(&mut self.state, to);
        self.since = now;
        self.is_held = false;
        Verdict::Change(Change { from, to, why })
    }
}

// === impl State ===

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Withdrawn => "withdrawn",
            Self::Announced => "announced",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Why ===

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served { lasted } => write!(f, "has served for {:.1} s", lasted.as_secs_f64()),
            Self::Failed { fault, looks } => write!(f, "failed {looks} times in a row: {fault}"),
            Self::Drains { by: Asker::Operator } => f.write_str("the node is being drained"),
            Self::Drains { by: Asker::Stop } => f.write_str("the node is being stopped"),
            Self::Empty => f.write_str("the node has drained: no connection is left"),
            Self::Overdue { after } => {
                write!(f, "the node has drained for {:.0} s", after.as_secs_f64())
            }
        }
    }
}

#[cfg(test)]
mod tests;
