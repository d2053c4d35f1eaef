//! What a node speaks to, on threads of this process: instances that do as their paths say, and a
//! collector that does or does not.

pub(crate) mod http1;
mod h2c;
mod websocket;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};

use crate::process::free;

/// A thread that accepts, and one for each connection, which end when the node closes them.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

/// An HTTP/1.1 instance; what it does is in the path, see [`http1`].
pub(crate) struct Origin {
    server: Server,
    seen: Arc<Seen>,
}

/// What an instance has counted.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub requests: AtomicU64,
    /// Requests that the node did not send as such: without the id that it gives to each.
    pub unmarked: AtomicU64,
    /// Requests that no strict server would take.
    pub malformed: AtomicU64,
}

/// Says that it has taken everything, or nothing at all.
pub(crate) struct Collector {
    server: Server,
    mode: Arc<AtomicU8>,
}

/// What the collector does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Takes {
    Everything,
    /// Takes the connection and never answers.
    Nothing,
    /// Answers that it is busy.
    Busy,
    /// Closes the connection.
    Closed,
    /// Answers with a byte a second.
    Trickle,
}

// === impl Server ===

impl Server {
    pub(crate) fn start(
        serve: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::at(free()?, serve)
    }

    pub(crate) fn at(
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let serve = Arc::new(serve);
        let acceptor = thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(SeqCst) {
                    return;
                }
                // Out of descriptors, or the client left already.
                let Ok(connection) = connection else { continue };
                let serve = serve.clone();
                let thread = thread::Builder::new().stack_size(256 * 1024);
                // Whatever goes wrong with it, the node sees and the client tells.
                drop(thread.spawn(move || drop(serve(connection))));
            }
        });
        Ok(Self { address, stop, acceptor: Some(acceptor) })
    }

    /// Copies bytes back.
    pub(crate) fn echo() -> Result<Self> {
        Self::start(|mut connection| {
            connection.set_nodelay(true)?;
            let mut chunk = vec![0; 16 * 1024];
            loop {
                let count = connection.read(&mut chunk)?;
                if count == 0 {
                    return Ok(());
                }
                connection.write_all(&chunk[..count])?;
            }
        })
    }

    /// Echoes messages of HTTP/2 streams, and ends each with trailers.
    pub(crate) fn h2c() -> Result<Self> {
        Self::start(h2c::serve)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        drop(TcpStream::connect(self.address)); // so that it looks
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

// === impl Origin ===

impl Origin {
    pub(crate) fn start() -> Result<Self> {
        Self::at(free()?)
    }

    /// Instances of one service have the same port, so each has an address of its own.
    pub(crate) fn beside(other: &Self, last: u8) -> Result<Self> {
        let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        Self::at((ip, other.address().port()).into())
    }

    pub(crate) fn at(address: SocketAddr) -> Result<Self> {
        let seen = Arc::<Seen>::default();
        let counting = seen.clone();
        let server = Server::at(address, move |connection| http1::serve(connection, &counting))?;
        Ok(Self { server, seen })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }
}

// === impl Collector ===

impl Collector {
    pub(crate) fn start(takes: Takes) -> Result<Self> {
        let mode = Arc::new(AtomicU8::new(takes as u8));
        let now = mode.clone();
        let server = Server::start(move |connection| http1::collect(connection, &now))?;
        Ok(Self { server, mode })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    pub(crate) fn becomes(&self, takes: Takes) {
        self.mode.store(takes as u8, SeqCst);
    }
}
