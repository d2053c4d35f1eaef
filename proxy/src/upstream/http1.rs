//! One exchange with an HTTP/1 instance on a bare socket, which goes back to the pool afterwards.
//!
//! [`Http1::exchange`] takes a socket and a request and gives the head and a body that streams. The
//! request is written and the answer read by whoever waits for the head or reads the body, in buffers
//! that the worker lends for a turn, so there is neither a task nor a buffer between exchanges. Only
//! when the head comes before the request body has been sent does a task take over, so that the
//! upload goes on even if nobody reads the answer. Dropping the future or the body closes the socket:
//! a cancelled request reaches the instance.

pub(crate) mod head;
pub(crate) mod decode;
pub(crate) mod ask;
mod upload;
mod received;
mod socket;
mod download;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode, request};
use tokio_util::task::TaskTracker;

use crate::body::Body;
use crate::config;
use crate::error::{BoxError, Code, Failure, Retry};
use crate::io::cork::Buffers;

use super::Refused;
use super::connect::Stream;
use super::framing::Framed;
use super::patience::Patience;
use super::pool::{Look, Pool, is_quiet};

use decode::{Chunked, Decoder, End, Part};
use download::{Download, recycle};
use head::{Found, Head, HeadReader, Limits, Malformed};
use received::Received;
use socket::Socket;
use upload::{Broken, Upload};

/// What every exchange of a worker shares.
pub(super) struct Http1 {
    limits: Limits,
    response_head: Duration,
    response_body: Duration,
    buffers: Buffers,
    tasks: TaskTracker,
}

/// Where the socket of an exchange goes afterwards; `None` when the instance wants a new one each time.
pub(super) type Home = Option<(Rc<Pool>, SocketAddr)>;

/// What came of asking for an upgrade.
pub(super) enum Switch {
    /// 101, the socket, and what came on it behind the head.
    Switched(Response<()>, Stream, Bytes),
    Answered(Response<Body>),
}

/// A request on its way and the answer to it, as far as they are.
struct Asking {
    stream: Stream,
    upload: Upload,
    received: Received,
    reader: HeadReader,
    /// The instance has sent a byte.
    has_heard: bool,
    /// The instance takes no more of the request; its answer may be there all the same.
    refused: Option<io::Error>,
    patience: Patience,
}

/// The head arrived; what is behind it has not been read.
struct Answered {
    head: Head,
    /// Whether it is an answer to HEAD.
    is_bodiless: bool,
    received: Received,
    stream: Stream,
    /// What has not been sent of the request.
    upload: Option<Upload>,
}

// === impl Http1 ===

