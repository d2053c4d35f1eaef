//! The nodes of the demo: processes of their own that end with this one, however it ends.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::plan::{APPS, Place};
use crate::admin;
use crate::cli::client;

/// The processes; killed when dropped.
#[derive(Default)]
pub(super) struct Nodes(Vec<Node>);

struct Node {
    place: &'static Place,
    folder: PathBuf,
    child: Child,
}

/// Why a node does not serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeError {
    #[error("the node {node} cannot be started")]
    Spawn { node: &'static str, source: io::Error },
    #[error("the node {node} ended ({status}); the end of its log:\n{log}")]
    Ended { node: &'static str, status: ExitStatus, log: String },
    #[error("the node {node} is not ready; the end of its log:\n{log}")]
    NotReady { node: &'static str, log: String },
}

/// From start to the first connection that each of its sockets takes.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// From the wish to stop to the kill; longer than the drain timeout in the demo's files.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a process is looked after.
const LOOK: Duration = Duration::from_millis(50);

// === impl Nodes ===

impl Nodes {
    pub(super) fn start(&mut self, folder: &Path, place: &'static Place) -> Result<(), NodeError> {
        self.0.push(Node::start(folder, place)?);
        Ok(())
    }

    pub(super) async fn ready(&mut self) -> Result<(), NodeError> {
        let by = Instant::now() + READY_TIMEOUT;
        for node in &mut self.0 {
            node.ready(by).await?;
        }
        Ok(())
    }

    /// Returns when one of them has ended.
    pub(super) async fn watch(&mut self) -> NodeError {
        loop {
            for node in &mut self.0 {
                if let Err(ended) = node.still_runs() {
                    return ended;
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Lets them finish what began.
    pub(super) async fn stop(&mut self) {
        for node in &mut self.0 {
            drop(node.child.stdin.take());
        }
        let all = async {
            for node in &mut self.0 {
                while let Ok(None) = node.child.try_wait() {
                    sleep(LOOK).await;
                }
            }
        };
        // Who is still there is killed when dropped.
        drop(timeout(STOP_TIMEOUT, all).await);
    }
}

// === impl Node ===

impl Node {
    fn start(folder: &Path, place: &'static Place) -> Result<Self, NodeError> {
        let node = place.node;
        let folder = folder.join(node);
        let spawn = || {
            let log = File::create(folder.join("log"))?;
            Command::new(env::current_exe()?)
                .args(["run", "--until-stdin-closes", "--config"])
                .arg(folder.join("edge.toml"))
                // Held open by this process alone, and closed by the kernel if that is killed.
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(log)
                // Ctrl-C is for the demo, which then lets its nodes drain.
                .process_group(0)
                .spawn()
        };
        let child = spawn().map_err(|source| NodeError::Spawn { node, source })?;
        Ok(Self { place, folder, child })
    }

    async fn ready(&mut self, by: Instant) -> Result<(), NodeError> {
        while !self.is_ready().await {
            self.still_runs()?;
            if Instant::now() > by {
                return Err(NodeError::NotReady { node: self.place.node, log: self.log() });
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Whether everything that is printed would work: apps, peers and sockets are there.
    async fn is_ready(&self) -> bool {
        let socket = self.folder.join("admin.sock");
        let Ok((_, status)) = client::ask::<admin::Status>(&socket, "/status").await else {
            return false;
        };
        let apps = status.apps == APPS.len() as u64;
        let peers = status.peers.iter().all(|peer| peer.reachable && peer.rtt_ms.is_some());
        if !(status.ready && apps && peers) {
            return false;
        }
        for address in self.place.sockets() {
            if TcpStream::connect(address).await.is_err() {
                return false;
            }
        }
        true
    }

    fn still_runs(&mut self) -> Result<(), NodeError> {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                Err(NodeError::Ended { node: self.place.node, status, log: self.log() })
            }
            // An error says that it cannot be looked at, not that it ended.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// The last lines it wrote.
    fn log(&self) -> String {
        const LINES: usize = 5;
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
