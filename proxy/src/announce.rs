//! The anycast gate: a process beside the node that decides whether BGP announces its prefixes.
//!
//! Once a second it asks the node how it is ([`node`], [`sight`]) and makes a request as a client
//! would ([`probe`]); [`gate`] decides, and [`speaker`] tells BIRD ([`bird`]) or a command.
//! It is a process of its own so that it outlives a node that is killed, and touches nothing when
//! it dies itself: whatever was announced then stays announced.

pub mod gate;
pub mod sight;
pub mod probe;
pub mod speaker;
pub mod report;
mod bird;
mod node;
mod round;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::TlsError;

/// `[announce]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub speaker: speaker::Config,
    /// Where the announcer says how it is. Default: `/run/ferrule-announce/status.sock`.
    pub socket: PathBuf,
    /// Between two looks at the node. Default: 1 s.
    pub interval: Duration,
    /// For the node's answer about itself, and for each probe. Default: 1 s.
    pub timeout: Duration,
    /// Default: 10 s.
    pub rise: Duration,
    /// Default: 3.
    pub fall: u32,
    /// Default: 10 s.
    pub settle: Duration,
    /// Default: 5 min.
    pub drain_max: Duration,
    /// Default: 1 h.
    pub inventory_age_max: Duration,
    /// Default: 1.
    pub peers_min: u32,
    pub probe: probe::Config,
}

/// The node that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its admin socket.
    pub socket: PathBuf,
    /// Where its peers take connections from other nodes.
    pub peers: Vec<SocketAddr>,
    /// From when on a thread that hangs makes it drain.
    pub hang_max: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    #[error("the probe cannot be set up")]
    Probe(#[source] TlsError),
    #[error("the announcer's status cannot be told")]
    Socket(#[source] report::SocketError),
}

/// Watches and tells until `stop`; what is announced then stays announced.
///
/// # Errors
/// When there is nothing to watch with. A node or a BIRD that is not there is no error.
pub async fn run(
    config: Config,
    node: Node,
    stop: impl Future<Output = ()>,
) -> Result<(), AnnounceError> {
    let door = report::Door::bind(&config.socket).map_err(AnnounceError::Socket)?;
    let mut round = round::Round::new(config, node).map_err(AnnounceError::Probe)?;
    let report = round.report();
    tokio::select! {
        () = stop => {}
        () = round.run() => {}
        () = door.serve(&report) => {}
    }
    tracing::info!(state = %round.state(), "the announcer ends; what is announced stays announced");
    Ok(())
}
