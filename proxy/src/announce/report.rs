//! What the announcer says of itself: one JSON document to whoever connects to its socket.
//!
//! A socket and no file, because whoever answers on it is alive.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::gate::State;

/// The announcer at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub pid: u32,
    pub version: String,
    pub uptime_seconds: f64,
    /// What is to be in force.
    pub state: State,
    pub state_seconds: f64,
    /// Why the state was entered.
    pub reason: String,
    /// What the node did at the last look: `serving`, `draining`, or a kind of fault.
    pub sight: String,
    /// What is wrong with it, in a sentence.
    pub fault: Option<String>,
    /// Looks in a row that failed.
    pub failures: u32,
    /// It would be withdrawn if it were not the last.
    pub held: bool,
    /// Other nodes that serve; absent while nobody knows.
    pub peers_serving: Option<usize>,
    /// As of the last answer.
    pub node: Option<Node>,
    pub probes: Vec<Probed>,
    pub speaker: Speaker,
    pub totals: Totals,
}

/// The process that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub pid: u32,
    pub generation: u64,
    pub connections: u64,
}

/// One anycast address at the last look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    pub address: SocketAddr,
    pub milliseconds: f64,
    pub error: Option<String>,
}

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaker {
    /// `bird` or `command`.
    pub kind: String,
    /// What is in force, as it was last found or told.
    pub in_force: Option<State>,
    pub error: Option<String>,
}

/// Since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub looks: u64,
    pub faults: u64,
    pub changes: u64,
    /// Withdrawals that the guard did not let happen.
    pub holds: u64,
    pub speaker_errors: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another announcer answers at {}", .0.display())]
    Live(PathBuf),
    #[error("cannot listen at {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// The bound socket; its file goes with it.
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
}

/// For one client to take its answer. They are served one after the other.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

/// After a failed accept, so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

// === impl Door ===

impl Door {
    /// # Errors
    /// When another announcer lives: two would work against each other.
    pub(super) fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Bind { path: path.to_owned(), source };
        if Probe::connect(path).is_ok() {
            return Err(SocketError::Live(path.to_owned()));
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
            _ => {} // whatever else is there is not ours, and stands in the way
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers for ever.
    pub(super) async fn serve(&self, report: &RefCell<Report>) {
        loop {
            let mut stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a client of the status cannot be accepted");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let text = serde_json::to_vec(&*report.borrow()).unwrap_or_default();
            // A client that does not take its answer has none.
            let _taken = timeout(CLIENT_TIMEOUT, stream.write_all(&text)).await;
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // If it stays, the next announcer finds it stale and replaces it.
        drop(fs::remove_file(&self.path));
    }
}
