//! The connection's service as hyper sees it, and the mark that each answer leaves on its connection
//! until it is over.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};

use super::io::Watch;
use crate::body::Body;
use crate::error::Failure;
use crate::http::upgrade::{self, Slot};
use crate::http::{Arrival, RequestService};

/// The connection's service as hyper calls it.
pub(super) struct Adapter<'s, S> {
    pub(super) service: &'s RefCell<S>,
    pub(super) watch: Rc<Watch>,
    pub(super) slot: Slot,
}

impl<S: RequestService> hyper::service::Service<Request<hyper::body::Incoming>> for Adapter<'_, S> {
    type Response = Response<Busy>;
    type Error = Infallible;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        self.watch.called.set(true);
        self.watch.conversing.set(false);
        self.watch.calls.set(self.watch.calls.get() + 1);
        let busy = BusyGuard::new(&self.watch);
        let (mut head, body) = request.into_parts();
        head.extensions.clear(); // hyper's OnUpgrade: the driver switches by itself
        let body =
            if http_body::Body::is_end_stream(&body) { Body::Empty } else { Body::Incoming(body) };
        let upgrade = upgrade::requested(&head, &body)
            .map(|protocol| upgrade::Request { protocol, slot: self.slot.clone() });
        let trailers = crate::http::fields::wants_trailers(&head.headers);
        self.watch.until_close.set(head.version < Version::HTTP_11);
        let arrival = Arrival { request: Request::from_parts(head, body), upgrade };
        let answer = self.service.borrow_mut().call(arrival);
        Box::pin(async move {
            let Ok(mut response) = answer.await;
            busy.watch.conversing.set(true);
            if !trailers {
                //= https://www.rfc-editor.org/rfc/rfc9110#section-6.5.1
                //# a sender SHOULD NOT generate trailer fields unless the sender knows the
                //# recipient will make use of them
                response.headers_mut().remove(header::TRAILER);
            }
            let watch = &busy.watch;
            let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if watch.is_in_body() || (watch.says_close.get() && !switches) {
                //= https://www.rfc-editor.org/rfc/rfc9112#section-9.6
                //# A server that does not support persistent connections MUST send the "close"
                //# connection option in every response message that does not have a 1xx status
                // The rest of the request may never be read, and then hyper closes. In a drain it is the
                // one way to end a connection that no request can cross.
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| Busy { body, trailers, _busy: busy }))
        })
    }
}

/// A response body that keeps its connection from being parked.
pub(super) struct Busy {
    body: Body,
    trailers: bool,
    _busy: BusyGuard,
}

struct BusyGuard {
    watch: Rc<Watch>,
}

impl BusyGuard {
    fn new(watch: &Rc<Watch>) -> Self {
        watch.busy.set(watch.busy.get() + 1);
        Self { watch: watch.clone() }
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.watch.busy.set(self.watch.busy.get() - 1);
        // hyper has the last of the answer, and has written nothing of it yet.
        self.watch.unflushed.set(true);
    }
}

impl http_body::Body for Busy {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Failure>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() && !self.trailers => {
                Poll::Ready(None)
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
