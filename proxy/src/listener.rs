//! Bound sockets: accept, place, back off.
//!
//! Bind mode: one socket per address and port in use ([`sockets`]). Steer mode: one group of
//! sockets, to which the kernel brings every port of whole prefixes ([`steer`]). Each socket is
//! given to one worker, which accepts there and places every connection on the less loaded of two
//! workers, so that a few long HTTP/2 connections cannot sit on one core.

pub mod sockets;
pub mod steer;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use ipnet::IpNet;
use rustix::net::SocketFlags;
use telemetry::pressure::Level;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::connection::{self, Accepted};
use crate::error::{Code, Failure};
use crate::worker::Worker;

/// What connects to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Clients,
    Peers,
}

/// A socket for a worker to accept on, until `stop`. It stays open as long as anybody has it.
pub struct Listening {
    pub socket: Arc<TcpListener>,
    pub kind: Kind,
    /// A steered socket takes connections to these prefixes and no others; absent, the socket is
    /// bound to where its connections are meant for.
    pub steered: Option<Arc<[IpNet]>>,
    pub stop: CancellationToken,
}

/// A connection accepted by one worker for another.
pub struct Placed {
    socket: OwnedFd,
    peer: SocketAddr,
    local: SocketAddr,
    kind: Kind,
}

/// How the others see a worker.
#[derive(Clone)]
pub struct Peer {
    pub placed: mpsc::Sender<Placed>,
    pub load: Arc<AtomicU32>,
}

/// The workers that a connection may be placed on, and which of them this is.
#[derive(Clone)]
pub struct Placement {
    pub own: usize,
    pub workers: Arc<[Peer]>,
}

/// Whether a node opens sockets and accepts what comes to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// It accepts, and follows the inventory.
    Open,
    /// It accepts on what is open; nothing is opened or closed, for a successor is just getting it.
    Fixed,
    /// A successor accepts. The sockets stay open, so that they can be taken up again.
    Paused,
    /// They are the successor's, with all that belongs to them.
    Given,
}

/// Connections that may be on their way from one worker to another; more stay where they are.
pub const PLACED_MAX: usize = 256;

/// Pause after an accept that failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);

// === impl Listening ===

impl Listening {
    /// A bound socket for clients.
    pub fn clients(socket: Arc<TcpListener>, stop: CancellationToken) -> Self {
        Self { socket, kind: Kind::Clients, steered: None, stop }
    }

    /// A socket for clients to which the kernel brings the connections to `prefixes`.
    pub fn steered(
        socket: Arc<TcpListener>,
        prefixes: Arc<[IpNet]>,
        stop: CancellationToken,
    ) -> Self {
        Self { socket, kind: Kind::Clients, steered: Some(prefixes), stop }
    }

    /// The socket for other nodes.
    pub fn peers(socket: Arc<TcpListener>, stop: CancellationToken) -> Self {
        Self { socket, kind: Kind::Peers, steered: None, stop }
    }
}

/// Accepts on `listening` until it is told to stop.
pub async fn accept(listening: Listening, worker: Rc<Worker>, placement: Placement) {
    let Listening { socket, kind, steered, stop } = listening;
    let address = socket.local_addr().ok();
    // What a steered socket is bound to says nothing of its connections.
    let bound = if steered.is_some() { None } else { address };
    let is_meant = |local: SocketAddr| {
        let address = local.ip().to_canonical();
        steered.as_ref().is_none_or(|prefixes| prefixes.iter().any(|own| own.contains(&address)))
    };
    #[expect(
        deprecated,
        reason = "its successor is unsafe code; a TcpListener keeps its descriptor"
    )]
    let Ok(socket) = AsyncFd::new(socket) else {
        tracing::error!(?address, "a socket cannot be polled");
        return;
    };
    let take = |(socket, peer, local)| {
        worker.metrics.accepted.increment();
        if is_meant(local) {
            place(Placed { socket, peer, local, kind }, &worker, &placement);
        } else {
            // Somebody on this machine who found the group's own port.
            worker.count(&Code::PE01.into());
        }
    };
    loop {
        let ready = tokio::select! {
            () = stop.cancelled() => break,
            ready = socket.readable() => ready,
        };
        let Ok(mut ready) = ready else { return };
        // What is not accepted waits in the kernel, which answers for it and holds little. Nodes wait
        // as well: their probes are not answered, so they send what they can to others.
        if worker.edge.pressure.is_at(Level::Refuse) {
            worker.metrics.pressure.refuse.increment();
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(BACK_OFF) => continue,
            }
        }
        match ready.try_io(|socket| accept_one(socket.get_ref(), bound)) {
            Err(_would_block) => {}
            Ok(Ok(accepted)) => take(accepted),
            Ok(Err(error)) => {
                worker.metrics.accept_errors.increment();
                if is_exhaustion(&error) {
                    // The queue is full of clients and there is nothing to serve them with: wait
                    // for connections to end instead of asking again at once.
                    tracing::warn!("accept failed: {error}");
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(BACK_OFF) => {}
                    }
                }
            }
        }
    }
    // Whom the kernel has let in already would meet a reset when the socket is closed.
    for _ in 0..worker.edge.config.listen.backlog {
        let Ok(accepted) = accept_one(socket.get_ref(), bound) else { break };
        take(accepted);
    }
}

