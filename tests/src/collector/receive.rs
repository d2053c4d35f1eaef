//! The receiving side: connections, requests, and what is in them.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::answer::{self, Body};
use super::{Mode, Received, State, Transport};

pub(super) async fn accept(
    listener: StdListener,
    state: &Arc<State>,
    transport: Transport,
    tls: Option<Arc<ServerConfig>>,
) {
    let listener = TcpListener::from_std(listener).expect("inside the runtime");
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, SeqCst);
        let (state, tls) = (state.clone(), tls.clone());
        connections.spawn(async move {
            match tls {
                None => connection(stream, state, transport).await,
                Some(tls) => {
                    // Who does not trust it, or is not trusted, leaves.
                    if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                        connection(stream, state, transport).await;
                    }
                }
            }
        });
        while let Some(ended) = connections.try_join_next() {
            ended.expect("no connection panics");
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    state: Arc<State>,
    transport: Transport,
) {
    let service = service_fn(move |request| receive(request, state.clone(), transport));
    let stream = TokioIo::new(stream);
    // Exporters leave as they like.
    match transport {
        Transport::Http => {
            let http = hyper::server::conn::http1::Builder::new();
            http.serve_connection(stream, service).await.unwrap_or_default();
        }
        Transport::Grpc => {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.serve_connection(stream, service).await.unwrap_or_default();
        }
    }
}

async fn receive(
    request: Request<Incoming>,
    state: Arc<State>,
    transport: Transport,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return std::future::pending().await };
    state.requests.fetch_add(1, SeqCst);
    let mode = *state.mode.borrow();
    let received = decode(head.uri.path(), head.headers, &body.to_bytes(), transport);
    let received = received.expect("an exporter sends what the protocol says");
    let accepted = !matches!(mode, Mode::BlackHole | Mode::Unavailable { .. } | Mode::BadRequest);
    if accepted {
        state.accepted.lock().expect("no holder panics").push(received);
    }
    match answer::answer(transport, mode) {
        Some(response) => Ok(response),
        None => std::future::pending().await,
    }
}

fn decode(
    path: &str,
    headers: HeaderMap,
    body: &Bytes,
    transport: Transport,
) -> io::Result<Received> {
    let message = match transport {
        Transport::Http => {
            check(&headers, "content-type", "application/x-protobuf")?;
            plain(body, headers.get("content-encoding").is_some_and(|coding| coding == "gzip"))?
        }
        Transport::Grpc => {
            check(&headers, "content-type", "application/grpc")?;
            check(&headers, "te", "trailers")?;
            unframe(body, &headers)?
        }
    };
    let path = path.to_owned();
    let (bytes, resource) = (body.len(), None);
    let mut received =
        Received { path, headers, bytes, resource, spans: vec![], logs: vec![], metrics: vec![] };
    match received.path.as_str() {
        "/v1/traces" | "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
            for part in ExportTraceServiceRequest::decode(&*message)?.resource_spans {
                received.resource = part.resource;
                let spans = part.scope_spans.into_iter().flat_map(|scope| scope.spans);
                received.spans.extend(spans);
            }
        }
        "/v1/logs" | "/opentelemetry.proto.collector.logs.v1.LogsService/Export" => {
            for part in ExportLogsServiceRequest::decode(&*message)?.resource_logs {
                received.resource = part.resource;
                let logs = part.scope_logs.into_iter().flat_map(|scope| scope.log_records);
                received.logs.extend(logs);
            }
        }
        "/v1/metrics" | "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => {
            for part in ExportMetricsServiceRequest::decode(&*message)?.resource_metrics {
                received.resource = part.resource;
                let metrics = part.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
                received.metrics.extend(metrics);
            }
        }
        other => return Err(io::Error::other(format!("no such path: {other}"))),
    }
    Ok(received)
}

fn check(headers: &HeaderMap, name: &str, expected: &str) -> io::Result<()> {
    match headers.get(name) {
        Some(value) if value == expected => Ok(()),
        other => Err(io::Error::other(format!("{name} is {other:?}, not {expected}"))),
    }
}

/// The one message of a unary call.
fn unframe(body: &Bytes, headers: &HeaderMap) -> io::Result<Bytes> {
    let wrong = || io::Error::other("not one frame of gRPC");
    let (prefix, message) = body.split_first_chunk::<5>().ok_or_else(wrong)?;
    let [compressed, a, b, c, d] = *prefix;
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(wrong());
    }
    let gzip = headers.get("grpc-encoding").is_some_and(|coding| coding == "gzip");
    plain(&body.slice(5..), gzip && compressed == 1)
}

/// gzip is read by the system's own program, so that nothing of the exporter's is its own oracle.
fn plain(bytes: &Bytes, gzip: bool) -> io::Result<Bytes> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    if !gzip {
        return Ok(bytes.clone());
    }
    let mut program = Command::new("gzip");
    program.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no pipe"))?;
    let input = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    writer.join().expect("the writer does not panic")?;
    if output.status.success() { Ok(output.stdout.into()) } else { Err(io::Error::other("gzip")) }
}
