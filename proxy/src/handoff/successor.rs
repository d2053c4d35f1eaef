//! The successor's side: takes what the predecessor has, and its place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use telemetry::metrics::Registry;
use telemetry::shared_counts::{Counts, JoinError};
use tokio::time::{Instant, timeout_at};

use super::channel::{self, Channel, ChannelError};
use super::inherited::Inherited;
use super::manifest::{
    Draining, FromPredecessor, FromSuccessor, Greeting, Knowledge, MANIFEST, Manifest, Step,
};

/// The right to take over: the channel that this process was started with.
pub struct Claim {
    socket: OwnedFd,
}

/// What the predecessor gave.
pub struct Inheritance {
    pub manifest: Manifest,
    pub knowledge: Knowledge,
    pub sockets: Inherited,
    pub predecessor: Predecessor,
}

/// The process that has the node until it says otherwise or is gone.
pub struct Predecessor {
    channel: Channel,
    pub pid: u32,
    pub generation: u64,
}

/// Why nothing can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("stdin is no channel to a predecessor")]
    Stdin(#[source] io::Error),
    #[error("the channel to the predecessor breaks off")]
    Channel(#[source] ChannelError),
    #[error(
        "the predecessor (version {version}) speaks manifest {theirs}, this process manifest {MANIFEST}"
    )]
    Manifest { version: String, theirs: u32 },
    #[error("the predecessor promised {expected} sockets and sends others")]
    Sockets { expected: usize },
    #[error("the counts of both cannot be joined")]
    Counts(#[source] JoinError),
    #[error("the predecessor says what it should not")]
    OutOfTurn,
    #[error("the predecessor is silent")]
    Silent,
}

/// Bytes of what is said when nothing is taken over; the log has the rest.
const REASON_BYTES_MAX: usize = 16 * 1024;

/// Whose the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The predecessor has stopped accepting.
    Go,
    /// It is gone, and has left everything.
    Gone,
}

// === impl Claim ===

impl Claim {
    /// Takes stdin, whose place is taken by nothing.
    ///
    /// # Errors
    ///
    /// When it is no socket that knows packets.
    pub fn of_stdin() -> Result<Self, ClaimError> {
        let take = || {
            let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
            let kind = rustix::net::sockopt::socket_type(&socket)?;
            if kind != rustix::net::SocketType::SEQPACKET {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // Else the predecessor would wait for the end of whoever has a copy.
            rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
            Ok(socket)
        };
        let socket = take().map_err(ClaimError::Stdin)?;
        tracing::info!(step = Step::Started.as_str(), "taking over");
        Ok(Self { socket })
    }

    /// Gives up.
    pub fn refuse(&self, mut reason: String, configuration: bool) {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let refused = FromSuccessor::Refused { greeting: Greeting::own(), reason, configuration };
        if let Err(error) = channel::send_now(&self.socket, &refused) {
            tracing::debug!(%error, "the predecessor does not hear why nothing is taken over");
        }
    }

    /// Asks for everything, and has it when this returns.
    ///
    /// # Errors
    ///
    /// When the predecessor cannot be understood, or goes before it has given all.
    pub async fn assert(
        &self,
        counts: &Counts,
        patience: Duration,
    ) -> Result<Inheritance, ClaimError> {
        let deadline = Instant::now() + patience;
        let taken = timeout_at(deadline, self.take(counts)).await;
        taken.map_err(|_| ClaimError::Silent)?
    }

    async fn take(&self, counts: &Counts) -> Result<Inheritance, ClaimError> {
        let socket = rustix::io::fcntl_dupfd_cloexec(&self.socket, 3);
        let channel = socket.map_err(io::Error::from).and_then(Channel::new);
        let channel = channel.map_err(ClaimError::Stdin)?;
        let hello = FromSuccessor::Hello {
            greeting: Greeting::own(),
            pid: std::process::id(),
            counts: true,
        };
        channel.send(&hello, &[counts.file()]).await.map_err(ClaimError::Channel)?;
        tracing::info!(step = Step::Hello.as_str(), "taking over");
        let (manifest, descriptors) = manifest(&channel).await?;
        for theirs in descriptors {
            counts.join(theirs).map_err(ClaimError::Counts)?;
        }
        let knowledge = knowledge(&channel, manifest.knowledge).await?;
        let sockets = sockets(&channel, manifest.sockets).await?;
        let (pid, generation) = (manifest.pid, manifest.generation);
        let predecessor = Predecessor { channel, pid, generation };
        predecessor.at(Step::Adopted).await;
        Ok(Inheritance { manifest, knowledge, sockets, predecessor })
    }
}

async fn manifest(channel: &Channel) -> Result<(Manifest, Vec<OwnedFd>), ClaimError> {
    let (bytes, descriptors) = channel.packet().await.map_err(ClaimError::Channel)?;
    if let Ok(Greeting { manifest, version }) = serde_json::from_slice(&bytes)
        && manifest != MANIFEST
    {
        return Err(ClaimError::Manifest { version, theirs: manifest });
    }
    match channel::understood(&bytes, descriptors).map_err(ClaimError::Channel)? {
        (FromPredecessor::Manifest(manifest), descriptors) => Ok((manifest, descriptors)),
        _ => Err(ClaimError::OutOfTurn),
    }
}

async fn knowledge(channel: &Channel, messages: usize) -> Result<Knowledge, ClaimError> {
    let mut knowledge = Knowledge::default();
    for _ in 0..messages {
        match channel.receive().await.map_err(ClaimError::Channel)? {
            (FromPredecessor::Knowledge(part), _) => knowledge.add(part),
            _ => return Err(ClaimError::OutOfTurn),
        }
    }
    Ok(knowledge)
}

async fn sockets(channel: &Channel, expected: usize) -> Result<Inherited, ClaimError> {
    let mut inherited = Inherited::default();
    let mut received = 0;
    while received < expected {
        let (message, descriptors) = channel.receive().await.map_err(ClaimError::Channel)?;
        let FromPredecessor::Sockets { places } = message else {
            return Err(ClaimError::OutOfTurn);
        };
        received += places.len();
        if places.is_empty() || received > expected {
            return Err(ClaimError::Sockets { expected });
        }
        for (place, socket) in places.into_iter().zip(descriptors) {
            inherited.put(place, socket);
        }
    }
    if inherited.len() == expected { Ok(inherited) } else { Err(ClaimError::Sockets { expected }) }
}

// === impl Predecessor ===

impl Predecessor {
    /// Says how far this process is. A predecessor that is gone need not know.
    pub async fn at(&self, step: Step) {
        tracing::info!(step = step.as_str(), "taking over");
        drop(self.channel.send(&FromSuccessor::At { step }, &[]).await);
    }

