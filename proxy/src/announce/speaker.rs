//! Who is told: BIRD, or a command instead of it.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use telemetry::error::chain;
use tokio::time::{Instant, sleep, timeout};

use super::bird::{Bird, BirdError, Protocol};
use super::gate::State;

/// Who is told, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    Bird(BirdConfig),
    Command(CommandConfig),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BirdConfig {
    /// Its control socket. Default: `/run/bird/bird.ctl`.
    pub socket: PathBuf,
    /// Its static protocols that originate the prefixes. Default: `anycast4` and `anycast6`.
    pub protocols: Vec<String>,
    /// What its configuration includes. Default: `/run/ferrule-announce/bird.conf`.
    pub include: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandConfig {
    /// The program and its arguments; `announce`, `drain` or `withdraw` comes last.
    pub words: Vec<String>,
    /// How long it may take; then it is killed, and run again. Default: 5 s.
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SpeakerError {
    #[error(transparent)]
    Bird(BirdError),
    #[error("{} cannot be written", path.display())]
    Include { path: PathBuf, source: io::Error },
    #[error("{} cannot be run", .program)]
    Start { program: String, source: io::Error },
    #[error("{program} {action} ended with {status}")]
    Failed { program: String, action: &'static str, status: ExitStatus },
    #[error("{program} {action} did not end within {} s", .after.as_secs_f64())]
    Late { program: String, action: &'static str, after: Duration },
}

/// The side that makes what is wanted be in force.
pub(super) struct Speaker {
    config: Config,
    /// What a command was last told, with success; BIRD is asked instead.
    told: Option<State>,
}

/// What is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InForce {
    pub(super) state: State,
    /// Whether that holds for every prefix. Who was interrupted between two leaves one behind.
    pub(super) is_whole: bool,
}

/// For all that is said to BIRD at one time; it answers a command in some 100 µs.
const BIRD_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two looks at whether a command has ended.
const COMMAND_POLL: Duration = Duration::from_millis(10);

/// Constants of the included file; `disabled` takes a number, `if` takes a truth.
const WITHDRAWN: &str = "FERRULE_WITHDRAWN";
const DRAIN: &str = "FERRULE_DRAIN";

// === impl Speaker ===

impl Speaker {
    pub(super) fn new(config: Config) -> Self {
        Self { config, told: None }
    }

    /// Who it is, in a word.
    pub(super) fn name(&self) -> &'static str {
        match self.config {
            Config::Bird(_) => "bird",
            Config::Command(_) => "command",
        }
    }

    /// What is in force; unknown to a command that was not told anything yet.
    pub(super) async fn in_force(&self) -> Result<InForce, SpeakerError> {
        match &self.config {
            Config::Bird(config) => within(find(config)).await.map_err(SpeakerError::Bird),
            Config::Command(_) => {
                let state = self.told.unwrap_or(State::Unknown);
                Ok(InForce { state, is_whole: true })
            }
        }
    }

    /// Writes down what was found in force, so that a restart of BIRD keeps to it.
    pub(super) fn keep(&self, state: State) -> Result<(), SpeakerError> {
        match &self.config {
            Config::Bird(config) => write(&config.include, state),
            Config::Command(_) => Ok(()),
        }
    }

    /// Makes `wanted` be in force; where it is already, nothing is said that changes a route.
    pub(super) async fn tell(&mut self, wanted: State) -> Result<(), SpeakerError> {
        match &self.config {
            Config::Bird(config) => tell_bird(config, wanted).await,
            Config::Command(config) => {
                if let Some(action) = action(wanted) {
                    run(config, action).await?;
                    self.told = Some(wanted);
                }
                Ok(())
            }
        }
    }
}

// === BIRD ===

async fn tell_bird(config: &BirdConfig, wanted: State) -> Result<(), SpeakerError> {
    // First the file: from now on, `configure` by anybody and a restart of BIRD keep to it.
    let written = write(&config.include, wanted);
    let told = within(async {
        match wanted {
            State::Unknown => Ok(()),
            State::Withdrawn => withdraw(config).await,
            State::Announced | State::Draining => announce(config, wanted).await,
        }
    });
    if wanted == State::Withdrawn {
        // Needs no file.
        told.await.map_err(SpeakerError::Bird)?;
        return written;
    }
    written?;
    told.await.map_err(SpeakerError::Bird)
}

async fn withdraw(config: &BirdConfig) -> Result<(), BirdError> {
    let mut bird = Bird::connect(&config.socket).await?;
    for protocol in &config.protocols {
        bird.disable(protocol).await?;
    }
    Ok(())
}

async fn announce(config: &BirdConfig, wanted: State) -> Result<(), BirdError> {
    let mut bird = Bird::connect(&config.socket).await?;
    if drains(&mut bird).await? != (wanted == State::Draining) {
        bird.configure().await?;
    }
    for protocol in &config.protocols {
        bird.enable(protocol).await?;
    }
    Ok(())
}

async fn find(config: &BirdConfig) -> Result<InForce, BirdError> {
    let mut bird = Bird::connect(&config.socket).await?;
    let drains = drains(&mut bird).await?;
    let mut up = 0;
    for protocol in &config.protocols {
        up += usize::from(bird.protocol(protocol).await? == Protocol::Up);
    }
    let state = match (up, drains) {
        (0, _) => State::Withdrawn,
        (_, true) => State::Draining,
        (_, false) => State::Announced,
    };
    Ok(InForce { state, is_whole: up == 0 || up == config.protocols.len() })
}

async fn drains(bird: &mut Bird) -> Result<bool, BirdError> {
    Ok(bird.constant(DRAIN).await? == "TRUE")
}

async fn within<T>(said: impl Future<Output = Result<T, BirdError>>) -> Result<T, BirdError> {
    let late = |_| BirdError::Silent(BIRD_TIMEOUT.as_secs());
    timeout(BIRD_TIMEOUT, said).await.map_err(late)?
}

/// Writes the included file, whole or not at all.
fn write(path: &Path, state: State) -> Result<(), SpeakerError> {
    let text = included(state);
    let failed = |source| SpeakerError::Include { path: path.to_owned(), source };
    if std::fs::read_to_string(path).is_ok_and(|written| written == text) {
        return Ok(());
    }
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    // BIRD, another user, reads it.
    let file = options.write(true).create(true).truncate(true).mode(0o644).open(&beside);
    file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes())).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)
}

