//! The decision before work: what is malformed is refused, what is too much is shed.

use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::Response;

use crate::answer::Received;
use crate::balance::node::RequestGuard;
use crate::body::Body;
use crate::downstream::From;
use crate::error::Failure;
use crate::http::fields;
use crate::worker::Worker;

/// A well-formed request that the node has room for.
pub struct Admitted {
    pub received: Received,
    pub guard: RequestGuard,
}

#[derive(Clone)]
pub struct RequestAdmissionLayer {
    worker: Rc<Worker>,
}

#[derive(Clone)]
pub struct RequestAdmission<S> {
    inner: S,
    worker: Rc<Worker>,
}

// === impl RequestAdmissionLayer ===

impl RequestAdmissionLayer {
    pub fn new(worker: Rc<Worker>) -> Self {
        Self { worker }
    }
}

impl<S> tower::Layer<S> for RequestAdmissionLayer {
    type Service = RequestAdmission<S>;

    fn layer(&self, inner: S) -> RequestAdmission<S> {
        RequestAdmission { inner, worker: self.worker.clone() }
    }
}

// === impl RequestAdmission ===

impl<S> RequestAdmission<S> {
    fn admit(&self, received: Received) -> Result<Admitted, Failure> {
        let edge = &self.worker.edge;
        let (head, body) = received.request.into_parts();
        // A peer's request was checked where its client is; it has grown by what nodes add.
        if let From::Client(_) = received.downstream.from {
            fields::check_request(&head, &edge.config.limits)?;
        }
        let guard = edge.requests.admit()?;
        let request = http::Request::from_parts(head, body);
        Ok(Admitted { received: Received { request, ..received }, guard })
    }
}

impl<S> tower::Service<Received> for RequestAdmission<S>
where
    S: tower::Service<Admitted, Response = Response<Body>, Error = Failure>,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Either<Ready<Result<Response<Body>, Failure>>, S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, received: Received) -> Self::Future {
        match self.admit(received) {
            Ok(admitted) => Either::Right(self.inner.call(admitted)),
            Err(failure) => Either::Left(ready(Err(failure))),
        }
    }
}
