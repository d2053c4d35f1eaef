//! What this node says about itself over HTTP: read-only pages on a TCP address and on the socket.
//!
//! What is said comes through [`View`], so nothing here knows the data plane. Both listeners serve
//! the same pages; [commands](control) are taken on the socket only, whose mode keeps strangers out.

mod page;
mod socket;
pub mod control;
pub mod filter;
pub mod inventory;
pub mod memory;
pub mod requests;
pub mod status;
pub mod trace;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use telemetry::black_box::Report;
use telemetry::heapwatch::{self, Query};
use telemetry::ledger::scope::ADMIN;
use telemetry::metrics::Format;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;

pub use control::{Caller, Control};
pub use status::Status;

/// What the pages show. Every method is called on the control thread and must not block it.
pub trait View: Send + Sync + 'static {
    /// Whether traffic may be sent here, else why not.
    fn ready(&self) -> Result<(), String>;
    fn status(&self) -> Status;
    /// Apps with their instances, in the shape of [`inventory::Inventory`].
    fn inventory(&self) -> serde_json::Value;
    /// What the kernel drops, in the shape of [`filter::Filter`].
    fn filter(&self) -> serde_json::Value;
    /// Every metric, in the format that was asked for.
    fn metrics(&self, format: Format) -> String;
    /// Ledger lines and the allocator's totals.
    fn memory(&self) -> serde_json::Value;
    /// Blocks that are alive, by stack, as asked for.
    fn heap(&self, query: &Query) -> heapwatch::Report;
    /// What is going on, in the shape of [`requests::Requests`].
    fn requests(&self) -> serde_json::Value;
    /// Certificates in use, in the shape of [`inventory::Certificates`]; never a key.
    fn certificates(&self) -> serde_json::Value;
    /// How the last process of the node ended; absent when nothing was kept.
    fn last_exit(&self) -> Option<Arc<Report>>;
}

/// The bound listeners.
pub struct Admin {
    tcp: StdTcpListener,
    socket: socket::Socket,
}

/// Why the node cannot be asked about itself.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on the admin address {address}")]
    Address { address: SocketAddr, source: io::Error },
    #[error("cannot listen on the admin socket {}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("another process answers on the admin socket {}", path.display())]
    Live { path: PathBuf },
    #[error("{} is in the way of the admin socket and is not a socket", path.display())]
    Occupied { path: PathBuf },
}

/// Connections to one listener; more wait in the kernel's backlog. Each listener has its own
/// count, so that whoever fills the address cannot shut the operator out of the socket.
const CONNECTIONS_MAX: usize = 64;

/// From accept to the end of the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// From accept to the response's last byte; there is one request per connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request head.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

// === impl Admin ===

impl Admin {
    /// Binds both listeners; serves nothing yet.
    ///
    /// # Errors
    ///
    /// When either cannot be bound, or another process answers on the socket.
    pub fn bind(config: &config::Admin) -> Result<Self, BindError> {
        let config::Admin { address, socket } = config;
        let tcp = StdTcpListener::bind(address)
            .and_then(|tcp| tcp.set_nonblocking(true).map(|()| tcp))
            .map_err(|source| BindError::Address { address: *address, source })?;
        Ok(Self { tcp, socket: socket::Socket::bind(socket)? })
    }

    /// Where the pages are, with the port that the kernel chose when 0 was asked for.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `stop`, then waits for the connections it has.
    pub async fn run(
        self,
        view: Arc<dyn View>,
        control: Arc<dyn Control>,
        stop: CancellationToken,
    ) {
        let Self { tcp, socket } = self;
        let (unix, file) = socket.into_parts();
        let (tcp, unix) = match (TcpListener::from_std(tcp), UnixListener::from_std(unix)) {
            (Ok(tcp), Ok(unix)) => (tcp, unix),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "the admin listeners cannot be watched");
                return;
            }
        };
        let node = Node { view, control };
        tokio::join!(serve(tcp, &node, &stop), serve(unix, &node, &stop));
        drop(file); // after the last answer, so that nobody finds the name gone and us still there
    }
}

/// Who is asked, and who is told.
#[derive(Clone)]
struct Node {
    view: Arc<dyn View>,
    control: Arc<dyn Control>,
}

// === impl Node ===

impl Node {
    async fn respond(
        &self,
        request: Request<Incoming>,
        caller: Option<Caller>,
    ) -> Response<Full<Bytes>> {
        let request = match caller {
            Some(caller) => match control::respond(request, self.control.clone(), caller).await {
                Ok(response) => return response,
                Err(request) => request,
            },
            None if control::knows(request.uri().path()) => return control::only_on_the_socket(),
            None => request,
        };
        page::respond(&request, self.view.as_ref())
    }
}

/// What the two kinds of listener have in common.
trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Who may give commands over this stream; nobody, unless the kernel says who it is.
    fn caller(stream: &Self::Stream) -> Option<Caller>;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(Self::accept(self).await?.0)
    }

    fn caller(_: &TcpStream) -> Option<Caller> {
        None
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }

    fn caller(stream: &UnixStream) -> Option<Caller> {
        // As of connect(2): SO_PEERCRED.
        let peer = stream.peer_cred().ok()?;
        Some(Caller { uid: peer.uid(), pid: peer.pid() })
    }
}

async fn serve<L: Accept + Sync>(listener: L, node: &Node, stop: &CancellationToken) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async || {
        let permit = Arc::clone(&room).acquire_owned().await.expect("nobody closes the semaphore");
        listener.accept().await.map(|stream| (stream, permit))
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let caller = L::caller(&stream);
                let connection = connection(stream, node.clone(), caller, stop.clone());
                let serving = async move {
                    connection.await;
                    drop(permit);
                };
                drop(ADMIN.task(serving, |serving| connections.spawn(serving)));
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection<S>(stream: S, node: Node, caller: Option<Caller>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let node = node.clone();
        async move { Ok::<_, Infallible>(node.respond(request, caller).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false);
    let served = async {
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            served = connection.as_mut() => return served,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    };
    match tokio::time::timeout(CONNECTION_TIMEOUT, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection broke"),
        Err(_) => tracing::debug!("an admin client did not take its answer in time"),
    }
}

#[cfg(test)]
mod tests;
