//! One exchange with an HTTP/1 instance on a bare socket, which goes back to the pool afterwards.
//!
//! The only module that knows hyper's HTTP/1 client. [`Http1::exchange`] takes a socket and a
//! request and gives the head and a body that streams; the connection state lives exactly as long
//! as the exchange and is polled by whoever waits for the head or reads the body, so there is
//! neither a task nor a buffer between exchanges. Only when the head comes before the request body
//! has been sent does a task take over, so that the upload goes on even if nobody reads the answer.
//! Dropping the future or the body closes the socket: a cancelled request reaches the instance.

mod download;
mod upload;
mod wire;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, Parts, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::body::Body;
use crate::config;
use crate::error::{Code, Failure, Retry};

use super::connect::Stream;
use super::patience::Patience;
use super::pool::Pool;
use super::{Refused, framing};

use download::Download;
use upload::{Progress, Upload};
use wire::Wire;

/// What every exchange of a worker shares.
pub(super) struct Http1 {
    builder: Builder,
    fields_max: usize,
    response_head: Duration,
    response_body: Duration,
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

/// A connection in the middle of an exchange.
struct Exchange {
    link: Link,
    sender: SendRequest<Upload>,
    home: Home,
}

/// hyper's connection until it has said its last word, then its parts. One of the two is there.
struct Link {
    running: Option<Connection<TokioIo<Wire>, Upload>>,
    ended: Option<Parts<TokioIo<Wire>>>,
}

/// The head arrived; what is behind it has not been read.
struct Answered {
    response: Response<hyper::body::Incoming>,
    exchange: Exchange,
    progress: Option<Rc<Progress>>,
}

/// Bytes of one read of a body at most. The bound of a head is `head_bytes_max`.
const READ_BYTES_MAX: usize = 256 * 1024;

// === impl Http1 ===

impl Http1 {
    pub(super) fn new(
        limits: &config::Limits,
        timeouts: &config::Timeouts,
        tasks: TaskTracker,
    ) -> Self {
        let mut builder = Builder::new();
        builder.max_buf_size(READ_BYTES_MAX).max_header_size(limits.head_bytes_max);
        // hyper's own 100 sit on the stack; any other number costs an allocation per head.
        if limits.header_fields_max > 100 {
            builder.max_headers(limits.header_fields_max);
        }
        Self {
            builder,
            fields_max: limits.header_fields_max,
            response_head: timeouts.response_head,
            response_body: timeouts.response_body,
            tasks,
        }
    }

    /// Sends `request` on `stream` and resolves with the head of the answer.
    ///
    /// Values of the answer's header are slices of the buffer it was read into and keep that buffer
    /// alive: copy those that outlive the response (hyper #4060).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes `stream`.
    pub(super) async fn exchange(
        &self,
        stream: Stream,
        home: Home,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refused> {
        let mut answered = self.head(stream, home, request).await?;
        if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(broken("101 without having been asked").into());
        }
        self.check(&mut answered)?;
        Ok(self.body(answered).await)
    }

    /// Sends `request`, which asks for an upgrade, on `stream`, which was made for it.
    pub(super) async fn upgrade(
        &self,
        stream: Stream,
        request: Request<Body>,
    ) -> Result<Switch, Failure> {
        let mut answered =
            self.head(stream, None, request).await.map_err(|refused| refused.failure)?;
        if answered.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.check(&mut answered)?;
            return Ok(Switch::Answered(self.body(answered).await));
        }
        let (mut head, _) = answered.response.into_parts();
        head.extensions.clear(); // hyper's own handle on the upgrade
        let Parts { io, read_buf, .. } = answered.exchange.link.into_parts();
        Ok(Switch::Switched(
            Response::from_parts(head, ()),
            io.into_inner().into_stream(),
            read_buf,
        ))
    }

    async fn head(
        &self,
        stream: Stream,
        home: Home,
        mut request: Request<Body>,
    ) -> Result<Answered, Refused> {
        prepare(&mut request)?;
        let progress = (!request.body().is_end_stream()).then(Rc::<Progress>::default);
        let io = TokioIo::new(Wire::new(stream, progress.clone()));
        let (mut sender, connection) = match self.builder.handshake(io).await {
            Ok(pair) => pair,
            Err(error) => {
                let failure = Failure::new(Code::PU02).because(error).retry(Retry::Unsent);
                return Err(Refused { failure, unsent: Some(request) });
            }
        };
        let request = request.map(|body| Upload::new(body, progress.clone()));
        let mut answer = pin!(sender.try_send_request(request));

        let mut patience = Patience::new(self.response_head);
        let mut link = Link { running: Some(connection), ended: None };
        let outcome = poll_fn(|cx| {
            link.poll(cx);
            if let Poll::Ready(outcome) = answer.as_mut().poll(cx) {
                return Poll::Ready(Ok(outcome));
            }
            let is_our_turn = progress.as_ref().is_some_and(|progress| progress.is_our_turn());
            if is_our_turn {
                patience.renew();
                return Poll::Pending;
            }
            if let Some(progress) = &progress {
                patience.count_from(progress.since());
            }
            patience.poll_spent(cx).map(|()| Err(Failure::new(Code::PU06)))
        });
        match outcome.await? {
            Ok(response) => {
                let exchange = Exchange { link, sender, home };
                Ok(Answered { response, exchange, progress })
            }
            Err(error) => {
                // The client's own failure is why the request could not be sent.
                if let Some(failure) = progress.and_then(|progress| progress.take_failure()) {
                    return Err(failure.into());
                }
                let heard = link.into_parts().io.into_inner().has_heard();
                Err(refused(error, heard))
            }
        }
    }

