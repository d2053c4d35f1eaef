//! The command that replaces the process: what it takes, and the lines that say how it goes.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::control::{Call, Control, Refusal, Reply};
use crate::handoff::manifest::Draining;
use crate::handoff::predecessor::Progress;

/// `POST /upgrade`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Default: the one that this process was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
}

/// One line of the answer, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Progress(Progress),
    Outcome(Outcome),
}

/// The first line and the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Outcome {
    /// This is what happens next, for at most so long.
    Begins { seconds_max: u64 },
    /// The successor is the node; this process drains.
    Serves { pid: u32, generation: u64, old: Draining },
    /// The process that carried it out is gone, and its successor is the node. No process says this of
    /// itself: whoever asked for the upgrade finds it out.
    Succeeded { pid: u32, generation: u64 },
    /// This process is the node as before.
    Failed {
        reason: String,
        /// The configuration that the successor read is to blame.
        configuration: bool,
    },
}

/// The lines of an upgrade; it goes on when nobody reads them.
pub type Lines = mpsc::Receiver<Line>;

/// An answer that grows.
pub struct Story(Lines);

pub(super) fn begin(control: &dyn Control, call: &Call) -> Result<Reply, Refusal> {
    let ask: Ask = call.body()?;
    control.upgrade(&ask, &call.caller).map(Reply::Lines).map_err(Refusal::conflict)
}

// === impl Story ===

impl Story {
    pub(super) fn new(lines: Lines) -> Self {
        Self(lines)
    }
}

impl Body for Story {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(line) = ready!(self.0.poll_recv(context)) else { return Poll::Ready(None) };
        let mut text = serde_json::to_vec(&line).expect("its keys are strings");
        text.push(b'\n');
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}

impl From<Progress> for Line {
    fn from(progress: Progress) -> Self {
        Self::Progress(progress)
    }
}

impl From<Outcome> for Line {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}