impl Http1 {
    pub(super) fn new(
        limits: &config::Limits,
        timeouts: &config::Timeouts,
        buffers: Buffers,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            limits: Limits {
                bytes_max: limits.head_bytes_max,
                fields_max: limits.header_fields_max,
            },
            response_head: timeouts.response_head,
            response_body: timeouts.response_body,
            buffers,
            tasks,
        }
    }

    /// Sends the request of `head` and `body` on `stream` and resolves with the head of the answer.
    ///
    /// Values of the answer's header are slices of one block, of the size of the head.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes `stream`.
    pub(super) async fn exchange(
        &self,
        stream: Stream,
        home: Home,
        head: &request::Parts,
        body: Body,
    ) -> Result<Response<Body>, Refused> {
        let answered = self.head(stream, head, body).await?;
        if answered.head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(malformed("101 without having been asked").into());
        }
        Ok(self.body(answered, home)?)
    }

    /// Sends the request of `head`, which asks for an upgrade, on `stream`, which was made for it.
    pub(super) async fn upgrade(
        &self,
        stream: Stream,
        head: &request::Parts,
    ) -> Result<Switch, Failure> {
        let answered = self.head(stream, head, Body::Empty).await;
        let answered = answered.map_err(|refused| refused.failure)?;
        if answered.head.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Switch::Answered(self.body(answered, None)?));
        }
        if answered.upload.is_some() {
            return Err(malformed("101 before the request was sent"));
        }
        let first = Bytes::copy_from_slice(answered.received.bytes());
        Ok(Switch::Switched(answered.head.into_response(()), answered.stream, first))
    }

    async fn head(
        &self,
        stream: Stream,
        head: &request::Parts,
        body: Body,
    ) -> Result<Answered, Refused> {
        // A new connection may be closed already, or begin with something nobody asked for.
        if !is_quiet(&stream.tcp, Look::Glance) {
            let failure = Failure::new(Code::PU02).retry(Retry::Unsent);
            let failure = failure.because("the connection was not quiet");
            return Err(Refused { failure, unsent: Some(body) });
        }
        let mut asking = Asking {
            stream,
            upload: Upload::new(head, body, &self.buffers)?,
            received: Received::new(&self.buffers),
            reader: HeadReader::new(self.limits),
            has_heard: false,
            refused: None,
            patience: Patience::new(self.response_head),
        };
        let is_bodiless = head.method == Method::HEAD;
        let head = poll_fn(|cx| asking.poll_head(cx)).await?;
        let Asking { stream, upload, received, refused, .. } = asking;
        let upload = (refused.is_some() || !upload.is_sent()).then_some(upload);
        Ok(Answered { head, is_bodiless, received, stream, upload })
    }

    /// The body of an answer: whole when it is here already, otherwise a stream.
    fn body(&self, answered: Answered, home: Home) -> Result<Response<Body>, Failure> {
        let Answered { mut head, is_bodiless, received, stream, upload } = answered;
        let framed = head.framed().map_err(malformed)?;
        let home = home.filter(|_| head.keeps_alive);
        let is_bodiless =
            is_bodiless || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut decoder = match framed {
            _ if is_bodiless => Decoder::Length(0),
            Framed::Length { bytes, .. } => Decoder::Length(bytes),
            Framed::Chunked => Decoder::Chunked(Chunked::new(self.limits)),
            Framed::Open => Decoder::Open,
        };
        let part = decoder.read(received.bytes());
        drop(received);
        if let Part { data, end: Some(End::Whole { trailers: None, is_clean }) } = part {
            // It ends the exchange, even in the middle of an upload.
            if is_clean && upload.is_none() {
                recycle(Socket::Whole(stream), &home);
            }
            return Ok(head.into_response(Body::full(data)));
        }
        let socket = match upload {
            Some(upload) => Socket::shared(stream, upload, &self.tasks),
            None => Socket::Whole(stream),
        };
        let (stall, buffers) = (self.response_body, self.buffers.clone());
        let download = Download::new(socket, decoder, part, stall, home, buffers);
        Ok(head.into_response(Body::boxed(download)))
    }
}

// === impl Asking ===

impl Asking {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, Failure>> {
        self.send(cx)?;
        loop {
            match self.received.poll_read(&mut self.stream.tcp, cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.ended())),
                Poll::Ready(Ok(_)) => self.has_heard = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                Poll::Pending => break,
            }
            if let Some(head) = self.read().map_err(malformed)? {
                return Poll::Ready(Ok(head));
            }
        }
        if let Some(error) = self.refused.take() {
            return Poll::Ready(Err(self.broken(error)));
        }
        if self.upload.waits_for_client() {
            self.patience.renew();
            return Poll::Pending;
        }
        if let Some(since) = self.upload.since() {
            self.patience.count_from(since);
        }
        ready!(self.patience.poll_spent(cx));
        Poll::Ready(Err(Failure::new(Code::PU06)))
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        if self.refused.is_some() || self.upload.is_sent() {
            return Ok(());
        }
        match self.upload.poll_send(&mut self.stream.tcp, cx) {
            Poll::Ready(Err(Broken::Socket(error))) => self.refused = Some(error),
            // The client's own failure is why the request could not be sent.
            Poll::Ready(Err(Broken::Body(failure))) => return Err(failure),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Ok(())
    }

    /// Looks for the head in what has come.
    fn read(&mut self) -> Result<Option<Head>, Malformed> {
        loop {
            match self.reader.read(self.received.bytes())? {
                Found::Head(head, bytes) => {
                    self.received.skip(bytes);
                    return Ok(Some(head));
                }
                Found::Interim(bytes) => self.received.skip(bytes),
                Found::Partial => return Ok(None),
            }
        }
    }

    /// The instance has closed its side before there was an answer.
    fn ended(&self) -> Failure {
        if let Err(error) = self.reader.check_part(self.received.bytes()) {
            return malformed(error);
        }
        let failure = Failure::new(Code::PU02).retry(Retry::Idempotent);
        failure.because("closed before the answer")
    }

    fn broken(&self, error: io::Error) -> Failure {
        let is_reset =
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        let code = if is_reset && !self.has_heard { Code::PC03 } else { Code::PU02 };
        Failure::new(code).because(error).retry(Retry::Idempotent)
    }
}

// === impl Head ===

impl Head {
    fn into_response<B>(self, body: B) -> Response<B> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.version_mut() = self.version;
        *response.headers_mut() = self.headers;
        if let Some(reason) = self.reason {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

fn malformed(why: impl Into<BoxError>) -> Failure {
    Failure::new(Code::PU07).because(why)
}