/// Serves the connections that other workers place here, until they are gone.
pub async fn receive(mut placed: mpsc::Receiver<Placed>, worker: Rc<Worker>, load: Arc<AtomicU32>) {
    while let Some(placed) = placed.recv().await {
        spawn(placed, &worker, &load);
    }
}

fn accept_one(
    socket: &TcpListener,
    bound: Option<SocketAddr>,
) -> io::Result<(OwnedFd, SocketAddr, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (accepted, peer) = rustix::net::acceptfrom_with(socket, flags)?;
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let peer = peer.ok_or(io::ErrorKind::NotConnected)?.try_into().map_err(invalid)?;
    // The address of the connection is the socket's own, unless it is bound to all of them.
    let local = match bound {
        Some(bound) if !bound.ip().is_unspecified() => bound,
        _ => rustix::net::getsockname(&accepted)?.try_into().map_err(invalid)?,
    };
    Ok((accepted, peer, local))
}

/// Gives the connection to this worker or to a random other one, whichever has less to do.
fn place(placed: Placed, worker: &Rc<Worker>, placement: &Placement) {
    let own = &placement.workers[placement.own];
    let other = worker.rng.below(placement.workers.len());
    let other = &placement.workers[other];
    if other.load.load(Relaxed) < own.load.load(Relaxed) {
        match other.placed.try_send(placed) {
            Ok(()) => {}
            Err(
                mpsc::error::TrySendError::Full(placed) | mpsc::error::TrySendError::Closed(placed),
            ) => {
                spawn(placed, worker, &own.load);
            }
        }
    } else {
        spawn(placed, worker, &own.load);
    }
}

fn spawn(placed: Placed, worker: &Rc<Worker>, load: &Arc<AtomicU32>) {
    let Placed { socket, peer, local, kind } = placed;
    let guard = match worker.edge.connections.admit() {
        Ok(guard) => guard,
        Err(code) => return worker.count(&code.into()),
    };
    let socket = match TcpStream::from_std(socket.into()) {
        Ok(socket) => socket,
        Err(error) => return worker.count(&Failure::new(Code::PX01).because(error)),
    };
    let counted = Counted::new(worker, kind, load);
    let serving = worker.clone();
    worker.spawn_connection(|mark| async move {
        let worker = serving;
        let accepted = Accepted { socket, peer, local, guard, mark };
        let served = match kind {
            // Boxed apart, so that the task is no larger than the smaller of them needs.
            Kind::Clients => Box::pin(connection::serve(accepted, worker.clone())).await,
            Kind::Peers => Box::pin(connection::serve_peer(accepted, worker.clone())).await,
        };
        if let Err(failure) = served {
            worker.count(&failure);
        }
        drop(counted);
    });
}

/// A connection in the metrics and in the worker's load, however it ends.
struct Counted {
    connections: telemetry::metrics::Gauge,
    load: Arc<AtomicU32>,
}

impl Counted {
    fn new(worker: &Worker, kind: Kind, load: &Arc<AtomicU32>) -> Self {
        let connections = match kind {
            Kind::Clients => worker.metrics.connections.clone(),
            Kind::Peers => worker.metrics.peer_connections.clone(),
        };
        connections.add(1);
        load.fetch_add(1, Relaxed);
        Self { connections, load: load.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.add(-1);
        self.load.fetch_sub(1, Relaxed);
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    exhausted.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
