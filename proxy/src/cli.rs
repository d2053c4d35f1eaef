//! The command line: what can be asked, and which exit code says how it went.
//!
//! Answers go to stdout, complaints to stderr. Exit codes are those of sysexits.

mod run;
mod check;
mod demo;
mod client;
mod status;
mod list;
mod requests;
mod trace;
mod filter;
mod announce;
mod drain;
mod upgrade;
mod memory;
mod symbolize;
mod postmortem;
mod completions;
pub(crate) mod table;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use control::document::Problem;
use telemetry::error::chain;

use crate::config::{self, Config};

/// A node of an anycast edge: terminates TLS, speaks HTTP, sends each request to the nearest instance.
#[derive(Debug, Parser)]
#[command(name = "ferrule", version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node.
    Run(run::Run),
    /// Check a configuration and everything it names; nothing is bound.
    Check(check::Check),
    /// Run an edge of two regions on the loopback, with things to try.
    Demo(demo::Demo),
    /// Say how a running node does.
    Status(status::Status),
    /// Send no new work to a running node, for maintenance; it goes on running.
    Drain(drain::Drain),
    /// Send work to it again.
    Undrain(drain::Undrain),
    /// Connections and requests of a running node: what each waits for, and for how long.
    Requests(requests::Requests),
    /// Say how the last process of a node ended; the node need not run.
    Postmortem(postmortem::Postmortem),
    /// Apps of a running node.
    #[command(subcommand)]
    App(list::App),
    /// Instances that a running node knows.
    #[command(subcommand)]
    Instance(list::Instance),
    /// Certificates that a running node offers.
    #[command(subcommand)]
    Cert(list::Cert),
    /// What holds memory on a running node, since when, and what seems to leak.
    Memory(memory::Memory),
    /// Names for addresses of this binary: asked by a node, on stdin.
    #[command(hide = true)]
    Symbolize,
    /// Make single requests verbose, and read what was recorded of them.
    #[command(subcommand)]
    Trace(trace::Trace),
    /// Replace the process of a running node by another; no connection is lost.
    Upgrade(upgrade::Upgrade),
    /// The kernel's part of admission.
    #[command(subcommand)]
    Filter(filter::Filter),
    /// Let BGP announce the node's prefixes while it serves, and only then.
    Announce(announce::Announce),
    /// Print the completions of a shell.
    Completions(completions::Completions),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Success = 0,
    /// Bad configuration or usage.
    Usage = 64,
    /// Something that is needed is not there.
    Unavailable = 69,
    /// A fault of our own.
    Internal = 70,
    NoPermission = 77,
}

/// Why a command could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Failure {
    exit: Exit,
    message: String,
}

/// The running node that a command asks.
#[derive(Debug, Args)]
struct Node {
    /// Configuration of the node, which names its socket.
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// Admin socket of the node [default: /run/ferrule/admin.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

// === impl Arguments ===

impl Arguments {
    /// Reads the command line; `Err` is the exit code when there is nothing to run.
    ///
    /// # Errors
    ///
    /// After help or the version was printed (0), or a complaint (64).
    pub fn read() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| {
            // Where it goes may be closed; there is nobody left to tell.
            drop(error.print());
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
            exit.into()
        })
    }

    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        let ended = match self.command {
            Command::Run(command) if command.wants_init() => match command.supervise() {
                Ok(code) => return code.into(),
                Err(failure) => Err(failure),
            },
            Command::Run(command) => command.run(),
            Command::Check(command) => command.run(),
            Command::Demo(command) => command.run(),
            Command::Status(command) => command.run(),
            Command::Drain(command) => command.run(),
            Command::Undrain(command) => command.run(),
            Command::Requests(command) => command.run(),
            Command::Postmortem(command) => command.run(),
            Command::App(list::App::List(node)) => list::apps(&node),
            Command::Instance(list::Instance::List(node)) => list::instances(&node),
            Command::Cert(list::Cert::List(node)) => list::certificates(&node),
            Command::Memory(command) => command.run(),
            Command::Symbolize => symbolize::run(),
            Command::Trace(command) => command.run(),
            Command::Upgrade(command) => command.run(),
            Command::Filter(command) => command.run(),
            Command::Announce(command) => command.run(),
            Command::Completions(command) => command.run(),
        };
        let exit = ended.unwrap_or_else(|Failure { exit, message }| {
            complain(&format!("ferrule: {message}"));
            exit
        });
        exit.into()
    }
}

// === impl Node ===

impl Node {
    fn socket(&self) -> Result<PathBuf, Failure> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => Ok(read(file)?.0.admin.socket),
            (None, None) => Ok(config::Admin::default().socket),
        }
    }
}

/// The configuration in `file` with its warnings; all its problems are printed when it has errors.
fn read(file: &Path) -> Result<(Config, Vec<Problem>), Failure> {
    config::read::read(file).map_err(|problems| {
        problems.iter().for_each(|problem| complain(&problem.to_string()));
        let message = format!("{} cannot be used", file.display());
        Failure { exit: Exit::Usage, message }
    })
}

/// Prints an answer. A reader that went away (`| head`) has what it wanted.
fn answer(text: impl AsRef<str>) -> Result<Exit, Failure> {
    match io::stdout().lock().write_all(text.as_ref().as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let message = format!("the answer cannot be written: {error}");
            Err(Failure { exit: Exit::Internal, message })
        }
        _ => Ok(Exit::Success),
    }
}

fn complain(line: &str) {
    // A closed stderr leaves nobody to tell.
    drop(writeln!(io::stderr(), "{line}"));
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests;
