//! The predecessor's side: starts a successor and gives it everything, or ends it and keeps all.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use telemetry::metrics::Registry;
use telemetry::service;
use telemetry::shared_counts::{Counts, JoinError};
use tokio::time::{Instant, timeout_at};

use super::channel::{self, Channel, ChannelError, DESCRIPTORS_MAX, MESSAGE_BYTES_MAX};
use super::legacy::{Legacy, Socket};
use super::manifest::{
    Draining, FromPredecessor, FromSuccessor, Greeting, Knowledge, MANIFEST, Manifest, Place, Step,
};
use crate::tls::TicketKeys;

/// How a process of this node is started.
#[derive(Debug, Clone)]
pub struct Start {
    pub program: PathBuf,
    /// As this process was given them, without what is about taking over.
    pub arguments: Vec<OsString>,
}

/// What the successor will get.
pub struct Will {
    /// Joined with its own before it counts anything.
    pub counts: Arc<Counts>,
    pub tickets: TicketKeys,
    pub generation: u64,
    pub apps: u64,
    pub knowledge: Knowledge,
    /// Since when an operator has wanted no new work for the node.
    pub drained: Option<SystemTime>,
    pub legacy: Legacy,
}

/// A successor that has all of it and is ready. Dropped before it is the node, it is ended.
pub struct Heir {
    child: Child,
    channel: Channel,
    at: Step,
    patience: Duration,
    deadline: Instant,
    is_the_node: bool,
    /// It has said that it ends because it was told to.
    said_farewell: bool,
}

/// What whoever asked for the upgrade may want to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// The successor was started.
    Spawned { pid: u32, program: String },
    /// It has come so far.
    Successor { step: Step },
    /// It was sent every socket.
    Sent { sockets: usize },
    /// It is the node: there is no way back.
    Committed,
}

/// Why there is no successor. This process is the node as before.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    #[error("{} cannot be started", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the successor cannot be spoken to")]
    Channel(#[source] io::Error),
    #[error("the successor refuses: {reason}")]
    Refused { reason: String, configuration: bool },
    #[error(
        "the successor (version {version}) speaks manifest {theirs}, this process manifest {MANIFEST}"
    )]
    Manifest { version: String, theirs: u32 },
    #[error("the successor ended {} ({status})", after(*at))]
    Ended { at: Step, status: ExitStatus },
    #[error("the successor went away {} and still runs", after(*at))]
    WentAway { at: Step },
    #[error("the successor came no further than \"{}\" within {seconds} s", at.as_str())]
    Silent { at: Step, seconds: f64 },
    #[error("the successor says what it should not {}", after(*at))]
    OutOfTurn { at: Step },
    #[error("the counts of both cannot be joined")]
    Counts(#[source] JoinError),
    #[error("the conversation with the successor broke off {}", after(*at))]
    Broken { at: Step, source: ChannelError },
}

/// Says that the end of stdin is the end of the node.
const UNTIL_STDIN_CLOSES: &str = "--until-stdin-closes";

/// Says that stdin is the channel to a predecessor.
pub const TAKE_OVER: &str = "--take-over";

/// How long a successor may take to say that it is well. Nobody else serves meanwhile.
const ANSWER: Duration = Duration::from_secs(5);

/// How long an ended process may take to be gone.
const REAP: Duration = Duration::from_secs(5);

/// Bytes that a place takes in a message, at most, but for its path.
const PLACE_BYTES: usize = 160;

// === impl Start ===

impl Start {
    /// As this process was started, if that can be found out. To be asked at the start: later the file
    /// may have been replaced, and the folder may be another.
    pub fn of_this_process() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = arguments.next().map(PathBuf::from).unwrap_or_default();
        // The name that it was started by may be a link that will lead to another version; what the
        // kernel says is the file that it led to.
        let own = std::env::current_exe()?;
        let named =
            if name.components().count() > 1 { std::path::absolute(name).ok() } else { None };
        let is_same = |named: &PathBuf| named.canonicalize().ok() == own.canonicalize().ok();
        let program = named.filter(is_same).unwrap_or(own);
        // A successor is told by its predecessor that it is on a leash.
        let given = |argument: &OsString| argument != TAKE_OVER && argument != UNTIL_STDIN_CLOSES;
        let arguments = arguments.filter(given).collect();
        Ok(Self { program, arguments })
    }
}

// === impl HandoffError ===

impl HandoffError {
    /// Whether the configuration that the successor read is to blame.
    pub fn is_of_configuration(&self) -> bool {
        matches!(self, Self::Refused { configuration: true, .. })
    }
}

// === impl Heir ===