    fn check(&self, answered: &mut Answered) -> Result<(), Failure> {
        framing::check(answered.response.headers_mut(), self.fields_max)
            .map_err(|ambiguous| Failure::new(Code::PU07).because(ambiguous))
    }

    /// The body of an answer: whole when it is here already, otherwise a stream.
    async fn body(&self, answered: Answered) -> Response<Body> {
        let Answered { response, exchange, progress } = answered;
        let (head, incoming) = response.into_parts();
        let is_uploading = progress.is_some_and(|progress| !progress.is_sent());
        // An answer that is complete ends the exchange, even in the middle of an upload.
        let mut download = if is_uploading && !incoming.is_end_stream() {
            let task = self.tasks.spawn_local(exchange.finish());
            Download::driven(incoming, task, self.response_body)
        } else {
            Download::inline(incoming, exchange, self.response_body)
        };
        let body = match poll_fn(|cx| Poll::Ready(download.poll_whole(cx))).await {
            Some(bytes) => Body::full(bytes),
            None => Body::boxed(download),
        };
        Response::from_parts(head, body)
    }
}

// === impl Exchange ===

impl Exchange {
    /// Drives the connection: ready when the exchange is over, one way or the other.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.link.poll(cx);
        let is_over = self.link.running.is_none() || self.sender.is_ready();
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Gives the socket back if the exchange left it clean; closes it otherwise.
    ///
    /// hyper says that it is ready for another request only when the last one was sent, its answer
    /// was read to the end and keeping alive was agreed on; at that moment nothing of either is left
    /// in it, which is why taking it apart loses nothing. What hyper does not say, the wire knows:
    /// whether all was flushed and whether the instance has closed its side.
    fn recycle(self) {
        let Self { link, sender, home } = self;
        let Some((pool, address)) = home else { return };
        if link.running.is_none() || !sender.is_ready() {
            return;
        }
        let Parts { io, read_buf, .. } = link.into_parts();
        let wire = io.into_inner();
        if wire.is_clean() && read_buf.is_empty() {
            pool.put(address, wire.into_stream(), Instant::now());
        }
    }

    async fn finish(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
        self.recycle();
    }
}

// === impl Link ===

impl Link {
    /// Polls while there is something to poll, then takes it apart: that hands back a request which
    /// hyper had not begun to send.
    fn poll(&mut self, cx: &mut Context<'_>) {
        let Some(running) = &mut self.running else { return };
        // The outcome reaches whoever waits for the head or the body; here it only means the end.
        if running.poll_without_shutdown(cx).is_ready() {
            self.ended = self.running.take().map(Connection::into_parts);
        }
    }

    fn into_parts(self) -> Parts<TokioIo<Wire>> {
        self.running
            .map(Connection::into_parts)
            .or(self.ended)
            .expect("a link is running or has ended")
    }
}

/// Makes the head what an HTTP/1 instance expects: origin form, a Host, a body that ends visibly.
fn prepare(request: &mut Request<Body>) -> Result<(), Failure> {
    if *request.method() == Method::CONNECT {
        return Err(Failure::new(Code::PP05));
    }
    *request.version_mut() = Version::HTTP_11;
    if let Some(authority) = request.uri().authority() {
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(authority.as_str())
                .map_err(|error| Failure::new(Code::PP02).because(error))?;
            request.headers_mut().insert(HOST, host);
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    let length =
        if request.body().is_end_stream() { Some(0) } else { request.body().size_hint().exact() };
    let is_framed = request.headers().contains_key(CONTENT_LENGTH);
    match length {
        _ if is_framed => {}
        // hyper leaves a body of unknown length out of a GET, and servers answer 411 to a POST
        // that does not say that it has none.
        None => {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Some(0) if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) => {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Some(_) => {}
    }
    Ok(())
}

fn refused(mut error: TrySendError<Request<Upload>>, heard: bool) -> Refused {
    let unsent = error.take_message().map(|request| request.map(Upload::into_body));
    let error = error.into_error();
    let code = code_of(&error, heard);
    let retry = match (&unsent, code) {
        (Some(_), _) => Retry::Unsent,
        (None, Code::PU07) => Retry::Never,
        (None, _) => Retry::Idempotent,
    };
    Refused { failure: Failure::new(code).because(error).retry(retry), unsent }
}

fn code_of(error: &hyper::Error, heard: bool) -> Code {
    if error.is_parse() || error.is_parse_too_large() {
        return Code::PU07;
    }
    let io = std::error::Error::source(error).and_then(|error| error.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) if !heard => Code::PC03,
        _ => Code::PU02,
    }
}

fn broken(what: &'static str) -> Failure {
    Failure::new(Code::PU07).because(what)
}
