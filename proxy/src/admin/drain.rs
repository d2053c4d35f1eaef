//! `POST /drain` and `POST /undrain`: a node that gets no new work for a while.

use serde::{Deserialize, Serialize};

use super::control::{Call, Control, Refusal, Reply};

/// Who wants no new work for the node, and what it still has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draining {
    /// `operator`, who can take it back, or `stop`.
    pub by: String,
    /// Seconds since 1970.
    pub since: f64,
    /// The same as a span until now.
    pub seconds: f64,
    /// Connections of clients that are open.
    pub connections: u64,
    /// Requests in flight, those of other nodes and WebSockets among them.
    pub requests: u64,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether that is news.
    pub changed: bool,
    /// Absent when the node serves.
    pub draining: Option<Draining>,
}

/// The drain cannot be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopping;

// === impl Draining ===

impl Draining {
    pub fn is_empty(&self) -> bool {
        self.connections == 0 && self.requests == 0
    }
}

pub(super) fn drain(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    Reply::json(control.drain(&call.caller))
}

pub(super) fn undrain(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    match control.undrain(&call.caller) {
        Ok(answer) => Reply::json(answer),
        Err(Stopping) => Err(Refusal::conflict("the node is stopping, which cannot be taken back")),
    }
}
