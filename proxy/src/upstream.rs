//! From a worker to the instances: sockets, HTTP/1 exchanges, HTTP/2 connections, tunnels.
//!
//! It is told where to send ([`Target`]) and says what happened ([`Refused`], [`Failure`]); which
//! instance takes a request, and whether another one may try, is decided elsewhere. Everything here
//! belongs to one worker and never leaves its thread.

mod patience;
mod connect;
pub(crate) mod framing;
mod pool;
pub(crate) mod http1;
mod http2;
mod connections;
mod tunnel;
pub mod retry;
#[cfg(feature = "micro")]
pub mod micro;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::ext::Protocol;
use http::{HeaderMap, Method, Request, Response, request};
use telemetry::error::chain;
use telemetry::heapwatch::{Subsystem, tagged};
use telemetry::ledger::Ledger;
use telemetry::ledger::scope::CONNECTIONS;
use telemetry::metrics::Registry;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::Body;
use crate::config;
use crate::error::{Code, FERRULE_ERROR, Failure, Retry};
use crate::identify::mesh;
use crate::io::cork;
use crate::nodes::{Node, Word};

use connect::{Kinds, Stream, connect};
use connections::{Connections, Key};
use http1::{Http1, Switch};
use http2::{Connection, Http2, NoSlot, Peer, Slot};
use pool::{Look, Pool};

pub use connect::Open;
pub use tunnel::{H2Tunnel, TcpTunnel, Tunnel};

/// The upstream side of one worker.
pub struct Upstreams {
    kinds: Kinds,
    timeouts: config::Timeouts,
    pool: Rc<Pool>,
    http1: Http1,
    http2: Http2,
    connections: Rc<Connections>,
    mesh: Option<Arc<dyn MeshConnect>>,
}

/// Where a request goes; what the pools are keyed by.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub transport: Transport,
}

/// How the target is spoken to.
#[derive(Clone)]
pub enum Transport {
    /// `reuse`: connections are kept for further requests.
    Http1 { reuse: bool },
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// HTTP/2 over mutual TLS to another node.
    Mesh(Arc<Node>),
}

/// A request that got no answer.
pub struct Refused {
    pub failure: Failure,
    /// The body, when not one byte of it was asked for: it can go elsewhere as it is.
    ///
    /// With [`Retry::Unsent`] and nothing here the request was sent and refused unprocessed (a
    /// GOAWAY, a REFUSED_STREAM): whoever wants to send it elsewhere needs a [`retry::Replay`].
    pub unsent: Option<Body>,
}

/// What came of asking for an upgrade.
pub enum Upgrade {
    /// The head of the answer (101, or 2xx over HTTP/2) and the stream behind it.
    Switched(Response<()>, Tunnel),
    /// The instance did not switch; this is its answer.
    Answered(Response<Body>),
}

/// Makes the TLS connections to other nodes.
pub trait MeshConnect: Send + Sync {
    /// A connection to `node`, which has proved that it is that node and agreed on HTTP/2.
    fn connect<'a>(
        &'a self,
        node: &'a Node,
    ) -> BoxFuture<'a, Result<TlsStream<TcpStream>, Failure>>;
}

/// Pooled connections one request may find closed before it gets a new one.
const STALE_MAX: usize = 2;

// === impl Upstreams ===

impl Upstreams {
    pub fn new(
        limits: &config::Limits,
        timeouts: &config::Timeouts,
        tasks: TaskTracker,
        buffers: cork::Buffers,
        mesh: Option<Arc<dyn MeshConnect>>,
        registry: &Registry,
        ledger: &Ledger,
    ) -> Rc<Self> {
        let http2 = Http2::new(limits, timeouts, buffers.clone(), tasks.clone());
        Rc::new(Self {
            kinds: Kinds::new(registry),
            timeouts: timeouts.clone(),
            pool: Rc::new(Pool::new(limits, timeouts, ledger)),
            http1: Http1::new(limits, timeouts, buffers, tasks),
            connections: Connections::new(limits, http2.clone(), ledger),
            http2,
            mesh,
        })
    }

    /// Sends the request of `head` and `body` and resolves with the head of the answer; the body
    /// streams. HTTP/1 writes `head` from where it is and leaves it as it was; what HTTP/2 keeps of
    /// it, it takes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future, or the answer's body before its end, cancels the request at the instance.
    pub async fn send(
        &self,
        to: &Target,
        head: &mut request::Parts,
        body: Body,
    ) -> Result<Response<Body>, Refused> {
        match &to.transport {
            Transport::Http1 { reuse } => self.send_http1(to.address, *reuse, head, body).await,
            Transport::H2c | Transport::Mesh(_) => Box::pin(self.send_http2(to, head, body)).await,
        }
    }

