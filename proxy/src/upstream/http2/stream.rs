//! One stream of a connection: opened with a slot, ended by both sides or cancelled.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::Body as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::body::Body;
use crate::error::{Code, Failure, Retry};
use crate::upstream::Refused;
use crate::upstream::patience::Patience;

use super::cancel::{Cancelled, Receiving};
use super::download::Download;
use super::upload::{self, Shared, Upload};
use super::{Connection, Slot};

/// A request on its way. Dropped before both sides have ended it, it is cancelled.
pub(super) struct Exchange {
    pub(super) receiving: Receiving,
    sending: Sending,
    slot: Option<Slot>,
}

enum Sending {
    /// The request had no body, or all of it was sent.
    Ended,
    Upload(Upload),
    /// A task goes on with it.
    Task(Shared, JoinHandle<()>),
    /// A tunnel writes by itself.
    Raw(SendStream<Bytes>),
}

/// The two directions of a tunnel, after a CONNECT.
pub(in crate::upstream) struct Stream {
    exchange: Exchange,
}

// === impl Connection ===

impl Connection {
    /// Sends `request` and resolves with the head of the answer; the body streams.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future resets the stream.
    pub(in crate::upstream) async fn send(
        &self,
        slot: Slot,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refused> {
        let (head, body) = request.into_parts();
        let is_end = body.is_end_stream();
        let head = head_of(Request::from_parts(head, ()));
        let (response, sending) = self.open_stream(head, is_end).map_err(failure_of)?;
        let sending =
            if is_end { Sending::Ended } else { Sending::Upload(Upload::new(body, sending)) };
        let receiving = Receiving::Head(response);
        let mut exchange = Exchange { receiving, sending, slot: Some(slot) };
        let (head, receiving) = exchange.head(self).await?.into_parts();
        exchange.receiving = Receiving::Body(receiving);
        if !exchange.ends_here() {
            exchange.spawn_upload(self);
        }
        let mut download = Download::new(exchange, self.http2.timeouts.response_body);
        let body = match poll_fn(|cx| Poll::Ready(download.poll_whole(cx))).await {
            Some(bytes) => Body::full(bytes),
            None => Body::boxed(download),
        };
        Ok(Response::from_parts(head, body))
    }

    /// Opens a tunnel with `head`, a CONNECT, and resolves with the head of the answer.
    pub(in crate::upstream) async fn tunnel(
        &self,
        slot: Slot,
        head: Request<()>,
    ) -> Result<Response<Stream>, Failure> {
        let (response, sending) = self.open_stream(head_of(head), false).map_err(failure_of)?;
        let receiving = Receiving::Head(response);
        let mut exchange = Exchange { receiving, sending: Sending::Raw(sending), slot: Some(slot) };
        let (head, receiving) = exchange.head(self).await?.into_parts();
        exchange.receiving = Receiving::Body(receiving);
        Ok(Response::from_parts(head, Stream { exchange }))
    }

    /// The answer to a CONNECT as the answer to any request: the tunnel was not opened.
    pub(in crate::upstream) fn declined(&self, stream: Stream) -> Body {
        Body::boxed(Download::new(stream.exchange, self.http2.timeouts.response_body))
    }
}

// === impl Exchange ===

impl Exchange {
    /// Waits for the head while the request body goes out.
    async fn head(&mut self, connection: &Connection) -> Result<Response<RecvStream>, Failure> {
        let mut patience = Patience::new(connection.http2.timeouts.response_head);
        let mut sent = Instant::now();
        let response = poll_fn(|cx| {
            if let Sending::Upload(upload) = &mut self.sending
                && let Poll::Ready(outcome) = upload.poll(cx)
            {
                outcome?;
                self.sending = Sending::Ended;
                sent = Instant::now();
            }
            let Receiving::Head(response) = &mut self.receiving else {
                return Poll::Ready(Err(Failure::new(Code::PX01)));
            };
            if let Poll::Ready(response) = Pin::new(response).poll(cx) {
                if response.is_err() {
                    self.receiving = Receiving::Nothing;
                    self.sending = Sending::Ended; // the stream is over, nothing is left to reset
                }
                return Poll::Ready(response.map_err(failure_of));
            }
            let since = match &self.sending {
                Sending::Upload(upload) => upload.waits_since(),
                _ => Some(sent),
            };
            let Some(since) = since else {
                patience.renew();
                return Poll::Pending;
            };
            patience.count_from(since);
            patience.poll_spent(cx).map(|()| Err(Failure::new(Code::PU06)))
        });
        let response = response.await?;
        connection.answered.set(true);
        if response.headers().len() > connection.http2.fields_max {
            return Err(Failure::new(Code::PU07).because("too many header fields"));
        }
        Ok(response)
    }