    /// Waits for the node, being ready.
    ///
    /// # Errors
    ///
    /// When the predecessor neither gives it nor goes within `patience`: then the node is still its.
    pub async fn wait_for_go(
        &self,
        registry: &Registry,
        patience: Duration,
    ) -> Result<Verdict, ClaimError> {
        let deadline = Instant::now() + patience;
        loop {
            match timeout_at(deadline, self.channel.receive()).await {
                Err(_) => return Err(ClaimError::Silent),
                Ok(Ok((FromPredecessor::Metrics, files))) => self.carry(registry, files),
                Ok(Ok((FromPredecessor::Go, _))) => return Ok(Verdict::Go),
                Ok(Ok(_)) => return Err(ClaimError::OutOfTurn),
                Ok(Err(error)) if error.is_end() => return Ok(Verdict::Gone),
                Ok(Err(error)) => return Err(ClaimError::Channel(error)),
            }
        }
    }

    /// Hears how the predecessor drains and what it has counted, until it is gone; says whether it
    /// said farewell.
    pub async fn follow(&self, registry: &Registry, mut heard: impl FnMut(Draining)) -> bool {
        let is_well = loop {
            match self.channel.receive().await {
                Ok((FromPredecessor::Draining(draining), _)) => heard(draining),
                Ok((FromPredecessor::Probe, _)) => {
                    let well = FromSuccessor::At { step: Step::Serving };
                    drop(self.channel.send(&well, &[]).await);
                }
                Ok((FromPredecessor::Metrics, files)) => self.carry(registry, files),
                Ok((FromPredecessor::Farewell, _)) => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        registry.carry_ended();
        is_well
    }

    fn carry(&self, registry: &Registry, files: Vec<OwnedFd>) {
        for file in files {
            if let Err(error) = registry.carry_file(self.generation, file) {
                let error = telemetry::error::chain(&error);
                tracing::warn!(error, "what the predecessor counted is not shown");
            }
        }
    }

    /// This process was told to stop.
    pub async fn farewell(&self) {
        drop(self.channel.send(&FromSuccessor::Farewell, &[]).await);
    }
}

#[cfg(test)]
mod tests;
