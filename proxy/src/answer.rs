//! The outermost layer: every request gets an id, and every failure becomes a response here.

use std::convert::Infallible;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use telemetry::metrics::Gauge;
use telemetry::record::Record;
use tokio::time::Instant;

use crate::body::Body;
use crate::downstream::{Downstream, From, Live};
use crate::error::{Code, Failure, Retry};
use crate::http::{Arrival, forward, upgrade};
use crate::identify::mesh;
use crate::trace::{self, Trace};
use crate::worker::Worker;

/// A request on its way in: it has an id, and somebody will answer it.
pub struct Received {
    pub request: Request<Body>,
    pub upgrade: Option<upgrade::Request>,
    pub id: HeaderValue,
    pub downstream: Rc<Downstream>,
    pub live: Live,
    pub record: Record,
    /// What it brought that may make it verbose.
    pub asked: trace::Asked,
    pub began: Instant,
}

#[derive(Clone)]
pub struct AnswerLayer {
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
}

/// One for each connection, counted while it lives; streams and rebuilt HTTP/1 state share it.
#[derive(Clone)]
pub struct Answer<S> {
    inner: S,
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    _counted: Rc<Counted>,
}

/// A service in the metrics.
struct Counted {
    services: Gauge,
}

// === impl AnswerLayer ===

impl AnswerLayer {
    pub fn new(worker: Rc<Worker>, downstream: Rc<Downstream>) -> Self {
        Self { worker, downstream }
    }
}

impl<S> tower::Layer<S> for AnswerLayer {
    type Service = Answer<S>;

    fn layer(&self, inner: S) -> Answer<S> {
        let Self { worker, downstream } = self.clone();
        let counted = Rc::new(Counted::new(&worker.edge.metrics.services));
        Answer { inner, worker, downstream, _counted: counted }
    }
}

// === impl Counted ===

impl Counted {
    fn new(services: &Gauge) -> Self {
        services.add(1);
        Self { services: services.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.services.add(-1);
    }
}

// === impl Answer ===

impl<S> tower::Service<Arrival> for Answer<S>
where
    S: tower::Service<Received, Response = Response<Body>, Error = Failure>,
    S::Future: 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = LocalBoxFuture<'static, Result<Response<Body>, Infallible>>;

    /// Always ready: nothing is acquired before `call`, so nothing can leak between the two.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, arrival: Arrival) -> Self::Future {
        let Arrival { request, upgrade } = arrival;
        let (worker, downstream) = (self.worker.clone(), self.downstream.clone());
        let id = match &downstream.from {
            From::Client(_) => worker.edge.identity.request_id(),
            // The node that the client reached has named it.
            From::Peer(_) => request
                .headers()
                .get(forward::FERRULE_REQUEST_ID)
                .cloned()
                .unwrap_or_else(|| worker.edge.identity.request_id()),
        };
        worker.metrics.received.increment();
        let (mut head, body) = request.into_parts();
        let began = Instant::now();
        let (record, asked) = trace::begin(&worker, &downstream, &mut head, &id, began);
        let live = downstream.begin_request(&worker.desk);
        live.slot.traced(record.trace().0);
        let beat = live.slot.beat();
        let entered = record.enter();
        let answer = self.inner.call(Received {
            request: Request::from_parts(head, body),
            upgrade,
            id: id.clone(),
            live,
            record: record.clone(),
            asked,
            downstream: downstream.clone(),
            began,
        });
        drop(entered);
        let answer = beat.note(record.scope(answer));
        Box::pin(async move {
            let answered = answer.await;
            let head_after = record.elapsed();
            Ok(match answered {
                Ok(response) => {
                    record.wide(|wide| {
                        wide.head_after = Some(head_after);
                        wide.status = Some(response.status().as_u16());
                    });
                    response
                }
                Err(failure) => {
                    worker.count(&failure);
                    record.wide(|wide| {
                        wide.head_after = Some(head_after);
                        wide.status = Some(failure.code.status().as_u16());
                        wide.error = Some(failure.code.as_str());
                    });
                    refusal(&failure, &downstream, &id, &record)
                }
            })
        })
    }
}

fn refusal(
    failure: &Failure,
    downstream: &Downstream,
    id: &HeaderValue,
    record: &Record,
) -> Response<Body> {
    let mut response = failure.response();
    match downstream.from {
        From::Client(_) => {
            forward::sign_response(response.headers_mut(), id);
            if record.is_verbose() {
                response.headers_mut().insert(trace::TRACE_ID, Trace::id(record));
            }
            if failure.code == Code::PP02 {
                // Whoever sends one message that can be read twice may have sent more of them.
                // HTTP/2 has no such field and its driver removes it.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
        }
        // A peer that is refused looks elsewhere; what else failed it judges as if it had happened
        // to itself.
        From::Peer(_) => {
            let refused = failure.code.is_for_peers() || failure.retry == Retry::Unsent;
            let header = if refused { mesh::REFUSED } else { mesh::FAILED };
            response.headers_mut().insert(header, HeaderValue::from_static(failure.code.as_str()));
        }
    }
    response
}
