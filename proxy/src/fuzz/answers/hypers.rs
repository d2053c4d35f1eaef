//! What hyper's client makes of the same bytes.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection};
use hyper_util::rt::TokioIo;

use super::{Answer, Bytes, Read};
use crate::config::Limits;
use crate::fuzz::wire::{Asked, Reading, Silent, Wire, run};
use crate::upstream::framing::{Framed, Framing};

/// What hyper reads, and the screen behind it lets pass; `None` when it waits for ever.
pub(super) fn read(bytes: &[u8], piece: usize, method: &Method) -> Option<Read> {
    run(exchange(Wire::new(bytes, piece, Asked), method, async |response, drive| {
        let (head, mut body) = response.into_parts();
        let mut answer = Answer {
            status: head.status,
            version: head.version,
            reason: head.extensions.get().cloned(),
            headers: head.headers,
            body: Vec::new(),
            trailers: HeaderMap::new(),
            is_whole: false,
            is_reused: false,
        };
        answer.is_whole = poll_fn(|cx| poll_body(&mut body, drive, &mut answer, cx)).await;
        answer
    }))
}

/// Whether it would send another request on a connection that stays open and silent behind `bytes`.
pub(super) fn is_reused(bytes: &[u8], method: &Method) -> bool {
    let is_reused =
        run(exchange(Wire::new(bytes, usize::MAX, Silent), method, async |response, drive| {
            let mut body = response.into_body();
            let mut answer = Answer::default();
            let is_whole = poll_fn(|cx| poll_body(&mut body, drive, &mut answer, cx)).await;
            answer.is_reused = is_whole && poll_fn(|cx| Poll::Ready(drive.is_ready(cx))).await;
            answer
        }));
    is_reused.is_some_and(|read| read.is_reused())
}

/// hyper's connection, polled by whoever waits.
struct Drive<R: Reading> {
    connection: Option<Connection<TokioIo<Wire<R>>, Empty<Bytes>>>,
    sender: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
}

impl<R: Reading + 'static> Drive<R> {
    fn poll(&mut self, cx: &mut Context<'_>) {
        // What it says at its end shows in the answer.
        if let Some(connection) = &mut self.connection
            && connection.poll_without_shutdown(cx).is_ready()
        {
            self.connection = None;
        }
    }

    /// Whether nothing is left of the exchange but the connection.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll(cx);
        let is_ready = self.sender.is_ready();
        let parts = self.connection.take().map(Connection::into_parts);
        is_ready && parts.is_some_and(|parts| parts.read_buf.is_empty())
    }
}

async fn exchange<R: Reading + 'static>(
    wire: Wire<R>,
    method: &Method,
    pass_on: impl AsyncFnOnce(Response<Incoming>, &mut Drive<R>) -> Answer,
) -> Read {
    let limits = Limits::default();
    let mut builder = Builder::new();
    builder.max_buf_size(256 * 1024).max_header_size(limits.head_bytes_max);
    let Ok((sender, connection)) = builder.handshake(TokioIo::new(wire)).await else {
        return Read::Ended;
    };
    let mut drive = Drive { connection: Some(connection), sender };
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method.clone();
    let mut answer = pin!(drive.sender.send_request(request));
    let answer = poll_fn(|cx| {
        if let Some(connection) = &mut drive.connection
            && connection.poll_without_shutdown(cx).is_ready()
        {
            drive.connection = None;
        }
        answer.as_mut().poll(cx)
    });
    let mut response = match answer.await {
        Ok(response) => response,
        Err(error) if error.is_parse() || error.is_parse_too_large() => return Read::Malformed,
        Err(_) => return Read::Ended,
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS || !screen(&mut response, &limits) {
        return Read::Malformed;
    }
    Read::Answer(Box::new(pass_on(response, &mut drive).await))
}

/// What was behind hyper before there was a reader of our own.
fn screen(response: &mut Response<Incoming>, limits: &Limits) -> bool {
    let headers = response.headers_mut();
    let mut framing = Framing::default();
    for value in headers.get_all(http::header::TRANSFER_ENCODING) {
        framing.coding(value.as_bytes());
    }
    for value in headers.get_all(http::header::CONTENT_LENGTH) {
        framing.length(value.as_bytes());
    }
    match framing.verdict() {
        Ok(Framed::Length { bytes, is_repeated: true }) => {
            headers.insert(http::header::CONTENT_LENGTH, bytes.into());
        }
        Ok(_) => {}
        Err(_) => return false,
    }
    headers.len() <= limits.header_fields_max
}

/// Whether the body came to its end.
fn poll_body<R: Reading + 'static>(
    body: &mut Incoming,
    drive: &mut Drive<R>,
    answer: &mut Answer,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    drive.poll(cx);
    while let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
        match frame.map(|frame| frame.map(http_body::Frame::into_data)) {
            Some(Ok(Ok(data))) => answer.body.extend_from_slice(&data),
            Some(Ok(Err(frame))) => answer.trailers = frame.into_trailers().unwrap_or_default(),
            Some(Err(_)) => return Poll::Ready(false),
            None => return Poll::Ready(true),
        }
        drive.poll(cx);
    }
    Poll::Pending
}
