//! Instances that check and count what reaches them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pattern::{self, PIECE_MAX};
use crate::port::free_address;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// An instance on a thread of its own. By path:
///
/// - `POST /once` and `/once/MS` note `x-id` and answer with it, after so many milliseconds
/// - `GET /download/N` sends N bytes of the pattern
/// - `POST /upload` answers with how many bytes came, up to the first that is not the pattern's
/// - `POST /echo` sends back what comes as it comes, and the trailer `grpc-status: 0`
/// - everything else is answered with `hello`
///
/// One that speaks bytes sends back what comes.
pub struct Origin {
    address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What an instance speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    H2c,
    Bytes,
}

#[derive(Default)]
struct State {
    /// How often each id came.
    ids: Mutex<HashMap<u64, u32>>,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
}

/// A request until it is answered or given up.
struct InFlight(Arc<State>);

// === impl Origin ===

impl Origin {
    /// Starts one on a free port.
    pub(super) fn start(speaks: Speaks) -> Self {
        let address = free_address(1);
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a listening socket");
        let state = Arc::<State>::default();
        let stop = CancellationToken::new();
        let thread = std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let serve = accept(listener, &state, speaks);
                runtime.expect("a runtime").block_on(stop.run_until_cancelled(serve));
            }
        });
        Self { address, state, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests beyond the first with their id.
    pub fn duplicated(&self) -> u64 {
        let ids = self.state.ids.lock().expect("no holder panics");
        ids.values().map(|times| u64::from(times - 1)).sum()
    }

    /// Different ids that came.
    pub fn ids(&self) -> usize {
        self.state.ids.lock().expect("no holder panics").len()
    }

    /// Requests that are not answered.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.load(SeqCst)
    }

    /// The most there ever were at a time.
    pub fn in_flight_max(&self) -> usize {
        self.state.in_flight_max.load(SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the instance panicked");
        }
    }
}

async fn accept(listener: std::net::TcpListener, state: &Arc<State>, speaks: Speaks) {
    let listener = TcpListener::from_std(listener).expect("inside the runtime");
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a TCP socket");
        connections.spawn(connection(stream, state.clone(), speaks));
        while connections.try_join_next().is_some() {} // ended ones take no room
    }
}

async fn connection(mut stream: TcpStream, state: Arc<State>, speaks: Speaks) {
    let service = service_fn(move |request| answer(request, state.clone()));
    // How the edge ends its connections is seen by clients, not here.
    match speaks {
        Speaks::Http1 => {
            let http = hyper::server::conn::http1::Builder::new();
            http.serve_connection(TokioIo::new(stream), service).await.unwrap_or_default();
        }
        Speaks::H2c => {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.serve_connection(TokioIo::new(stream), service).await.unwrap_or_default();
        }
        Speaks::Bytes => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap_or_default();
            write.shutdown().await.unwrap_or_default();
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let mut words = path.split('/').skip(1);
    let what = words.next().unwrap_or_default();
    let number: u64 = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    Ok(match (request.method(), what) {
        (&Method::POST, "once") => {
            let _in_flight = InFlight::new(&state);
            let id = request.headers().get("x-id").and_then(|id| id.to_str().ok()?.parse().ok());
            let id: u64 = id.unwrap_or_default();
            *state.ids.lock().expect("no holder panics").entry(id).or_default() += 1;
            request.into_body().collect().await?;
            tokio::time::sleep(Duration::from_millis(number)).await;
            Response::new(full(id.to_string()))
        }
        (&Method::GET, "download") => {
            let mut response = Response::new(download(number));
            response.headers_mut().insert("content-length", number.into());
            response
        }
        (&Method::POST, "upload") => Response::new(full(uploaded(request.into_body()).await?)),
        (&Method::POST, "echo") => Response::new(echo(request.into_body())),
        _ => Response::new(full("hello")),
    })
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn download(bytes: u64) -> Body {
    let pieces = (0..bytes).step_by(PIECE_MAX).map(move |offset| {
        let left = usize::try_from(bytes - offset).unwrap_or(PIECE_MAX);
        Ok(Frame::data(pattern::piece(offset, left.min(PIECE_MAX))))
    });
    StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
}

/// How many bytes came, up to the first piece that is wrong.
async fn uploaded(mut body: Incoming) -> Result<String, hyper::Error> {
    let (mut right, mut sound) = (0, true);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        sound = sound && pattern::is_at(right, &data);
        right += if sound { data.len() as u64 } else { 0 };
    }
    Ok(right.to_string())
}

fn echo(body: Incoming) -> Body {
    let trailers = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let end = futures_util::stream::once(async { Ok(Frame::trailers(trailers)) });
    let data = body.into_data_stream().map(|data| data.map(Frame::data));
    StreamBody::new(data.chain(end)).boxed_unsync()
}

// === impl InFlight ===

impl InFlight {
    fn new(state: &Arc<State>) -> Self {
        let now = state.in_flight.fetch_add(1, SeqCst) + 1;
        state.in_flight_max.fetch_max(now, SeqCst);
        Self(state.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}
