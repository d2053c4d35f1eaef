//! `ferrule upgrade`: the node's process is replaced, and this says how that goes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::client::ClientError;
use super::table::counted;
use super::{Exit, Failure, Node, answer, client, complain};
use crate::admin;
use crate::admin::upgrade::{Ask, Line, Outcome};
use crate::handoff::manifest::Step;
use crate::handoff::predecessor::Progress;

#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// Program to start instead [default: the file that the node was started from, as it is now]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    #[command(flatten)]
    node: Node,
}

/// Between two looks at who the node is, when the one that carried out the upgrade is gone.
const LOOK: Duration = Duration::from_millis(50);

// === impl Upgrade ===

impl Upgrade {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { binary, node } = self;
        // What is relative is so to this process, not to the node.
        let binary = binary.map(|path| std::path::absolute(&path).unwrap_or(path));
        let socket = node.socket()?;
        // A closed stdout ends nothing: the node goes on by itself.
        let say = |json: &str, line: &Line| {
            drop(answer(if node.json { json.to_owned() } else { text(line) }));
        };
        let (mut outcome, mut successor, mut patience) = (None, None, Duration::ZERO);
        let followed = client::follow(&socket, "/upgrade", &Ask { binary }, |json, line: Line| {
            say(json, &line);
            match line {
                Line::Outcome(Outcome::Begins { seconds_max }) => {
                    patience = Duration::from_secs(seconds_max);
                }
                Line::Outcome(last) => outcome = Some(last),
                Line::Progress(Progress::Spawned { pid, .. }) => successor = Some(pid),
                Line::Progress(_) => {}
            }
        });
        // Who was to say how it ends may be gone, and the successor the node all the same.
        if outcome.is_none()
            && let Some(pid) = successor
            && let Some(generation) = generation_of(&socket, pid, patience)
        {
            let line = Line::Outcome(Outcome::Succeeded { pid, generation });
            let json = serde_json::to_string(&line).expect("its keys are strings") + "\n";
            say(&json, &line);
            return Ok(Exit::Success);
        }
        followed?;
        match outcome {
            Some(Outcome::Serves { .. } | Outcome::Succeeded { .. }) => Ok(Exit::Success),
            Some(Outcome::Failed { reason, configuration }) => {
                let exit = if configuration { Exit::Usage } else { Exit::Unavailable };
                complain("the node goes on as it was");
                Err(Failure { exit, message: reason })
            }
            Some(Outcome::Begins { .. }) | None => {
                let message = "the node broke off before the upgrade was over".to_owned();
                Err(Failure { exit: Exit::Unavailable, message })
            }
        }
    }
}

/// The generation of the process `pid`, once it is the node: within `patience`, unless nobody is or
/// another process goes on.
fn generation_of(socket: &Path, pid: u32, patience: Duration) -> Option<u64> {
    let deadline = Instant::now() + patience;
    loop {
        // The socket is the one that the successor was given: it answers there once it serves.
        match client::try_page::<admin::Status>(socket, "/status") {
            Ok((_, status)) => return (status.pid == pid).then_some(status.generation),
            Err(ClientError::Nobody(_)) => return None,
            Err(_) if Instant::now() >= deadline => return None,
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// A line for people; empty where nothing is new for them.
fn text(line: &Line) -> String {
    match line {
        Line::Progress(Progress::Spawned { pid, program }) => {
            format!("started pid {pid}: {program}\n")
        }
        Line::Progress(Progress::Sent { sockets }) => {
            format!("it was given {}\n", counted(*sockets as u64, "socket"))
        }
        Line::Progress(Progress::Successor { step }) => match step {
            Step::Started | Step::Hello | Step::Adopted => String::new(),
            Step::Loaded => "it has loaded catalog, certificates and apps\n".to_owned(),
            Step::Ready => "it accepts connections\n".to_owned(),
            Step::Serving => "it serves\n".to_owned(),
        },
        Line::Outcome(Outcome::Serves { pid, generation, old }) => {
            let connections = counted(old.connections, "connection");
            let seconds = old.seconds_left;
            format!(
                "pid {pid} is generation {generation}; \
                 the old one drains: {connections}, for at most {seconds} s\n"
            )
        }
        Line::Outcome(Outcome::Succeeded { pid, generation }) => {
            format!(
                "pid {pid} is generation {generation}; the old one died before it could say so\n"
            )
        }
        Line::Progress(Progress::Committed)
        | Line::Outcome(Outcome::Begins { .. } | Outcome::Failed { .. }) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::manifest::Draining;

    #[test]
    fn a_line_says_what_happened() {
        let check = |json: &str, expected: &str| {
            let line: Line = serde_json::from_str(json).expect("a line");
            assert_eq!(text(&line), expected);
            assert_eq!(serde_json::to_string(&line).expect("it is JSON"), json);
        };
        check(
            r#"{"event":"spawned","pid":7,"program":"/usr/bin/ferrule"}"#,
            "started pid 7: /usr/bin/ferrule\n",
        );
        check(r#"{"event":"sent","sockets":1}"#, "it was given 1 socket\n");
        check(r#"{"event":"successor","step":"serving"}"#, "it serves\n");
        check(r#"{"event":"committed"}"#, "");
        check(
            r#"{"event":"succeeded","pid":7,"generation":2}"#,
            "pid 7 is generation 2; the old one died before it could say so\n",
        );
        let old = Draining { connections: 2, requests: 1, seconds_left: 30 };
        let line = Line::Outcome(Outcome::Serves { pid: 7, generation: 2, old });
        check(
            &serde_json::to_string(&line).expect("it is JSON"),
            "pid 7 is generation 2; the old one drains: 2 connections, for at most 30 s\n",
        );
    }
}
