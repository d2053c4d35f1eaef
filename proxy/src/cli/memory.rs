//! `ferrule memory`: what holds memory on a running node, since when, and what seems to leak.

mod show;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;
use telemetry::heapwatch::{diff, flamegraph, pprof, snapshot};

use super::{Exit, Failure, Node, answer, chain, client};
use crate::admin::memory::{Page, Written};

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
            Some(Command::Snapshot { node }) => take_snapshot(&node),
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

/// Has the node write one; says where.
fn take_snapshot(node: &Node) -> Result<Exit, Failure> {
    let (json, written): (_, Written) =
        client::command(&node.socket()?, Method::POST, "/memory/snapshot", &json!({}))?;
    answer(if node.json { json } else { written.path + "\n" })
}