    /// A byte stream: a connection to an instance on this node, or, over the mesh, what `head`, a
    /// CONNECT, asks the other node for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes what was opened.
    pub async fn connect(&self, to: &Target, head: Request<()>) -> Result<Tunnel, Failure> {
        if !matches!(to.transport, Transport::Mesh(_)) {
            let stream = connect(to.address, self.timeouts.connect, &self.kinds.tcp).await?;
            return Ok(Tunnel::tcp(stream, Bytes::new()));
        }
        let (_, response) = self.tunnel(to, &head).await?;
        let (head, stream) = response.into_parts();
        if head.status.is_success() {
            return Ok(Tunnel::h2(stream));
        }
        Err(declined(&head))
    }

    /// Asks for an upgrade to `protocol` with `request`: by the fields `connection` and `upgrade`
    /// that it brings to an HTTP/1 instance, by an extended CONNECT over HTTP/2.
    ///
    /// # Errors
    ///
    /// PP07: the other side does not know extended CONNECT.
    pub async fn upgrade(
        &self,
        to: &Target,
        mut request: Request<()>,
        protocol: &str,
    ) -> Result<Upgrade, Failure> {
        if let Transport::Http1 { .. } = to.transport {
            let stream = connect(to.address, self.timeouts.connect, &self.kinds.tcp).await?;
            let (head, ()) = request.into_parts();
            return Ok(match self.http1.upgrade(stream, &head).await? {
                Switch::Switched(head, stream, first) => {
                    Upgrade::Switched(head, Tunnel::tcp(stream, first))
                }
                Switch::Answered(response) => Upgrade::Answered(response),
            });
        }
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from(protocol));
        let (connection, response) = self.tunnel(to, &request).await?;
        let (head, stream) = response.into_parts();
        if head.status.is_success() {
            return Ok(Upgrade::Switched(Response::from_parts(head, ()), Tunnel::h2(stream)));
        }
        let body = connection.declined(stream);
        Ok(Upgrade::Answered(Response::from_parts(head, body)))
    }

    async fn send_http1(
        &self,
        address: SocketAddr,
        reuse: bool,
        head: &request::Parts,
        mut body: Body,
    ) -> Result<Response<Body>, Refused> {
        let home = || reuse.then(|| (self.pool.clone(), address));
        let look = if head.method.is_idempotent() { Look::Glance } else { Look::Closely };
        for _ in 0..STALE_MAX {
            let Some(stream) = self.pool.take(address, look, Instant::now()) else { break };
            match self.http1.exchange(stream, home(), head, body).await {
                Err(Refused { failure, unsent: Some(unsent) })
                    if failure.retry == Retry::Unsent =>
                {
                    body = unsent;
                }
                outcome => return outcome,
            }
        }
        // Boxed: a second exchange in this future would double it, and most requests find a socket.
        Box::pin(self.connect_http1(address, home(), head, body)).await
    }

    async fn connect_http1(
        &self,
        address: SocketAddr,
        home: Option<(Rc<Pool>, SocketAddr)>,
        head: &request::Parts,
        body: Body,
    ) -> Result<Response<Body>, Refused> {
        match connect(address, self.timeouts.connect, &self.kinds.http1).await {
            Ok(stream) => self.http1.exchange(stream, home, head, body).await,
            Err(failure) => Err(Refused { failure, unsent: Some(body) }),
        }
    }

    async fn send_http2(
        &self,
        to: &Target,
        head: &mut request::Parts,
        body: Body,
    ) -> Result<Response<Body>, Refused> {
        let (connection, slot) = match self.stream(to).await {
            Ok(stream) => stream,
            Err(failure) => return Err(Refused { failure, unsent: Some(body) }),
        };
        let (nothing, ()) = Request::new(()).into_parts();
        let head = std::mem::replace(head, nothing);
        let mut response = connection.send(slot, Request::from_parts(head, body)).await?;
        to.listen(response.headers_mut());
        Ok(response)
    }

    /// Sends `head`, a CONNECT, over the shared connection to `to`.
    ///
    /// A stream that was on its way while the peer said that it ends the connection is asked for
    /// again on the next one: the peer has not looked at it, and that is no fault of the instance's.
    //= https://www.rfc-editor.org/rfc/rfc9113#section-8.7
    //# Requests that have not been processed have not failed; clients MAY automatically retry them, even those with non-idempotent methods.
    async fn tunnel(
        &self,
        to: &Target,
        head: &Request<()>,
    ) -> Result<(Rc<Connection>, Response<http2::Stream>), Failure> {
        let mut again = STALE_MAX;
        loop {
            let (connection, slot) = self.stream(to).await?;
            let is_extended = head.extensions().get::<Protocol>().is_some();
            if is_extended && !connection.allows_extended_connect() {
                return Err(Failure::new(Code::PP07));
            }
            match connection.tunnel(slot, head.clone()).await {
                Ok(mut response) => {
                    to.listen(response.headers_mut());
                    return Ok((connection, response));
                }
                // One that goes on refuses for other reasons, and would refuse again.
                Err(failure)
                    if failure.retry == Retry::Unsent && again > 0 && !connection.is_usable() =>
                {
                    again -= 1;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The right to one stream of the shared connection to `to`.
    async fn stream(&self, to: &Target) -> Result<(Rc<Connection>, Slot), Failure> {
        for _ in 0..=STALE_MAX {
            let connection = self.connections.get(&to.key(), || self.open(to)).await?;
            match connection.slot().await {
                Ok(slot) => return Ok((connection, slot)),
                Err(NoSlot::Retired) => {}
                Err(NoSlot::Full) => {
                    let failure = Failure::new(Code::PU02).retry(Retry::Unsent);
                    return Err(failure.because("too many streams wait for the connection"));
                }
            }
        }
        Err(connections::gone())
    }

    /// Makes the shared connection to `to`.
    fn open(
        &self,
        to: &Target,
    ) -> impl Future<Output = Result<Rc<Connection>, Failure>> + 'static + use<> {
        let (http2, address, within) = (self.http2.clone(), to.address, self.timeouts.connect);
        let (h2c, mesh) = (self.kinds.h2c.clone(), self.kinds.mesh.clone());
        let node = match &to.transport {
            Transport::Mesh(node) => Some((node.clone(), self.mesh.clone())),
            Transport::H2c | Transport::Http1 { .. } => None,
        };
        async move {
            let Some((node, connector)) = node else {
                let Stream { tcp, open } = connect(address, within, &h2c).await?;
                return http2.open(tcp, Peer::Instance, open).await;
            };
            let unreachable = || Failure::new(Code::PU03).retry(Retry::Unsent);
            let Some(connector) = connector else { return Err(unreachable()) };
            // TCP and then TLS, each as long as one connection may take.
            let tls = timeout(within * 2, connector.connect(&node))
                .await
                .map_err(|elapsed| unreachable().because(elapsed))?
                .map_err(|failure| unreachable().because(failure))?;
            let counted = (Open::new(&mesh), node.connected());
            http2.open(tls, Peer::Node, counted).await
        }
    }

    /// Makes the shared connection to `node` if there is none, and says when there is. What does not
    /// come to that in the caller's time goes on by itself: whoever needs the connection joins it.
    pub fn warm(self: &Rc<Self>, node: Arc<Node>, made: mpsc::Sender<()>) {
        let this = self.clone();
        let warm = async move {
            let to = Target { address: node.address, transport: Transport::Mesh(node) };
            let connection = this.connections.get(&to.key(), || this.open(&to)).await;
            match connection {
                Ok(_) => drop(made.try_send(())),
                Err(failure) => tracing::debug!("a node is not reached: {}", chain(&failure)),
            }
        };
        self.http2.tasks.spawn_local(tagged(Subsystem::Upstream, warm));
    }

    /// Closes the half of the pool that was used longest ago: memory is becoming short.
    pub fn halve_idle(&self) {
        self.pool.halve();
    }

    /// Closes what nobody uses: under pressure.
    pub fn close_idle(&self) {
        self.pool.clear();
        self.connections.retire(false);
    }

    /// Closes what nobody uses, and the rest as soon as its last request has ended: the worker is
    /// about to stop. What is sent afterwards gets new connections, so it is asked for once more when
    /// the last client has gone.
    pub fn drain(&self) {
        self.pool.clear();
        self.connections.retire(true);
    }

    /// Closes idle connections at their deadline, until `stop`. One task per worker.
    pub async fn sweep(&self, stop: CancellationToken) {
        let period = (self.timeouts.upstream_idle / 4)
            .clamp(Duration::from_millis(50), Duration::from_secs(1));
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = Instant::now();
            self.pool.sweep(now);
            self.connections.sweep(now);
            // Everything that this thread does is for connections.
            CONNECTIONS.take_what_is_there();
        }
    }
}

/// Another node's refusal of a CONNECT, in its own words.
fn declined(head: &http::response::Parts) -> Failure {
    let code = head.headers.get(FERRULE_ERROR).and_then(|told| Code::parse(told.as_bytes()));
    let retry = match code {
        // It did not even look for a permit, or found none: any other node may do better.
        Some(
            Code::PR02
            | Code::PR04
            | Code::PL01
            | Code::PL02
            | Code::PL03
            | Code::PL05
            | Code::PL06,
        ) => Retry::Unsent,
        _ => Retry::Never,
    };
    Failure::new(code.unwrap_or(Code::PU02)).retry(retry)
}

// === impl Target ===

impl Target {
    /// Which shared connection leads there.
    fn key(&self) -> Key {
        match &self.transport {
            Transport::Mesh(node) => Key::Node(node.id.clone(), self.address),
            Transport::H2c | Transport::Http1 { .. } => Key::Instance(self.address),
        }
    }

    /// Takes from the head of an answer what only nodes say to each other of themselves.
    fn listen(&self, headers: &mut HeaderMap) {
        let Transport::Mesh(node) = &self.transport else { return };
        // That it serves again is the probe's to say: answers may overtake each other.
        if headers.remove(mesh::DRAINING).is_some() {
            node.hear(Word::Draining);
        }
    }
}

// === impl Refused ===

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unsent = if self.unsent.is_some() { " (unsent)" } else { "" };
        write!(f, "{}{unsent}", chain(&self.failure))
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, unsent: None }
    }
}

#[cfg(test)]
mod tests;
