//! `ferrule run`: a node until it is told to stop.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::{env, io};

use clap::{Args, ValueEnum};
use ebpf_filter::FilterError;
use telemetry::verbosity::KeyError;
use telemetry::{log, panic};

use super::{Exit, Failure, chain};
use crate::admin::BindError;
use crate::app::{self, Process};
use crate::config;
use crate::handoff::predecessor::Start;
use crate::handoff::successor::Claim;
use crate::init;
use crate::tls::TlsError;

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Configuration of the node.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// What is logged: a list of LEVEL or TARGET=LEVEL.
    #[arg(long, value_name = "FILTER", env = "FERRULE_LOG", default_value = "info")]
    log: String,
    /// How a line of the log looks.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Take the end of stdin for SIGTERM: ends the node with whoever started it.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
    /// Take over from the process at the other end of stdin.
    #[arg(long, hide = true, conflicts_with = "until_stdin_closes")]
    take_over: bool,
    /// Run the node as a child, and stay when it hands over to a successor; so it is by itself where
    /// this is process 1.
    #[arg(long)]
    init: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum LogFormat {
    #[default]
    Text,
    Json,
}

// === impl Run ===

impl Run {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        self.open_log()?;
        let Self { config, until_stdin_closes, take_over, log: _, log_format: _, init: _ } = self;
        panic::install();
        let claim = if take_over {
            Some(Arc::new(Claim::of_stdin().map_err(|error| failure(&error))?))
        } else {
            None
        };
        let ran = node(&config, until_stdin_closes, claim.clone());
        if let (Err(failure), Some(claim)) = (&ran, &claim) {
            claim.refuse(failure.message.clone(), failure.exit == Exit::Usage);
        }
        ran
    }

    /// Whether the node is to be run by a supervisor.
    pub(super) fn wants_init(&self) -> bool {
        self.init || init::is_process_1()
    }

    /// Runs the node as a child of this process; the exit code of its last successor.
    pub(super) fn supervise(&self) -> Result<u8, Failure> {
        self.open_log()?;
        let internal =
            |error: &(dyn Error + 'static)| Failure { exit: Exit::Internal, message: chain(error) };
        let mut node = Command::new(env::current_exe().map_err(|error| internal(&error))?);
        node.args(env::args_os().skip(1).filter(|argument| argument != "--init"));
        init::supervise(node).map_err(|error| internal(&error))
    }

    fn open_log(&self) -> Result<(), Failure> {
        log::open(&self.log, self.log_format.into())
            .map_err(|error| Failure { exit: Exit::Usage, message: chain(&error) })
    }
}

fn node(
    config: &Path,
    until_stdin_closes: bool,
    claim: Option<Arc<Claim>>,
) -> Result<Exit, Failure> {
    let (config, warnings) = match config::read::read(config) {
        // Whoever asked for the upgrade sees no other process's stderr.
        Err(problems) if claim.is_some() => {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let message = format!("{} cannot be used: {}", config.display(), problems.join("; "));
            return Err(Failure { exit: Exit::Usage, message });
        }
        Err(_) => super::read(config)?,
        Ok(read) => read,
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let leash = until_stdin_closes.then(|| rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3));
    let leash = leash.transpose().map_err(|error| {
        let message = format!("stdin cannot be followed: {error}");
        Failure { exit: Exit::Internal, message }
    })?;
    let start = Start::of_this_process().inspect_err(|error| {
        tracing::warn!(%error, "this process does not know what it was started from: no upgrades");
    });
    let process = Process { start: start.ok(), claim, leash };
    app::run(config, process).map_err(|error| failure(&error))?;
    Ok(Exit::Success)
}

/// What stood in the way, with its causes.
pub(super) fn failure(error: &(dyn Error + 'static)) -> Failure {
    Failure { exit: exit(error), message: chain(error) }
}

/// The cause that is nearest to the operating system decides.
pub(super) fn exit(error: &(dyn Error + 'static)) -> Exit {
    let mut exit = Exit::Internal;
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let forbidden = error.kind() == io::ErrorKind::PermissionDenied;
            exit = if forbidden { Exit::NoPermission } else { Exit::Unavailable };
        } else if let Some(error) = error.downcast_ref::<FilterError>() {
            exit = match error {
                FilterError::Capability { .. } => Exit::NoPermission,
                FilterError::Configuration { .. } => Exit::Usage,
                _ => Exit::Unavailable,
            };
        } else if error.is::<BindError>() {
            exit = Exit::Unavailable;
        } else if error.is::<TlsError>() || error.is::<KeyError>() {
            exit = Exit::Usage;
        }
        source = error.source();
    }
    exit
}

impl From<LogFormat> for log::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_follows_the_cause() {
        let check = |error: &(dyn Error + 'static), expected| {
            assert_eq!(exit(error), expected, "{}", chain(error));
        };
        let bind = |kind: io::ErrorKind| {
            let address = ([127, 0, 0, 1], 80).into();
            BindError::Address { address, source: kind.into() }
        };
        check(&bind(io::ErrorKind::PermissionDenied), Exit::NoPermission);
        check(&bind(io::ErrorKind::AddrInUse), Exit::Unavailable);
        check(&BindError::Live { path: "/run/x".into() }, Exit::Unavailable);
        check(&TlsError::Ca { path: "ca.pem".into() }, Exit::Usage);
        let source = io::ErrorKind::NotFound.into();
        check(&TlsError::Read { path: "ca.pem".into(), source }, Exit::Unavailable);
        let path = "trace.key".into();
        check(&KeyError::Mode { path, mode: 0o644 }, Exit::Usage);
        let (path, source) = ("trace.key".into(), io::ErrorKind::PermissionDenied.into());
        check(&KeyError::Read { path, source }, Exit::NoPermission);
        let missing = "CAP_BPF".to_owned();
        check(&FilterError::Capability { what: "steering", missing }, Exit::NoPermission);
        let needs = "filter.interfaces";
        check(&FilterError::Configuration { mode: "xdp", needs }, Exit::Usage);
        check(&FilterError::Full { map: "PORTS", capacity: 1 }, Exit::Unavailable);
        check(&std::fmt::Error, Exit::Internal);
    }
}
