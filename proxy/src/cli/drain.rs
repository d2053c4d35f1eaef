//! `ferrule drain` and `ferrule undrain`: no new work for a node, and work again.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::json;

use super::client::{self, ClientError};
use super::table::{counted, span};
use super::{Exit, Failure, Node, answer, chain, complain};
use crate::admin;
use crate::admin::drain::{Answer, Draining};

#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    node: Node,
    /// Wait until no connection and no request is left, and say on stderr how many there are.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct Undrain {
    #[command(flatten)]
    node: Node,
}

/// How often the node is asked what is left.
const LOOK: Duration = Duration::from_millis(500);

// === impl Drain ===

impl Drain {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { node, wait } = self;
        let socket = node.socket()?;
        let (mut json, mut told): (String, Answer) =
            client::command(&socket, Method::POST, "/drain", &json!({}))?;
        if wait {
            told.draining = wait_until_empty(&socket)?;
            json = json!(told).to_string() + "\n";
        }
        if node.json { answer(&json) } else { answer(text(&told)) }
    }
}

/// What was left at the end; `None` when the node has ended, and everything with it.
fn wait_until_empty(socket: &Path) -> Result<Option<Draining>, Failure> {
    let mut last = None;
    loop {
        let status = match client::try_page::<admin::Status>(socket, "/status") {
            Ok((_, status)) => status,
            Err(ClientError::Nobody(_)) => return Ok(None),
            Err(error) => {
                let message = chain(&error);
                return Err(Failure { exit: Exit::Unavailable, message });
            }
        };
        let Some(draining) = status.drain else {
            let message = "somebody took the drain back".to_owned();
            return Err(Failure { exit: Exit::Unavailable, message });
        };
        if draining.is_empty() {
            return Ok(Some(draining));
        }
        let left = left(&draining);
        if last.as_ref() != Some(&left) {
            complain(&left);
            last = Some(left);
        }
        sleep(LOOK);
    }
}

fn text(told: &Answer) -> String {
    let Some(draining) = &told.draining else { return "the node has ended\n".to_owned() };
    let again = if told.changed { "" } else { "already " };
    let since = span(draining.seconds);
    format!("{again}draining for {since}: {}\n", left(draining))
}

fn left(draining: &Draining) -> String {
    let Draining { connections, requests, .. } = draining;
    format!("{} and {} left", counted(*connections, "connection"), counted(*requests, "request"))
}

// === impl Undrain ===

impl Undrain {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { node } = self;
        let (json, told): (_, Answer) =
            client::command(&node.socket()?, Method::POST, "/undrain", &json!({}))?;
        if node.json {
            return answer(&json);
        }
        answer(if told.changed { "serving again\n" } else { "was not drained\n" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said() {
        let draining = Draining {
            by: "operator".to_owned(),
            since: 0.0,
            seconds: 3.0,
            connections: 1,
            requests: 0,
        };
        let told = Answer { changed: true, draining: Some(draining) };
        assert_eq!(text(&told), "draining for 3.0 s: 1 connection and 0 requests left\n");
        let told = Answer { changed: false, ..told };
        assert!(text(&told).starts_with("already draining for 3.0 s: "));
    }
}
