//! What this node says about itself over HTTP: read-only pages on a TCP address and on the socket.
//!
//! What is said comes through [`View`], so nothing here knows the data plane. Both listeners serve
//! the same pages; [commands](control) are taken on the socket only, whose mode keeps strangers out.

mod page;
mod socket;
pub mod control;
pub mod drain;
pub mod filter;
pub mod inventory;
pub mod memory;
pub mod requests;
pub mod status;
pub mod trace;
pub mod upgrade;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use telemetry::black_box::Report;
use telemetry::heapwatch::{self, Query};
use telemetry::ledger::scope::ADMIN;
use telemetry::metrics::Format;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::handoff::{Held, Inherited, Legacy, Place};
use crate::listener::Stance;

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
    held: [Held; 2],
}

/// When the listeners are served.
pub struct Hours {
    /// Nobody is let in while a successor has the listeners.
    pub stance: watch::Receiver<Stance>,
    /// Whoever is in is answered; then it is over.
    pub stop: CancellationToken,
    pub visitors: Visitors,
}

/// Who has been let in and waits for a page. Cloning shares it.
#[derive(Clone, Default)]
pub struct Visitors(watch::Sender<usize>);

/// One of them, until dropped.
struct Visitor(Visitors);

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

/// The same for a command that tells how far it is: longer than a handover may be configured to take.
const STORY_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Connections that wait to be accepted, at each listener.
const BACKLOG: u32 = 128;

/// Bytes of a request head.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// After a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

// === impl Admin ===

impl Admin {
    /// Binds both listeners, but for what was inherited; serves nothing yet.
    ///
    /// # Errors
    ///
    /// When either cannot be bound, or another process answers on the socket.
    pub fn bind(
        config: &config::Admin,
        inherited: &mut Inherited,
        legacy: &Legacy,
    ) -> Result<Self, BindError> {
        let config::Admin { address, socket } = config;
        let failed = |source| BindError::Address { address: *address, source };
        let place = Place::Admin { address: *address };
        let tcp = match inherited.tcp(&place, BACKLOG) {
            Some(tcp) => tcp,
            None => StdTcpListener::bind(address)
                .and_then(|tcp| tcp.set_nonblocking(true).map(|()| tcp))
                .map_err(failed)?,
        };
        let held_tcp = legacy.hold(place, Arc::new(tcp.try_clone().map_err(failed)?));
        let (path, socket) = (socket, socket::Socket::bind(socket, inherited)?);
        let failed = |source| BindError::Socket { path: path.clone(), source };
        let place = Place::AdminSocket { path: path.clone() };
        let held_unix = legacy.hold(place, Arc::new(socket.try_clone().map_err(failed)?));
        Ok(Self { tcp, socket, held: [held_tcp, held_unix] })
    }

    /// Where the pages are, with the port that the kernel chose when 0 was asked for.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves in these hours, then waits for the connections it has.
    pub async fn run(self, view: Arc<dyn View>, control: Arc<dyn Control>, hours: Hours) {
        let Self { tcp, socket, held } = self;
        let (unix, file) = socket.into_parts();
        let (tcp, unix) = match (TcpListener::from_std(tcp), UnixListener::from_std(unix)) {
            (Ok(tcp), Ok(unix)) => (tcp, unix),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "the admin listeners cannot be watched");
                return;
            }
        };
        let node = Node { view, control };
        tokio::join!(serve(tcp, &node, &hours), serve(unix, &node, &hours));
        drop(held);
        match *hours.stance.borrow() {
            Stance::Given => file.leave(),
            // After the last answer, so that nobody finds the name gone and us still there.
            _ => drop(file),
        }
    }
}

// === impl Visitors ===

impl Visitors {
    /// Waits until nobody is left; whoever is told of an upgrade line by line does not count.
    pub async fn gone(&self) {
        let mut inside = self.0.subscribe();
        // The sender is ours.
        drop(inside.wait_for(|inside| *inside == 0).await);
    }

    fn enter(&self) -> Visitor {
        self.0.send_modify(|inside| *inside += 1);
        Visitor(self.clone())
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.0.0.send_modify(|inside| *inside -= 1);
    }
}

/// An answer as a whole, or line by line.
type Body = Either<Full<Bytes>, upgrade::Story>;

/// Who is asked, and who is told.
#[derive(Clone)]
struct Node {
    view: Arc<dyn View>,
    control: Arc<dyn Control>,
}

// === impl Node ===

impl Node {
    async fn respond(&self, request: Request<Incoming>, caller: Option<Caller>) -> Response<Body> {
        let request = match caller {
            Some(caller) => match control::respond(request, self.control.clone(), caller).await {
                Ok(response) => return response,
                Err(request) => request,
            },
            None if control::knows(request.uri().path()) => {
                return control::only_on_the_socket().map(Either::Left);
            }
            None => request,
        };
        page::respond(&request, self.view.as_ref()).map(Either::Left)
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

async fn serve<L: Accept + Sync>(listener: L, node: &Node, hours: &Hours) {
    let Hours { stance, stop, visitors } = hours;
    let mut stance = stance.clone();
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async || {
        let permit = Arc::clone(&room).acquire_owned().await.expect("nobody closes the semaphore");
        listener.accept().await.map(|stream| (stream, permit))
    };
    loop {
        let is_open = matches!(*stance.borrow_and_update(), Stance::Open | Stance::Fixed);
        let accepted = tokio::select! {
            biased; // who closes the door must be heard before the next is let in
            () = stop.cancelled() => break,
            changed = stance.changed() => match changed {
                Ok(()) => continue,
                Err(_) => break, // the node is gone
            },
            accepted = accept(), if is_open => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let caller = L::caller(&stream);
                let visitor = visitors.enter();
                let connection = connection(stream, node.clone(), caller, visitor, stop.clone());
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

async fn connection<S>(
    stream: S,
    node: Node,
    caller: Option<Caller>,
    visitor: Visitor,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tells_a_story = Arc::<AtomicBool>::default();
    let visitor = Arc::new(Mutex::new(Some(visitor)));
    let service = {
        let tells_a_story = tells_a_story.clone();
        let visitor = visitor.clone();
        service_fn(move |request| {
            let (node, tells_a_story) = (node.clone(), tells_a_story.clone());
            let visitor = visitor.clone();
            async move {
                let response = node.respond(request, caller).await;
                if let Either::Right(_) = response.body() {
                    tells_a_story.store(true, Relaxed);
                    drop(visitor.lock().take());
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
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
    let mut served = pin!(served);
    let mut ended = tokio::time::timeout(CONNECTION_TIMEOUT, served.as_mut()).await;
    if ended.is_err() && tells_a_story.load(Relaxed) {
        ended = tokio::time::timeout(STORY_TIMEOUT, served).await;
    }
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection broke"),
        Err(_) => tracing::debug!("an admin client did not take its answer in time"),
    }
}

#[cfg(test)]
mod tests;