impl Heir {
    /// Starts a successor and talks to it until it is ready, for at most `patience`.
    ///
    /// # Errors
    ///
    /// Whatever went wrong; the successor is gone then.
    pub async fn raise(
        start: &Start,
        will: Will,
        patience: Duration,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Self, HandoffError> {
        let mut heir = Self::start(start, patience)?;
        let pid = heir.pid();
        tracing::info!(step = "spawned", pid, program = %start.program.display(), "handing over");
        tell(Progress::Spawned { pid, program: start.program.display().to_string() });
        match heir.converse(will, tell).await {
            Ok(()) => Ok(heir),
            Err(error) => Err(heir.end(error).await),
        }
    }

    fn start(start: &Start, patience: Duration) -> Result<Self, HandoffError> {
        let Start { program, arguments } = start;
        let (own, theirs) = channel::pair().map_err(HandoffError::Channel)?;
        let channel = Channel::new(own).map_err(HandoffError::Channel)?;
        let mut command = Command::new(program);
        service::prepare_child(&mut command);
        let spawned = command.args(arguments).arg(TAKE_OVER).stdin(theirs).spawn();
        let spawn = |source| HandoffError::Spawn { program: program.clone(), source };
        let child = spawned.map_err(spawn)?;
        let deadline = Instant::now() + patience;
        Ok(Self {
            child,
            channel,
            at: Step::Started,
            patience,
            deadline,
            is_the_node: false,
            said_farewell: false,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    async fn converse(
        &mut self,
        will: Will,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), HandoffError> {
        self.hello(&will.counts).await?;
        self.reached(Step::Hello, tell);
        let sockets = self.send(will).await?;
        tracing::info!(step = "sent", sockets, "handing over");
        tell(Progress::Sent { sockets });
        for step in [Step::Adopted, Step::Loaded, Step::Ready] {
            self.wait_for(step).await?;
            self.reached(step, tell);
        }
        Ok(())
    }

    fn reached(&mut self, step: Step, tell: &mut dyn FnMut(Progress)) {
        self.at = step;
        tell(Progress::Successor { step });
    }

    async fn hello(&self, counts: &Counts) -> Result<(), HandoffError> {
        let received = timeout_at(self.deadline, self.channel.packet()).await;
        let (bytes, descriptors) =
            received.map_err(|_| self.silent())?.map_err(|source| self.broken(source))?;
        if let Ok(Greeting { manifest, version }) = serde_json::from_slice(&bytes)
            && manifest != MANIFEST
        {
            return Err(HandoffError::Manifest { version, theirs: manifest });
        }
        let (message, descriptors) =
            channel::understood(&bytes, descriptors).map_err(|source| self.broken(source))?;
        let FromSuccessor::Hello { .. } = message else { return Err(self.unexpected(message)) };
        for theirs in descriptors {
            counts.join(theirs).map_err(HandoffError::Counts)?;
        }
        Ok(())
    }

    async fn send(&self, will: Will) -> Result<usize, HandoffError> {
        let Will { counts, tickets, generation, apps, drained, knowledge, legacy } = will;
        let (sockets, knowledge) = (legacy.all(), knowledge.parts());
        let manifest = FromPredecessor::Manifest(Manifest {
            greeting: Greeting::own(),
            pid: std::process::id(),
            generation,
            sockets: sockets.len(),
            apps,
            drained,
            counts: true,
            tickets: Some(tickets),
            knowledge: knowledge.len(),
        });
        self.say(&manifest, &[counts.file()]).await?;
        for part in knowledge {
            self.say(&FromPredecessor::Knowledge(part), &[]).await?;
        }
        for part in parts(&sockets) {
            let places = part.iter().map(|(place, _)| place.clone()).collect();
            let descriptors: Vec<_> = part.iter().map(|(_, socket)| socket.as_fd()).collect();
            self.say(&FromPredecessor::Sockets { places }, &descriptors).await?;
        }
        Ok(sockets.len())
    }

    async fn say(
        &self,
        message: &FromPredecessor,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HandoffError> {
        let sent = timeout_at(self.deadline, self.channel.send(message, descriptors)).await;
        sent.map_err(|_| self.silent())?.map_err(|source| self.broken(source))
    }

    async fn wait_for(&self, step: Step) -> Result<(), HandoffError> {
        let received = timeout_at(self.deadline, self.channel.receive::<FromSuccessor>()).await;
        let (message, _) =
            received.map_err(|_| self.silent())?.map_err(|source| self.broken(source))?;
        match message {
            FromSuccessor::At { step: at } if at == step => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    /// The node is the successor's from now on; returns once it has been that for `probation`.
    ///
    /// # Errors
    ///
    /// When it is gone before: then the node is this process's, as before.
    pub async fn commit(
        mut self,
        probation: Duration,
        registry: &Registry,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Self, HandoffError> {
        self.tell_metrics(registry).await;
        match self.serves(probation, tell).await {
            Ok(()) => {
                self.is_the_node = true;
                tracing::info!(step = "committed", pid = self.pid(), "handing over");
                tell(Progress::Committed);
                Ok(self)
            }
            Err(error) => Err(self.end(error).await),
        }
    }

    async fn serves(
        &mut self,
        probation: Duration,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), HandoffError> {
        self.say(&FromPredecessor::Go, &[]).await?;
        self.wait_for(Step::Serving).await?;
        self.reached(Step::Serving, tell);
        let until = Instant::now() + probation;
        match timeout_at(until, self.channel.receive::<FromSuccessor>()).await {
            Err(_) => self.answers().await,
            // It was told to stop: so the node was.
            Ok(Ok((FromSuccessor::Farewell, _))) => {
                self.said_farewell = true;
                Ok(())
            }
            Ok(Ok((other, _))) => Err(self.unexpected(other)),
            Ok(Err(source)) => Err(self.broken(source)),
        }
    }

    /// It has lived through its probation; whether it does anything is another question. One that hangs
    /// would have the node and serve nobody.
    async fn answers(&mut self) -> Result<(), HandoffError> {
        self.patience = ANSWER;
        self.deadline = Instant::now() + ANSWER;
        self.say(&FromPredecessor::Probe, &[]).await?;
        let received = timeout_at(self.deadline, self.channel.receive::<FromSuccessor>()).await;
        match received.map_err(|_| self.silent())? {
            Ok((FromSuccessor::At { step: Step::Serving }, _)) => Ok(()),
            Ok((FromSuccessor::Farewell, _)) => {
                self.said_farewell = true;
                Ok(())
            }
            Ok((other, _)) => Err(self.unexpected(other)),
            Err(source) => Err(self.broken(source)),
        }
    }

    /// Tells the successor every second how this process does and what it has counted, until it is
    /// gone; says whether it was told to go.
    ///
    /// # Cancel safety
    ///
    /// Nothing is half said.
    pub async fn inform(&self, registry: &Registry, draining: impl Fn() -> Draining) -> bool {
        let mut gone = pin!(self.gone());
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                was_told = &mut gone => return was_told,
            }
            drop(self.channel.send(&FromPredecessor::Draining(draining()), &[]).await);
            self.tell_metrics(registry).await;
        }
    }

    /// Without them its counters lack what this process counted; that is no reason to stop.
    async fn tell_metrics(&self, registry: &Registry) {
        match registry.tell_file() {
            Ok(file) => {
                drop(self.channel.send(&FromPredecessor::Metrics, &[file.as_fd()]).await);
            }
            Err(error) => tracing::warn!(%error, "the successor is not told what was counted"),
        }
    }

    /// This process ends, and counts nothing any more.
    pub async fn farewell(&self, registry: &Registry) {
        self.tell_metrics(registry).await;
        drop(self.channel.send(&FromPredecessor::Farewell, &[]).await);
    }

    async fn gone(&self) -> bool {
        let mut was_told = self.said_farewell;
        while let Ok((message, _)) = self.channel.receive::<FromSuccessor>().await {
            was_told |= matches!(message, FromSuccessor::Farewell);
        }
        tracing::warn!(pid = self.pid(), was_told, "the successor is gone");
        was_told
    }

    /// Ends the process and says what it had come to.
    async fn end(mut self, error: HandoffError) -> HandoffError {
        let is_end = matches!(&error, HandoffError::Broken { source, .. } if source.is_end());
        // Who has closed its end of the channel is about to exit, and how is worth knowing.
        let ended = if is_end { self.reap(Duration::from_secs(1)).await } else { None };
        self.kill();
        if ended.is_none() && self.reap(REAP).await.is_none() {
            tracing::error!(pid = self.pid(), "the successor was killed and does not end");
        }
        match (is_end, ended) {
            (true, Some(status)) => HandoffError::Ended { at: self.at, status },
            (true, None) => HandoffError::WentAway { at: self.at },
            (false, _) => error,
        }
    }

    async fn reap(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => {}
                Ok(ended) => return ended,
                Err(_) => return None, // somebody else has reaped it
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn kill(&mut self) {
        drop(self.child.kill()); // fails if it is gone
    }

    fn silent(&self) -> HandoffError {
        HandoffError::Silent { at: self.at, seconds: self.patience.as_secs_f64() }
    }

    fn broken(&self, source: ChannelError) -> HandoffError {
        HandoffError::Broken { at: self.at, source }
    }

    fn unexpected(&self, message: FromSuccessor) -> HandoffError {
        match message {
            FromSuccessor::Refused { reason, configuration, .. } => {
                HandoffError::Refused { reason, configuration }
            }
            _ => HandoffError::OutOfTurn { at: self.at },
        }
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        if !self.is_the_node {
            self.kill();
            drop(self.child.wait()); // it has been killed, so this is short
        }
    }
}

/// As many sockets at once as a message takes.
fn parts(sockets: &[(Place, Socket)]) -> Vec<&[(Place, Socket)]> {
    let mut parts = Vec::new();
    let mut rest = sockets;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |(place, _): &&(Place, Socket)| {
            bytes += PLACE_BYTES
                + match place {
                    Place::AdminSocket { path } => 2 * path.as_os_str().len(),
                    _ => 0,
                };
            bytes < MESSAGE_BYTES_MAX
        };
        let count = rest.iter().take(DESCRIPTORS_MAX).take_while(fits).count().max(1);
        let (part, after) = rest.split_at(count);
        parts.push(part);
        rest = after;
    }
    parts
}

fn after(step: Step) -> &'static str {
    match step {
        Step::Started => "before it said hello",
        Step::Hello => "before it had the sockets",
        Step::Adopted => "before it was loaded",
        Step::Loaded => "before it was ready",
        Step::Ready => "before it served",
        Step::Serving => "soon after it served",
    }
}
