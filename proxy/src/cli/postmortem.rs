//! `ferrule postmortem`: how the last process of a node ended.
//!
//! It reads the black box and asks nobody, for the node is usually down when one wants to know.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use telemetry::black_box::{self, Frame, ReadError, Report, Verdict};

use super::{Exit, Failure, answer, chain};

#[derive(Debug, Args)]
pub(super) struct Postmortem {
    /// Configuration of the node, which names its storage directory.
    #[arg(long, value_name = "FILE", required_unless_present = "file", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// A black box, such as `/var/lib/ferrule/blackbox.2`.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

// === impl Postmortem ===

impl Postmortem {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { config, file, json } = self;
        let report = match (file, config) {
            (Some(file), _) => read(&file)?,
            (None, Some(config)) => last_exit(&super::read(&config)?.0.storage.directory)?,
            (None, None) => {
                let message = "say --config FILE or --file PATH".to_owned();
                return Err(Failure { exit: Exit::Usage, message });
            }
        };
        if json { answer(as_json(&report)?) } else { answer(black_box::story(&report, &names)) }
    }
}

/// The process that ended last: the one before, when one runs.
fn last_exit(storage: &Path) -> Result<Report, Failure> {
    let current = read(&storage.join(black_box::FILE))?;
    if current.verdict == Verdict::Running {
        return read(&storage.join(format!("{}.1", black_box::FILE)));
    }
    Ok(current)
}

fn read(file: &Path) -> Result<Report, Failure> {
    black_box::postmortem(file).map_err(|error| {
        let exit = match error {
            ReadError::Absent => Exit::Unavailable,
            ReadError::Io(ref error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Exit::NoPermission
            }
            _ => Exit::Internal,
        };
        Failure { exit, message: format!("{}: {}", file.display(), chain(&error)) }
    })
}

fn as_json(report: &Report) -> Result<String, Failure> {
    let json = serde_json::to_string_pretty(report).map_err(|error| {
        let message = format!("the report cannot be written as JSON: {error}");
        Failure { exit: Exit::Internal, message }
    })?;
    Ok(json + "\n")
}

/// What a frame is called. This process never reads symbols; addresses are shown as they are.
fn names(_: &Frame) -> Option<String> {
    None
}
