//! `ferrule demo`: an edge of two regions on the loopback, made of real nodes.
//!
//! Each node is a process of its own (`ferrule run`) with files that can be read and changed while
//! it runs; the instances live here.

mod plan;
mod files;
mod folder;
mod instance;
mod node;
mod introduction;

use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::files::FilesError;
use self::folder::{Folder, FolderError};
use self::instance::InstanceError;
use self::node::{NodeError, Nodes};
use self::plan::{APPS, NODES};
use super::{Exit, Failure, answer, chain, complain};

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Empty folder for the demo's files, which are kept; otherwise they are temporary.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("the demo's runtime cannot start")]
    Runtime(#[source] io::Error),
    #[error("signals cannot be waited for")]
    Signal(#[source] io::Error),
    #[error("{} in use; does another demo run?", are(.0))]
    InUse(Vec<SocketAddr>),
    #[error("the demo has no folder")]
    Folder(#[source] FolderError),
    #[error("the demo has no files")]
    Files(#[source] FilesError),
    #[error("the demo has no instances")]
    Instance(#[source] InstanceError),
    #[error("the demo does not run")]
    Node(#[source] NodeError),
}

/// Ctrl-C and the other polite ways to end a program.
struct Interrupts([Signal; 3]);

// === impl Demo ===

impl Demo {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self { directory } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime
            .map_err(DemoError::Runtime)
            .and_then(|runtime| runtime.block_on(demo(directory)));
        ended.map(|()| Exit::Success).map_err(|error| {
            let exit = match &error {
                DemoError::Folder(_) => Exit::Usage,
                _ => Exit::Unavailable,
            };
            Failure { exit, message: chain(&error) }
        })
    }
}

async fn demo(directory: Option<PathBuf>) -> Result<(), DemoError> {
    // Before anything exists that has to be cleaned up.
    let mut interrupts = Interrupts::new().map_err(DemoError::Signal)?;
    let in_use = in_use();
    if !in_use.is_empty() {
        return Err(DemoError::InUse(in_use));
    }
    let folder = Folder::new(directory).map_err(DemoError::Folder)?;
    complain(&format!("demo: certificates, nodes and apps go to {}", folder.path().display()));
    files::write(folder.path()).map_err(DemoError::Files)?;

    let stop = CancellationToken::new();
    let instances = TaskTracker::new();
    instance::start(&instances, &stop).await.map_err(DemoError::Instance)?;
    let mut nodes = Nodes::default();
    let served = tokio::select! {
        () = interrupts.any() => Ok(()),
        failed = serve(&folder, &mut nodes) => Err(DemoError::Node(failed)),
    };
    complain("demo: stopping");
    nodes.stop().await;
    stop.cancel();
    instances.close();
    instances.wait().await;
    served
}

/// Starts the nodes, says what to try, and returns only when one of them cannot or ends.
async fn serve(folder: &Folder, nodes: &mut Nodes) -> NodeError {
    let began = Instant::now();
    for place in &NODES {
        complain(&format!("demo: starting {}", place.node));
        if let Err(error) = nodes.start(folder.path(), place) {
            return error;
        }
    }
    if let Err(error) = nodes.ready().await {
        return error;
    }
    complain(&format!("demo: ready after {:.1} s\n", began.elapsed().as_secs_f64()));
    let program = env::current_exe().unwrap_or_else(|_| "ferrule".into());
    // A reader that went away has seen enough; the demo goes on.
    drop(answer(introduction::introduction(folder.path(), &program)));
    nodes.watch().await
}

/// What the demo would listen on if nobody did already.
fn in_use() -> Vec<SocketAddr> {
    let nodes = NODES.iter().flat_map(|place| place.sockets());
    let instances = APPS.iter().flat_map(|app| app.instances()).map(|instance| instance.address);
    let taken = |address: &SocketAddr| {
        let error = TcpListener::bind(address).err();
        error.is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    nodes.chain(instances).filter(taken).collect()
}

/// The first few of them, and how many more.
fn are(addresses: &[SocketAddr]) -> String {
    const NAMED: usize = 4;
    let mut names: Vec<_> = addresses.iter().take(NAMED).map(ToString::to_string).collect();
    if addresses.len() > NAMED {
        names.push(format!("{} more", addresses.len() - NAMED));
    }
    match names.split_last() {
        Some((last, [])) => format!("{last} is"),
        Some((last, others)) => format!("{} and {last} are", others.join(", ")),
        None => "nothing is".to_owned(),
    }
}

// === impl Interrupts ===

impl Interrupts {
    fn new() -> io::Result<Self> {
        use SignalKind as Kind;
        let [interrupt, terminate, hangup] =
            [Kind::interrupt(), Kind::terminate(), Kind::hangup()].map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_named() {
        let check = |ports: std::ops::Range<u16>, expected: &str| {
            let error = DemoError::InUse(ports.map(|port| ([127, 0, 0, 1], port).into()).collect());
            assert_eq!(error.to_string(), format!("{expected} in use; does another demo run?"));
        };
        check(1..2, "127.0.0.1:1 is");
        check(1..3, "127.0.0.1:1 and 127.0.0.1:2 are");
        check(1..10, "127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3, 127.0.0.1:4 and 5 more are");
    }
}
