//! An OpenTelemetry collector of the harness: receives what a node exports, over HTTP or gRPC, and
//! keeps it for exact assertions; or behaves like one that is broken.

mod answer;
mod receive;
mod rotel;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use http::HeaderMap;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::certs::Certs;
use crate::port::free_address;
use crate::wait;

pub use rotel::Rotel;

/// How exporters speak to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Http,
    Grpc,
}

/// How it behaves from the next request on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Accepts everything.
    Good,
    /// Reads requests and never answers.
    BlackHole,
    /// Unavailable; asks for a wait of so many seconds.
    Unavailable { retry_after: u32 },
    /// Refuses for good.
    BadRequest,
    /// Accepts, and answers with one byte per second.
    OneBytePerSecond,
    /// Accepts, and closes the connection in the middle of the answer.
    CloseMidResponse,
    /// Accepts all but so many of each request.
    PartialSuccess { rejected: i64 },
    /// Accepts, and answers with a body without end.
    HugeResponse,
}

/// A running collector; stops when dropped.
pub struct Collector {
    endpoint: String,
    state: Arc<State>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What came in one request, whatever the answer to it was.
#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    /// Before decompression.
    pub bytes: usize,
    pub resource: Option<Resource>,
    pub spans: Vec<Span>,
    pub logs: Vec<LogRecord>,
    pub metrics: Vec<Metric>,
}

struct State {
    mode: watch::Sender<Mode>,
    /// Of requests that were accepted.
    accepted: Mutex<Vec<Received>>,
    /// Requests that came, accepted or not.
    requests: AtomicUsize,
    connections: AtomicUsize,
}

// === impl Collector ===

impl Collector {
    /// A collector that accepts everything.
    pub fn start(transport: Transport) -> Self {
        Self::start_as(transport, Mode::Good)
    }

    /// A collector that behaves as `mode` says.
    pub fn start_as(transport: Transport, mode: Mode) -> Self {
        Self::run(transport, mode, None)
    }

    /// A collector that accepts everything over TLS, from clients whose certificate is of the same
    /// authority as its own.
    pub fn start_tls(transport: Transport, certs: &Certs) -> Self {
        let pair = certs.leaf(&["127.0.0.1"]);
        let verifier = WebPkiClientVerifier::builder(certs.roots()).build();
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier.expect("sound roots"))
            .with_single_cert(vec![pair.der()], pair.key_der())
            .expect("a sound pair");
        let protocol = match transport {
            Transport::Http => "http/1.1",
            Transport::Grpc => "h2",
        };
        config.alpn_protocols = vec![protocol.into()];
        Self::run(transport, Mode::Good, Some(Arc::new(config)))
    }

    fn run(transport: Transport, mode: Mode, tls: Option<Arc<ServerConfig>>) -> Self {
        let address = free_address(1);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a listening socket");
        let state = Arc::new(State {
            mode: watch::channel(mode).0,
            accepted: Mutex::default(),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        let thread = std::thread::spawn({
            let (state, stop) = (state.clone(), stop.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let serve = receive::accept(listener, &state, transport, tls);
                runtime.expect("a runtime").block_on(stop.run_until_cancelled(serve));
            }
        });
        Self { endpoint: format!("{scheme}://{address}"), state, stop, thread: Some(thread) }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` would be.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Behaves as `mode` says from the next request on.
    pub fn behave(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }

    /// The requests it accepted, oldest first.
    pub fn accepted(&self) -> Vec<Received> {
        self.state.accepted.lock().expect("no holder panics").clone()
    }

    /// The spans it accepted, in the order they came.
    pub fn spans(&self) -> Vec<Span> {
        self.accepted().into_iter().flat_map(|received| received.spans).collect()
    }

    /// The log records it accepted.
    pub fn logs(&self) -> Vec<LogRecord> {
        self.accepted().into_iter().flat_map(|received| received.logs).collect()
    }

    /// The metrics it accepted.
    pub fn metrics(&self) -> Vec<Metric> {
        self.accepted().into_iter().flat_map(|received| received.metrics).collect()
    }

    /// Requests that came, accepted or not.
    pub fn requests(&self) -> usize {
        self.state.requests.load(SeqCst)
    }

    /// Connections that were made to it.
    pub fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Waits until `condition` holds of it.
    ///
    /// # Panics
    /// When it does not within [`wait::PATIENCE`], with `what`.
    #[track_caller]
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        wait::until(what, || condition(self));
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the collector panicked");
        }
    }
}

/// The text of the attribute `key`, whatever its type; numbers as they are written.
pub fn attribute(
    attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue],
    key: &str,
) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let pair = attributes.iter().find(|pair| pair.key == key)?;
    Some(match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        other => format!("{other:?}"),
    })
}
