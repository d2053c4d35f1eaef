//! An instance on hyper that streams: for nonces, uploads, trailers, cancellation.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::port::free_address;
use crate::wait;

type BoxBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// A running echo, on a thread of its own. By path:
///
/// - `/echo` sends the request's body and trailers back as they come
/// - `/whole` reads the whole body, then sends it back
/// - `/bytes/N` sends N bytes
/// - `/status/N` answers with that status code
/// - `/hang` never answers
/// - `/drip` sends a line every 10 ms, for ever
/// - `/gate` answers when [`Echo::open`] lets it
/// - `/trailers` sends a body and the trailer `x-checksum: 7`
///
/// Every answer repeats the request's `x-nonce`.
pub struct Echo {
    address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// The head of a request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method and target.
    pub line: String,
    /// The fields.
    pub headers: HeaderMap,
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// When it came.
    pub at: Instant,
}

struct State {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    requests: AtomicUsize,
    cancelled: Mutex<Vec<Instant>>,
    gate: Semaphore,
}

/// Heads that are kept.
const SEEN_MAX: usize = 1_000;

/// One request in flight; dropped before its answer is complete, it was cancelled.
struct InFlight {
    state: Arc<State>,
    complete: bool,
}

/// A body that keeps its request in flight to its end.
struct Tracked {
    body: BoxBody,
    in_flight: InFlight,
}

// === impl Echo ===

impl Echo {
    /// An instance that speaks HTTP/1.1.
    pub fn http1() -> Self {
        Self::http1_at(free_address(1))
    }

    /// An instance that speaks HTTP/1.1 on this address.
    pub fn http1_at(address: SocketAddr) -> Self {
        Self::start(address, false)
    }

    /// An instance that speaks HTTP/2 with prior knowledge.
    pub fn h2c() -> Self {
        Self::start(free_address(1), true)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.state.requests.load(SeqCst)
    }

    /// Requests whose answer is not complete.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(SeqCst)
    }

    /// The first heads that came.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("no holder panics").clone()
    }

    /// When requests were given up by the other side.
    pub fn cancelled(&self) -> Vec<Instant> {
        self.state.cancelled.lock().expect("no holder panics").clone()
    }

    /// Lets `count` requests through the gate.
    pub fn open(&self, count: usize) {
        self.state.gate.add_permits(count);
    }

    /// Waits until `count` requests are in flight.
    #[track_caller]
    pub fn holds(&self, count: usize) {
        wait::until(&format!("{count} requests are in flight at the instance"), || {
            self.in_flight() == count
        });
    }

    fn start(address: SocketAddr, h2: bool) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a listening socket");
        let state = Arc::new(State {
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            cancelled: Mutex::default(),
            gate: Semaphore::new(0),
        });
        let stop = CancellationToken::new();
        let thread = std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let serve = accept(listener, &state, h2);
                runtime.expect("a runtime").block_on(stop.run_until_cancelled(serve));
            }
        });
        Self { address, state, stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the instance panicked");
        }
    }
}

async fn accept(listener: std::net::TcpListener, state: &Arc<State>, h2: bool) {
    let listener = TcpListener::from_std(listener).expect("inside the runtime");
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, SeqCst);
        stream.set_nodelay(true).expect("a TCP socket");
        connections.spawn(connection(stream, state.clone(), h2));
        while connections.try_join_next().is_some() {} // ended ones take no room
    }
}

async fn connection(stream: TcpStream, state: Arc<State>, h2: bool) {
    let service = service_fn(move |request| answer(request, state.clone()));
    let stream = TokioIo::new(stream);
    // How the edge ends its connections is seen elsewhere, not here.
    if h2 {
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.serve_connection(stream, service).await.unwrap_or_default();
    } else {
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(stream, service).await.unwrap_or_default();
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Tracked>, hyper::Error> {
    let in_flight = InFlight::new(&state);
    state.see(&request);
    let nonce = request.headers().get("x-nonce").cloned();
    let announced = request.headers().get("trailer").cloned();
    let path = request.uri().path().to_owned();
    let number = || path.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let mut response = match path.as_str() {
        "/echo" => Response::new(request.into_body().boxed_unsync()),
        "/whole" => {
            let body = request.into_body().collect().await?;
            Response::new(full(body.to_bytes()))
        }
        "/hang" => {
            // Only who reads hears that the other side is gone.
            request.into_body().collect().await?;
            std::future::pending().await
        }
        "/drip" => Response::new(drip()),
        "/trailers" => Response::new(with_trailers(request.headers())),
        "/gate" => {
            request.into_body().collect().await?;
            state.gate.acquire().await.expect("the gate is never closed").forget();
            Response::new(full("through the gate"))
        }
        _ if path.starts_with("/bytes/") => Response::new(full(vec![b'x'; number()])),
        _ if path.starts_with("/status/") => {
            let mut response = Response::new(full(""));
            *response.status_mut() = u16::try_from(number())
                .ok()
                .and_then(|status| http::StatusCode::from_u16(status).ok())
                .unwrap_or_default();
            response
        }
        _ => Response::new(full("hello\n")),
    };
    if let Some(nonce) = nonce {
        response.headers_mut().insert("x-nonce", nonce);
    }
    // Over HTTP/1.1 hyper sends only the trailers that were announced.
    if path == "/trailers" {
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
    } else if let Some(announced) = announced {
        response.headers_mut().insert("trailer", announced);
    }
    Ok(response.map(|body| Tracked { body, in_flight }))
}

fn full(body: impl Into<Bytes>) -> BoxBody {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn drip() -> BoxBody {
    let lines = futures_util::stream::repeat(()).then(|()| async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(Frame::data(Bytes::from_static(b"drip\n")))
    });
    StreamBody::new(lines).boxed_unsync()
}

/// The trailer is sent to whom said `te: trailers`, as a careful server does.
fn with_trailers(headers: &HeaderMap) -> BoxBody {
    let wanted = headers.get("te").is_some_and(|te| te.as_bytes().starts_with(b"trailers"));
    let trailers = wanted.then(|| {
        HeaderMap::from_iter([(
            HeaderName::from_static("x-checksum"),
            HeaderValue::from_static("7"),
        )])
    });
    let frames = [Some(Frame::data(Bytes::from_static(b"body"))), trailers.map(Frame::trailers)];
    // Of unknown length, so that over HTTP/1.1 it is chunked: nothing else has trailers.
    StreamBody::new(futures_util::stream::iter(frames.into_iter().flatten().map(Ok))).boxed_unsync()
}

// === impl State, InFlight, Tracked ===

impl State {
    fn see(&self, request: &Request<Incoming>) {
        self.requests.fetch_add(1, SeqCst);
        let mut seen = self.seen.lock().expect("no holder panics");
        if seen.len() < SEEN_MAX {
            let line = format!("{} {}", request.method(), request.uri());
            let headers = request.headers().clone();
            seen.push(Seen { line, headers, version: request.version(), at: Instant::now() });
        }
    }
}

impl InFlight {
    fn new(state: &Arc<State>) -> Self {
        state.in_flight.fetch_add(1, SeqCst);
        Self { state: state.clone(), complete: false }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.complete {
            let mut cancelled = self.state.cancelled.lock().expect("no holder panics");
            if cancelled.len() < SEEN_MAX {
                cancelled.push(Instant::now());
            }
        }
        self.state.in_flight.fetch_sub(1, SeqCst);
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.in_flight.complete = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
