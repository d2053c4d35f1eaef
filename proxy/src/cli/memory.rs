//! `ferrule memory`: what holds memory on a running node, since when, and what seems to leak.

mod show;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, kill_process};
use telemetry::heapwatch::{diff, flamegraph, pprof, snapshot};

use super::{Exit, Failure, Node, answer, chain, client};
use crate::admin::Status;
use crate::admin::memory::Page;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Memory {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    node: Node,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write old and alive blocks as a pprof profile.
    Profile(Output),
    /// Write old and alive blocks as a flame graph (SVG).
    Flamegraph(Output),
    /// Say what grew between two snapshots, or two saved /memory.json, by stack.
    Diff { before: PathBuf, after: PathBuf },
    /// Have the node write a snapshot to its storage folder.
    Snapshot {
        #[command(flatten)]
        node: Node,
    },
}

#[derive(Debug, Args)]
struct Output {
    /// File to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Blocks of any age, not only those that may have leaked.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    node: Node,
}

const OLD: &str = "/memory.json";
const ALL: &str = "/memory.json?all";

/// Longest wait until a node has looked up names; then addresses have to do.
const NAMES_PATIENCE: Duration = Duration::from_secs(25);

/// Longest wait for a snapshot.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(200);

// === impl Memory ===

impl Memory {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { command, node } = self;
        match command {
            None => {
                let (json, page) = named(&node.socket()?, OLD)?;
                if node.json { answer(&json) } else { answer(show::page(&page)) }
            }
            Some(Command::Profile(output)) => output.write(|page| pprof::render(&page.heap)),
            Some(Command::Flamegraph(output)) => {
                output.write(|page| flamegraph::render(&page.heap, "Old and alive").into_bytes())
            }
            Some(Command::Diff { before, after }) => {
                let read = |path: &Path| {
                    let failed = |error| Failure { exit: Exit::Usage, message: chain(&error) };
                    snapshot::read(path).map_err(failed)
                };
                let (before, after) = (read(&before)?, read(&after)?);
                answer(show::changes(&diff::changes(&before, &after)))
            }
            Some(Command::Snapshot { node }) => take_snapshot(&node.socket()?),
        }
    }
}

impl Output {
    fn write(self, render: impl FnOnce(&Page) -> Vec<u8>) -> Result<Exit, Failure> {
        let Self { output, all, node } = self;
        let (_, page) = named(&node.socket()?, if all { ALL } else { OLD })?;
        fs::write(&output, render(&page)).map_err(|error| Failure {
            exit: Exit::Unavailable,
            message: format!("{} cannot be written: {error}", output.display()),
        })?;
        let bytes: u64 = page.heap.stacks.iter().map(|stack| stack.bytes).sum();
        let size = flamegraph::bytes(bytes);
        let stacks = page.heap.stacks.len();
        answer(format!("{}: {size} in {stacks} stacks\n", output.display()))
    }
}

/// The page with names, as far as the node finds them in time.
fn named(socket: &Path, page: &'static str) -> Result<(String, Page), Failure> {
    let deadline = Instant::now() + NAMES_PATIENCE;
    loop {
        let (json, told): (_, Page) = client::page(socket, page)?;
        if told.heap.names_pending == 0 || Instant::now() >= deadline {
            return Ok((json, told));
        }
        thread::sleep(POLL);
    }
}

/// Tells the node by signal, and waits until it names a new file.
fn take_snapshot(socket: &Path) -> Result<Exit, Failure> {
    let unavailable = |message: String| Failure { exit: Exit::Unavailable, message };
    let last = || -> Result<Option<String>, Failure> {
        let (_, page): (_, Page) = client::page(socket, "/memory.json?stacks=1")?;
        Ok(page.heap.last_snapshot)
    };
    let before = last()?;
    let (_, status): (_, Status) = client::page(socket, "/status")?;
    let pid = i32::try_from(status.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| unavailable("the node does not say who it is".to_owned()))?;
    kill_process(pid, Signal::USR1)
        .map_err(|error| unavailable(format!("the node cannot be signalled: {error}")))?;
    let deadline = Instant::now() + SNAPSHOT_PATIENCE;
    while Instant::now() < deadline {
        match last()? {
            Some(path) if Some(&path) != before.as_ref() => return answer(path + "\n"),
            _ => thread::sleep(POLL),
        }
    }
    Err(unavailable("the node wrote no snapshot; its log says why".to_owned()))
}
