//! gRPC over HTTP/2 in cleartext: one unary call, which gives its message back.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::About;

/// How a call ended, with the numbers of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok = 0,
    Unimplemented = 12,
    Internal = 13,
}

/// Streams live in the demo's own tasks.
#[derive(Clone)]
struct Tasks(TaskTracker);

const METHOD: &str = "/demo.Echo/Say";

const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// One byte says whether the message is compressed, four how long it is.
const PREFIX_BYTES: usize = 5;

pub(super) async fn serve(stream: TcpStream, about: Arc<About>, tasks: TaskTracker) {
    let service = service_fn(move |request: Request<Incoming>| {
        let about = Arc::clone(&about);
        async move { Ok::<_, Infallible>(respond(request, &about).await) }
    });
    drop(http2::Builder::new(Tasks(tasks)).serve_connection(TokioIo::new(stream), service).await);
}

async fn respond(
    request: Request<Incoming>,
    about: &About,
) -> Response<impl Body<Data = Bytes, Error = Infallible> + use<>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, PREFIX_BYTES + MESSAGE_BYTES_MAX).collect().await;
    let (status, message) = match body {
        Ok(body) => call(head.uri.path(), body.to_bytes()),
        Err(_too_long_or_broken) => (Status::Internal, Bytes::new()),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status as u16));
    // Frames and not `Full`, which sends a length: then curl is done before the trailers come.
    let frames = [Frame::data(message), Frame::trailers(trailers)].map(Ok);
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response.headers_mut().insert("instance", about.header());
    response
}

/// The answer to one message with its prefix.
fn call(path: &str, body: Bytes) -> (Status, Bytes) {
    if path != METHOD {
        return (Status::Unimplemented, Bytes::new());
    }
    match body.split_first_chunk::<PREFIX_BYTES>() {
        Some(([0, length @ ..], message))
            if u32::from_be_bytes(*length) as usize == message.len() =>
        {
            (Status::Ok, body)
        }
        _ => (Status::Internal, Bytes::new()),
    }
}

// === impl Tasks ===

impl<F> Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gives_its_message_back() {
        let check = |path: &str, body: &'static [u8], status: Status| {
            let expected = if status == Status::Ok { body } else { b"" };
            let answer = call(path, Bytes::from_static(body));
            assert_eq!(answer, (status, Bytes::from_static(expected)), "{path} {body:?}");
        };
        check(METHOD, b"\0\0\0\0\x02hi", Status::Ok);
        check(METHOD, b"\0\0\0\0\0", Status::Ok);
        check("/demo.Echo/Shout", b"\0\0\0\0\x02hi", Status::Unimplemented);
        check(METHOD, b"\x01\0\0\0\x02hi", Status::Internal);
        check(METHOD, b"\0\0\0\0\x03hi", Status::Internal);
        check(METHOD, b"\0\0\0\0", Status::Internal);
        check(METHOD, b"", Status::Internal);
    }
}
