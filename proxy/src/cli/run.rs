//! `ferrule run`: a node until it is told to stop.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::thread;

use clap::{Args, ValueEnum};
use ebpf_filter::FilterError;
use rustix::process::{Signal, getpid, kill_process};
use telemetry::verbosity::KeyError;
use telemetry::{log, panic};

use super::{Exit, Failure, chain};
use crate::admin::BindError;
use crate::app;
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
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

// === impl Run ===

impl Run {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { config, log, log_format, until_stdin_closes } = self;
        log::open(&log, log_format.into())
            .map_err(|error| Failure { exit: Exit::Usage, message: chain(&error) })?;
        panic::install();
        let (config, warnings) = super::read(&config)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        if until_stdin_closes {
            follow_stdin().map_err(|error| {
                let message = format!("stdin cannot be followed: {error}");
                Failure { exit: Exit::Internal, message }
            })?;
        }
        app::run(config).map_err(|error| failure(&error))?;
        Ok(Exit::Success)
    }
}

/// Drains this process when its stdin ends.
///
/// A pipe ends with the last process that could write to it, even if that was killed; and unlike a
/// signal at the death of a parent it needs no unsafe code. The thread ends with the process.
fn follow_stdin() -> io::Result<()> {
    let follow = || {
        // What comes is not for us, and a stdin that cannot be read has ended.
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        let _sent = kill_process(getpid(), Signal::TERM); // a process may always signal itself
    };
    thread::Builder::new().name("stdin".to_owned()).spawn(follow).map(drop)
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
