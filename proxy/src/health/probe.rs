//! One attempt of one check.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use control::snapshot::{Check, CheckKind};
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Why an attempt failed. Nothing of what the instance sent is in it but the status.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("no answer in time")]
    Timeout,
    #[error("connection failed")]
    Connect(#[source] std::io::Error),
    #[error("the check is no valid request")]
    Request(#[source] http::Error),
    #[error("no valid answer")]
    Exchange(#[source] hyper::Error),
    #[error("answered with status {0}")]
    Status(u16),
}

/// Bytes of an answer's head; more is no answer to a check.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Connects, and asks if the check says so. The connection is closed afterwards.
pub(super) async fn attempt(check: &Check, target: SocketAddr) -> Result<(), ProbeError> {
    let attempt = async {
        let stream = TcpStream::connect(target).await.map_err(ProbeError::Connect)?;
        match &check.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http { method, path, headers } => {
                ask(stream, request(target, method, path, headers)?).await
            }
        }
    };
    timeout(check.timeout, attempt).await.unwrap_or(Err(ProbeError::Timeout))
}

async fn ask(stream: TcpStream, request: Request<Empty<Bytes>>) -> Result<(), ProbeError> {
    let mut http1 = http1::Builder::new();
    http1.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) =
        http1.handshake(TokioIo::new(stream)).await.map_err(ProbeError::Exchange)?;
    // The connection moves only while it is polled. Its end is no outcome: it also ends right
    // after the answer, which is then still on its way to us.
    let drive = async {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "connection of a check ended");
        }
        std::future::pending::<Infallible>().await
    };
    let answer = tokio::select! {
        biased;
        answer = sender.send_request(request) => answer.map_err(ProbeError::Exchange)?,
        never = drive => match never {},
    };
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(ProbeError::Status(status.as_u16())) }
}

fn request(
    target: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(std::sync::Arc<str>, std::sync::Arc<str>)],
) -> Result<Request<Empty<Bytes>>, ProbeError> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(&**name, &**value);
    }
    for (name, value) in [
        ("host", target.to_string()),
        ("user-agent", "ferrule-check".into()),
        ("connection", "close".into()),
    ] {
        if !headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name)) {
            request = request.header(name, value);
        }
    }
    request.body(Empty::new()).map_err(ProbeError::Request)
}
