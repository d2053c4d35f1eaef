//! `ferrule announce`: the anycast gate; `ferrule announce status`: what it sees and does.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use telemetry::{log, panic};
use tokio::signal::unix::{SignalKind, signal};

use super::run::LogFormat;
use super::table::{columns, counted, span};
use super::{Exit, Failure, answer, chain};
use crate::announce::report::{Probed, Report, SocketError};
use crate::announce::{self, AnnounceError, Node};
use crate::config::{Admin, Config};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Announce {
    #[command(subcommand)]
    question: Option<Question>,
    /// Configuration of the node, with a section `[announce]`.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// What is logged: a list of LEVEL or TARGET=LEVEL.
    #[arg(long, value_name = "FILTER", env = "FERRULE_LOG", default_value = "info")]
    log: String,
    /// How a line of the log looks.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Say what a running announcer sees, and what is in force.
    Status(Status),
}

#[derive(Debug, Args)]
struct Status {
    /// Configuration of the node, which names the announcer's socket.
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// Socket of the announcer [default: /run/ferrule-announce/status.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const SOCKET: &str = "/run/ferrule-announce/status.sock";

/// The announcer answers between two looks, each of which may take some seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

// === impl Announce ===

impl Announce {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { question, config, log, log_format } = self;
        if let Some(Question::Status(status)) = question {
            return status.run();
        }
        log::open(&log, log_format.into())
            .map_err(|error| Failure { exit: Exit::Usage, message: chain(&error) })?;
        panic::install();
        let file = config.expect("clap asks for it");
        let (config, node) = read(&file)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            let message = format!("the announcer's runtime cannot start: {error}");
            Failure { exit: Exit::Unavailable, message }
        })?;
        let ended = runtime.block_on(async {
            let stop = stop()?;
            announce::run(config, node, stop).await.map_err(|error| failure(&error))
        });
        ended.map(|()| Exit::Success)
    }
}

/// What is announced, and the node that is watched for it.
fn read(file: &Path) -> Result<(announce::Config, Node), Failure> {
    let (config, _told_by_the_node) = super::read(file)?;
    let Config { announce, admin, mesh, memory, .. } = config;
    let Some(announce) = announce else {
        let message = format!("{} has no section [announce]", file.display());
        return Err(Failure { exit: Exit::Usage, message });
    };
    let Admin { socket, address: _ } = admin;
    let peers = mesh.map(|mesh| mesh.peers.iter().map(|peer| peer.address).collect());
    let hang_max = memory.watchdog.drain;
    Ok((announce, Node { socket, peers: peers.unwrap_or_default(), hang_max }))
}

fn stop() -> Result<impl Future<Output = ()>, Failure> {
    let watch = |kind| {
        signal(kind).map_err(|error| {
            let message = format!("signals cannot be watched: {error}");
            Failure { exit: Exit::Internal, message }
        })
    };
    let (mut terminate, mut interrupt) =
        (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn failure(error: &AnnounceError) -> Failure {
    let exit = match error {
        AnnounceError::Socket(SocketError::Live(_)) => Exit::Unavailable,
        _ => super::run::exit(error),
    };
    Failure { exit, message: chain(error) }
}

// === impl Status ===

impl Status {
    fn run(self) -> Result<Exit, Failure> {
        let Self { config, socket, json } = self;
        let socket = match (socket, config) {
            (Some(socket), _) => socket,
            (None, Some(file)) => read(&file)?.0.socket,
            (None, None) => SOCKET.into(),
        };
        let said = ask(&socket).map_err(|error| {
            let message = format!("no announcer answers at {}: {error}", socket.display());
            let forbidden = error.kind() == std::io::ErrorKind::PermissionDenied;
            let exit = if forbidden { Exit::NoPermission } else { Exit::Unavailable };
            Failure { exit, message }
        })?;
        if json {
            return answer(said + "\n");
        }
        let report: Report = serde_json::from_str(&said).map_err(|error| {
            let message = format!("the announcer's answer is not understood: {error}");
            Failure { exit: Exit::Internal, message }
        })?;
        answer(text(&report))
    }
}

fn ask(socket: &Path) -> std::io::Result<String> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut said)?;
    Ok(said)
}

fn text(report: &Report) -> String {
    let Report { state, reason, node, speaker, totals, .. } = report;
    let mut state = format!("{state} for {}: {reason}", span(report.state_seconds));
    if report.held {
        state.push_str("; HELD, for no other node is known to serve");
    }
    let in_force = match (&speaker.error, speaker.in_force) {
        (Some(error), _) => format!("{}: {error}", speaker.kind),
        (None, Some(in_force)) => format!("{}: {in_force}", speaker.kind),
        (None, None) => format!("{}: not told yet", speaker.kind),
    };
    let sight = match &report.fault {
        Some(fault) => format!("{fault} ({} in a row)", counted(report.failures.into(), "look")),
        None => report.sight.clone(),
    };
    let node = match node {
        Some(node) => format!(
            "pid {}, generation {}, {}",
            node.pid,
            node.generation,
            counted(node.connections, "connection")
        ),
        None => "has not answered yet".to_owned(),
    };
    let peers = report.peers_serving.map_or_else(|| "not known".to_owned(), |n| n.to_string());
    let lines = [
        ("state", state),
        ("in force", in_force),
        ("sight", sight),
        ("node", node),
        ("peers", format!("{peers} serving")),
        (
            "since",
            format!(
                "start {} ago: {}, {}, {}, {}",
                span(report.uptime_seconds),
                counted(totals.looks, "look"),
                counted(totals.faults, "fault"),
                counted(totals.changes, "change"),
                counted(totals.holds, "hold"),
            ),
        ),
    ];
    let mut text: String =
        lines.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect();
    if !report.probes.is_empty() {
        let rows: Vec<_> = report.probes.iter().map(probed).collect();
        text.push('\n');
        text.push_str(&columns(["PROBE", "TOOK", "RESULT"], &rows));
    }
    text
}

fn probed(probed: &Probed) -> [String; 3] {
    let Probed { address, milliseconds, error } = probed;
    let result = error.clone().unwrap_or_else(|| "as expected".to_owned());
    [address.to_string(), format!("{milliseconds:.1} ms"), result]
}