    /// The answer has come to its end.
    pub(super) fn ends_here(&self) -> bool {
        match &self.receiving {
            Receiving::Head(_) => false,
            Receiving::Body(body) => body.is_end_stream(),
            Receiving::Nothing => true,
        }
    }

    /// The answer came first: the upload goes on by itself, whoever reads what.
    fn spawn_upload(&mut self, connection: &Connection) {
        let Sending::Upload(_) = self.sending else { return };
        let Sending::Upload(upload) = std::mem::replace(&mut self.sending, Sending::Ended) else {
            return;
        };
        let shared: Shared = Rc::new(Some(upload).into());
        let of_task = shared.clone();
        let task = connection
            .http2
            .tasks
            .spawn_local(poll_fn(move |cx| upload::poll_shared(&of_task, cx)));
        self.sending = Sending::Task(shared, task);
    }

    fn take_sending(&mut self) -> Option<SendStream<Bytes>> {
        match std::mem::replace(&mut self.sending, Sending::Ended) {
            Sending::Ended => None,
            Sending::Upload(upload) => Some(upload.into_sending()),
            Sending::Task(shared, task) => {
                task.abort();
                let upload = shared.try_borrow_mut().ok().and_then(|mut upload| upload.take());
                upload.map(Upload::into_sending)
            }
            Sending::Raw(sending) => Some(sending),
        }
    }

    /// The peer has ended its side. If ours has ended, too, the slot is free; otherwise the stream is
    /// cancelled when this is dropped, because nobody is left to tell how the upload ends.
    pub(super) fn finish(&mut self) {
        self.receiving = Receiving::Nothing;
        let has_ended = match &self.sending {
            Sending::Ended => true,
            Sending::Task(upload, _) => upload.borrow().is_none(),
            Sending::Upload(_) | Sending::Raw(_) => false,
        };
        if has_ended {
            self.slot = None;
        }
    }

    /// The stream broke: nothing of it is left to end.
    pub(super) fn broke(&mut self) {
        self.receiving = Receiving::Nothing;
        drop(self.take_sending());
        self.slot = None;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let has_ended = self.ends_here();
        let receiving = std::mem::replace(&mut self.receiving, Receiving::Nothing);
        let sending = self.take_sending();
        if has_ended && sending.is_none() {
            return;
        }
        let connection = slot.connection.clone();
        connection.cancel(Cancelled { receiving, sending, slot });
    }
}

// === impl Stream ===

impl Stream {
    pub(in crate::upstream) fn receiving(&mut self) -> Option<&mut RecvStream> {
        match &mut self.exchange.receiving {
            Receiving::Body(body) => Some(body),
            Receiving::Head(_) | Receiving::Nothing => None,
        }
    }

    pub(in crate::upstream) fn sending(&mut self) -> Option<&mut SendStream<Bytes>> {
        match &mut self.exchange.sending {
            Sending::Raw(sending) => Some(sending),
            _ => None,
        }
    }

    /// The peer has ended its side.
    pub(in crate::upstream) fn end_receiving(&mut self) {
        self.exchange.finish();
    }

    /// Our side has been ended.
    pub(in crate::upstream) fn end_sending(&mut self) {
        self.exchange.sending = Sending::Ended;
    }
}

/// The head as HTTP/2 has it: an absolute target, no Host, nothing about the connection.
fn head_of(mut request: Request<()>) -> Request<()> {
    const OF_THE_CONNECTION: [HeaderName; 5] = [
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    let headers = request.headers_mut();
    let host = headers.remove(HOST);
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
    if request.uri().scheme().is_none() {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        let of_host =
            || Authority::from_maybe_shared(Bytes::copy_from_slice(host?.as_bytes())).ok();
        uri.authority = uri.authority.take().or_else(of_host);
        uri.scheme = uri.authority.is_some().then_some(Scheme::HTTP);
        uri.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    }
    if request.uri().authority().is_some() {
        *request.version_mut() = Version::HTTP_2;
    }
    request
}

/// What a stream's error before the head of the answer means.
fn failure_of(error: h2::Error) -> Failure {
    let is_refused = error.reason() == Some(Reason::REFUSED_STREAM);
    // A GOAWAY reaches only the streams above the last one that the peer has looked at.
    let is_unseen = error.is_go_away() && error.is_remote();
    let (code, retry) = if is_refused || is_unseen {
        (Code::PU02, Retry::Unsent)
    } else if error.is_library() {
        (Code::PU07, Retry::Never)
    } else if error.is_io() || error.reason().is_some() {
        (Code::PU02, Retry::Idempotent)
    } else {
        (Code::PX01, Retry::Never) // a request that HTTP/2 does not allow
    };
    Failure::new(code).because(error).retry(retry)
}
