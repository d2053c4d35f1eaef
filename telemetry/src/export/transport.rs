//! One request to a collector: over HTTP or gRPC, in bounded time, with a bounded answer.

use std::fmt;
use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError};
use parking_lot::Mutex;

use super::config::{Compression, Protocol, Target};
use super::grpc;
use super::outcome::{Failure, Outcome};
use super::tls::{self, TlsError};
use crate::ledger::Account;

/// Longest body of an answer that is read. What a collector has to say is a few dozen bytes.
pub(super) const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Longest head of an answer.
const HEAD_BYTES_MAX: u32 = 16 * 1024;

/// A connection pool; signals that go to the same place the same way share it.
pub(super) type Pool = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Sends requests of one signal.
///
/// The library's exporters encode and call it; they tell only in words how it went, so the outcome
/// is left here.
pub(super) struct Transport {
    pool: Pool,
    target: Target,
    /// Books requests as long as they exist.
    encoding: Account,
    /// Bytes booked for what is being encoded, until it is.
    unencoded: AtomicUsize,
    last: Mutex<Option<Outcome>>,
}

// === impl Transport ===

impl Transport {
    pub(super) fn new(pool: Pool, target: Target, encoding: Account) -> Arc<Self> {
        let (unencoded, last) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { pool, target, encoding, unencoded, last })
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Sends one encoded message.
    pub(super) async fn send(&self, message: Bytes) -> Outcome {
        // Until the request is dropped: the caller's copy and the one that is sent.
        let held = Held::new(&self.encoding, 2 * message.len());
        let exchange = self.exchange(message);
        let outcome = match tokio::time::timeout(self.target.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Again { failure: Failure::Timeout, after: None },
        };
        drop(held);
        outcome
    }

    /// Runs an exporter that encodes `bytes` of memory and calls this transport once.
    pub(super) async fn observe<T>(
        &self,
        bytes: usize,
        export: impl Future<Output = T>,
    ) -> Outcome {
        self.encoding.take(bytes);
        self.unencoded.store(bytes, Relaxed);
        // Its result says the same in words.
        drop(export.await);
        self.encoded();
        let outcome = self.last.lock().take();
        outcome.unwrap_or(Outcome::Never { failure: Failure::Encoding })
    }

    fn encoded(&self) {
        self.encoding.give_back(self.unencoded.swap(0, Relaxed));
    }

    async fn exchange(&self, message: Bytes) -> Outcome {
        let Some(request) = self.request(&message) else {
            return Outcome::Never { failure: Failure::Encoding };
        };
        drop(message);
        let broken = Outcome::Again { failure: Failure::Connection, after: None };
        let Ok(response) = self.pool.request(request).await else { return broken };
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, RESPONSE_BYTES_MAX).collect().await {
            Ok(body) => body,
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                // It arrived, or was refused: sending it again would not shorten the answer.
                return Outcome::Never { failure: Failure::AnswerTooLong };
            }
            Err(_) => return broken,
        };
        match self.target.protocol {
            Protocol::HttpProtobuf => {
                let now = SystemTime::now();
                Outcome::of_http(head.status, &head.headers, &body.to_bytes(), now)
            }
            Protocol::Grpc => {
                let trailers = body.trailers().cloned();
                // An answer without messages may say everything in its head.
                let trailers = trailers.unwrap_or(head.headers);
                Outcome::of_grpc(head.status, &trailers, &body.to_bytes())
            }
        }
    }

    fn request(&self, message: &Bytes) -> Option<Request<Full<Bytes>>> {
        let compressed = match self.target.compression {
            Compression::None => None,
            Compression::Gzip => Some(gzip(message)?),
        };
        let zipped = compressed.is_some();
        let message = compressed.unwrap_or_else(|| message.clone());
        let mut headers = self.target.headers.clone();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let body = match self.target.protocol {
            Protocol::HttpProtobuf => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                headers.insert(ACCEPT, HeaderValue::from_static("application/x-protobuf"));
                if zipped {
                    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                }
                message
            }
            Protocol::Grpc => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(TE, HeaderValue::from_static("trailers"));
                self.grpc_headers(&mut headers, zipped);
                grpc::frame(&message, zipped)
            }
        };
        let mut request = Request::post(self.target.uri.clone()).body(Full::new(body)).ok()?;
        *request.headers_mut() = headers;
        Some(request)
    }

    fn grpc_headers(&self, headers: &mut HeaderMap, zipped: bool) {
        let timeout = format!("{}m", self.target.timeout.as_millis().min(99_999_999));
        if let Ok(timeout) = HeaderValue::try_from(timeout) {
            headers.insert("grpc-timeout", timeout);
        }
        if zipped {
            headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
        }
    }
}

const AGENT: &str = concat!("ferrule/", env!("CARGO_PKG_VERSION"));

impl HttpClient for Transport {
    fn send_bytes<'me, 'future>(
        &'me self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'me: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            self.encoded();
            let outcome = self.send(request.into_body()).await;
            let status = match outcome {
                Outcome::Delivered { .. } => StatusCode::OK,
                Outcome::Again { .. } | Outcome::Never { .. } => StatusCode::BAD_GATEWAY,
            };
            *self.last.lock() = Some(outcome);
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = status;
            Ok(response)
        })
    }
}

/// Headers may be secrets, so nothing of a target is shown.
impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

/// A pool for targets like `target`.
pub(super) fn pool(target: &Target) -> Result<Pool, TlsError> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(target.timeout));
    let builder = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls::client(target)?)
        .https_or_http();
    let grpc = target.protocol == Protocol::Grpc;
    let connector = match target.protocol {
        Protocol::Grpc => builder.enable_http2().wrap_connector(http),
        Protocol::HttpProtobuf => builder.enable_http1().wrap_connector(http),
    };
    // Answers are short, so a window need not be larger than the longest one that is read.
    let window = RESPONSE_BYTES_MAX as u32;
    Ok(Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(1)
        // Sending again is decided, and counted, elsewhere.
        .retry_canceled_requests(false)
        .http1_max_buf_size(RESPONSE_BYTES_MAX)
        .http2_only(grpc)
        .http2_initial_stream_window_size(window)
        .http2_initial_connection_window_size(window)
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .http2_max_send_buf_size(RESPONSE_BYTES_MAX)
        .build(connector))
}

fn gzip(message: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(message).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// Bytes that are booked as long as this lives.
pub(super) struct Held<'a> {
    account: &'a Account,
    bytes: usize,
}

impl<'a> Held<'a> {
    pub(super) fn new(account: &'a Account, bytes: usize) -> Self {
        account.take(bytes);
        Self { account, bytes }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}