/// What the included file says.
pub(super) fn included(state: State) -> String {
    let withdrawn = u8::from(!matches!(state, State::Announced | State::Draining));
    let mut text = String::from("# Written by `ferrule announce` at each change.\n");
    write!(
        text,
        "define {WITHDRAWN} = {withdrawn};\ndefine {DRAIN} = {};\n",
        state == State::Draining
    )
    .expect("a String takes everything");
    text
}

// === commands ===

fn action(state: State) -> Option<&'static str> {
    match state {
        State::Unknown => None,
        State::Withdrawn => Some("withdraw"),
        State::Announced => Some("announce"),
        State::Draining => Some("drain"),
    }
}

async fn run(config: &CommandConfig, action: &'static str) -> Result<(), SpeakerError> {
    let CommandConfig { words, timeout: after } = config;
    let (first, others) = words.split_first().expect("checked with the configuration");
    let program = first.clone();
    let start = |source| SpeakerError::Start { program: first.clone(), source };
    let deadline = Instant::now() + *after;
    let mut child =
        Command::new(first).args(others).arg(action).stdin(Stdio::null()).spawn().map_err(start)?;
    let ended = loop {
        match child.try_wait().map_err(start)? {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => break None,
            None => sleep(COMMAND_POLL).await,
        }
    };
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(SpeakerError::Failed { program, action, status }),
        None => {
            // It may end by itself at this very moment; it is waited for in either case.
            child.kill().and_then(|()| child.wait()).map_err(start)?;
            Err(SpeakerError::Late { program, action, after: *after })
        }
    }
}

// === impl SpeakerError ===

impl SpeakerError {
    /// With its causes, on one line.
    pub(super) fn told(&self) -> String {
        chain(self)
    }
}
