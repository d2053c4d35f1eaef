//! The innermost service: choose an instance, send, and try again where that is safe.
//!
//! An attempt ends in an answer, in a refusal by a peer (it has a newer view, or is full) or in a
//! failure. What may follow is decided by `Exchange::may_retry` alone: only what reached no
//! application, or is idempotent and can start over, within the budget.

mod attempt;
mod upgrading;

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use http::header::{HeaderMap, HeaderValue, LOCATION};
use http::{Request, Response, StatusCode, Version, request};
use telemetry::record::{Record, report};
use telemetry::work::State;
use telemetry::{event, site};
use tokio::time::Instant;

use crate::balance::{self, Assignment, Tried};
use crate::body::Body;
use crate::error::{Code, FERRULE_ERROR, Failure, Retry};
use crate::http::{fields, forward};
use crate::identify::layer::Identified;
use crate::identify::{Origin, mesh};
use crate::inventory::{Candidate, Place};
use crate::limit::{Held, HeldBody};
use crate::trace::{self, Trace};
use crate::upstream::retry::Replay;
use crate::upstream::{Refused, Target, Transport};
use crate::worker::Worker;

/// Answers identified requests from instances.
#[derive(Clone)]
pub struct Dispatch {
    worker: Rc<Worker>,
}

/// One request on its way through its attempts.
struct Exchange<'w> {
    worker: &'w Worker,
    request: Identified,
    tried: Tried,
    attempts: u32,
}

// === impl Dispatch ===

impl Dispatch {
    pub fn new(worker: Rc<Worker>) -> Self {
        Self { worker }
    }
}

impl tower::Service<Identified> for Dispatch {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = LocalBoxFuture<'static, Result<Response<Body>, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut identified: Identified) -> Self::Future {
        let worker = self.worker.clone();
        if let Some(response) = redirect(&identified) {
            return Box::pin(std::future::ready(Ok(response)));
        }
        if let Origin::Client = identified.identity.origin {
            let version = identified.request.version();
            worker.edge.identity.rewrite_request(
                identified.request.headers_mut(),
                version,
                &identified.downstream,
                identified.identity.route.entry.app.compat,
                &identified.id,
            );
        }
        Box::pin(async move {
            let exchange = Exchange {
                worker: &worker,
                request: identified,
                tried: Tried::default(),
                attempts: 0,
            };
            exchange.run().await
        })
    }
}

/// 301 to https, with path and query as they came.
fn redirect(identified: &Identified) -> Option<Response<Body>> {
    let Identified { identity, downstream, request, id, .. } = identified;
    let from_client = matches!(identity.origin, Origin::Client);
    if !from_client || !identity.route.port().force_https || downstream.is_secure() {
        return None;
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let location = format!("https://{}{path}", identity.named.host());
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, HeaderValue::try_from(location).ok()?);
    forward::sign_response(response.headers_mut(), id);
    if let Some(trace) = identified.held.trace.as_ref().filter(|trace| trace.is_wanted()) {
        response.headers_mut().insert(trace::TRACE_ID, Trace::id(&trace.record));
    }
    Some(response)
}

// === impl Exchange ===

impl Exchange<'_> {
    async fn run(mut self) -> Result<Response<Body>, Failure> {
        let answered = match self.request.upgrade.take() {
            // Boxed: few requests are one, and all would carry the space for it.
            Some(upgrade) => Box::pin(self.upgrade(upgrade)).await,
            None => self.request().await,
        };
        if let (Err(failure), Some(in_flight)) = (&answered, &mut self.request.held.in_flight) {
            in_flight.status = Some(failure.code.status());
        }
        answered
    }

    async fn request(&mut self) -> Result<Response<Body>, Failure> {
        let (mut head, body) = self.take_request();
        // Each attempt puts its own there; a copy of a head has no room for one more field.
        head.headers.insert(trace::TRACEPARENT, HeaderValue::from_static(""));
        let record = self.record();
        let replay_max = self.worker.edge.config.limits.replay_bytes_max;
        let replay = Replay::new(body, replay_max, record.clone());
        self.worker.count_request(Instant::now());
        let mut last = None;
        loop {
            // That nobody is left says less than what the last one did.
            let assigned = record.spanned(site!("balance"), pin!(self.assign())).await;
            let assignment = assigned.map_err(|nobody| last.take().unwrap_or(nobody))?;
            let Some(body) = replay.attempt() else { return Err(Code::PX01.into()) };
            let target = self.target(&assignment)?;
            let mut of_attempt;
            let spoken = if let Transport::Http1 { .. } = target.transport {
                &mut head
            } else {
                // HTTP/2 keeps what it is given, and what is said to a peer is for no instance.
                of_attempt = Box::new(copy(&head));
                &mut *of_attempt
            };
            self.address_head(spoken, &target, &assignment)?;
            let failure = match self.send(&record, &target, spoken, body, &assignment).await {
                Ok(response) => match self.accept(response, assignment) {
                    Ok(response) => return Ok(response),
                    Err(refused) => refused,
                },
                Err(Refused { failure, unsent: _ }) => {
                    assignment.failed(failure.code, Instant::now());
                    self.note_failure(&failure, &assignment);
                    failure
                }
            };
            if !self.may_retry(&head, &replay, &failure) {
                return Err(failure);
            }
            self.worker.count(&failure);
            self.worker.metrics.retries.increment();
            event!(record, WARN, "retry", code = failure.code.as_str());
            last = Some(failure);
        }
    }

    /// One attempt, in a span that the next node or the instance continues.
    async fn send(
        &self,
        record: &Record,
        target: &Target,
        head: &mut request::Parts,
        body: Body,
        assignment: &Assignment,
    ) -> Result<Response<Body>, Refused> {
        self.waits_for(State::Upstream);
        let instance = &assignment.candidate.instance;
        trace::note_attempt(record, self.attempts, instance);
        // Pinned here, since the span would move it, and it is large.
        let sent = pin!(async {
            // In here the current span is this attempt's.
            head.headers.insert(trace::TRACEPARENT, Trace::context(record));
            let sent = self.worker.upstreams.send(target, head, body).await;
            match &sent {
                Ok(response) => {
                    event!(record, "answered", status = u64::from(response.status().as_u16()));
                }
                Err(refused) => {
                    event!(record, WARN, "failed", code = refused.failure.code.as_str());
                    record.fail_span();
                }
            }
            sent
        });
        trace::attempt(record, self.attempts, instance, sent).await
    }

    /// What is written down of this request.
    fn record(&self) -> Record {
        let trace = self.request.held.trace.as_ref();
        trace.expect("a request keeps its record until it is answered").record.clone()
    }

    /// The request itself; what is left of it in here is what is known of it.
    fn take_request(&mut self) -> (request::Parts, Body) {
        let nothing = Request::new(Body::Empty);
        std::mem::replace(&mut self.request.request, nothing).into_parts()
    }

    /// Says so on the list of what is going on.
    fn waits_for(&self, state: State) {
        if let Some(live) = &self.request.held.live {
            live.slot.enter(state);
        }
    }

    async fn assign(&mut self) -> Result<Assignment, Failure> {
        self.attempts += 1;
        self.waits_for(State::Permit);
        let edge = &self.worker.edge;
        let route = &self.request.identity.route;
        let named;
        let origin = match &self.request.identity.origin {
            Origin::Client => balance::Origin::Client,
            Origin::Peer { instance, .. } => {
                named = instance
                    .as_ref()
                    .and_then(|id| id.to_str().ok())
                    .map(control::snapshot::InstanceId::new);
                balance::Origin::Peer(named.as_ref())
            }
        };
        let patience = edge.config.timeouts.queue;
        balance::assign(
            &route.entry,
            route.service,
            &self.tried,
            origin,
            patience,
            &self.worker.rng,
        )
        .await
    }

    /// Whether another attempt has an instance to go to: one that was not tried, or the same one
    /// over another connection. A peer has chosen already, and chooses again.
    fn has_alternatives(&self) -> bool {
        matches!(self.request.identity.origin, Origin::Client)
            && self.request.identity.route.entry.candidates.len() > self.tried.count()
    }

    /// What a peer or an instance answered: a refusal is a failure that may be tried elsewhere.
    fn accept(
        &mut self,
        mut response: Response<Body>,
        assignment: Assignment,
    ) -> Result<Response<Body>, Failure> {
        let now = Instant::now();
        if assignment.candidate.is_remote() {
            if let Some(failure) = told_by_peer(response.headers()) {
                match failure.retry {
                    Retry::Unsent if failure.code.is_for_peers() => {
                        assignment.refused_by_peer(failure.code, now);
                    }
                    _ => assignment.failed(failure.code, now),
                }
                self.tried.add(&assignment);
                return Err(failure);
            }
        } else {
            // Only nodes say these; an instance that does could have its request sent twice.
            // Looking at the names is cheaper than asking the map three times for what is rare.
            if response.headers().keys().any(|name| name.as_str().starts_with("ferrule-")) {
                for name in [mesh::REFUSED, mesh::FAILED, mesh::DRAINING, FERRULE_ERROR] {
                    response.headers_mut().remove(name);
                }
            }
        }
        if response.status().is_server_error() {
            assignment.answered_with_error(now);
        } else {
            assignment.answered(now);
        }
        self.finish_head(&mut response);
        self.waits_for(State::Response);
        let held = std::mem::take(&mut self.request.held);
        let held = Held { permit: Some(assignment.into_permit()), ..held };
        Ok(response.map(|body| Body::boxed(HeldBody::new(body, held))))
    }

    /// Header policy and metrics of an answer that goes to the client.
    fn finish_head<B>(&mut self, response: &mut Response<B>) {
        if let Some(in_flight) = &mut self.request.held.in_flight {
            in_flight.status = Some(response.status());
        }
        let Identified { identity, id, .. } = &self.request;
        let app = &identity.route.entry.app;
        let version = response.version();
        match identity.origin {
            Origin::Client => {
                forward::rewrite_response(
                    response.headers_mut(),
                    version,
                    identity.route.http(),
                    app.compat,
                    id,
                );
                if let Some(trace) =
                    self.request.held.trace.as_ref().filter(|trace| trace.is_wanted())
                {
                    response.headers_mut().insert(trace::TRACE_ID, Trace::id(&trace.record));
                    if let Some(report) = self.report(trace) {
                        response.headers_mut().insert(trace::TRACE_REPORT, report);
                    }
                }
            }
            Origin::Peer { .. } => forward::strip_response(response.headers_mut()),
        }
        if version == Version::HTTP_2 {
            // Of HTTP/1 they are slices of one small block already.
            fields::detach(response.headers_mut());
        }
        // The version of a hop is not the client's.
        *response.version_mut() = Version::HTTP_11;
    }

    /// What the client is told of its request, if its token asks for that.
    fn report(&self, trace: &Trace) -> Option<HeaderValue> {
        if !trace.is_reported() {
            return None;
        }
        let route = &self.request.identity.route;
        let candidate = |candidate: &Candidate| {
            let rtt = match &candidate.place {
                Place::Remote(node) => node.measured_rtt(),
                Place::Local | Place::Unknown => None,
            };
            let load = candidate.load(route.service).map_or(0, |load| load.in_flight().into());
            (candidate.instance.node.shared(), rtt, load)
        };
        let candidates: Vec<_> = route.entry.candidates.iter().map(|it| candidate(it)).collect();
        let candidates: Vec<_> = candidates
            .iter()
            .map(|(node, rtt, load)| report::Candidate { node, rtt: *rtt, load: *load })
            .collect();
        let node = &self.worker.edge.config.node;
        let record = trace.record.so_far();
        let report = report::compact(node.id.as_str(), node.region.as_str(), &record, &candidates);
        HeaderValue::try_from(report).ok()
    }

    /// An instance that cannot be reached is not asked twice; one that closed a connection that
    /// had been idle may be.
    fn note_failure(&mut self, failure: &Failure, assignment: &Assignment) {
        let closed = matches!(failure.code, Code::PC03 | Code::PU02);
        if !closed || self.attempts > 1 {
            self.tried.add(assignment);
        }
    }

    fn may_retry(&self, head: &request::Parts, replay: &Replay, failure: &Failure) -> bool {
        let safe = match failure.retry {
            Retry::Unsent => true,
            Retry::Idempotent => head.method.is_idempotent(),
            Retry::Never => false,
        };
        safe && self.has_alternatives()
            && replay.is_possible()
            && self.attempts < self.worker.edge.config.limits.attempts_max
            && self.worker.may_retry(Instant::now())
    }
}

/// What a peer says instead of an instance's answer, if it does.
fn told_by_peer(headers: &HeaderMap) -> Option<Failure> {
    let (code, retry) = match (headers.get(mesh::REFUSED), headers.get(mesh::FAILED)) {
        (Some(code), _) => (code, Retry::Unsent),
        (None, Some(code)) => (code, Retry::Idempotent),
        (None, None) => return None,
    };
    Some(Failure::new(Code::parse(code.as_bytes()).unwrap_or(Code::PU03)).retry(retry))
}

fn copy(head: &request::Parts) -> request::Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a call of `function` makes, without making it.
    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// A request's future is allocated and copied for every request, so it is bounded, with room;
    /// and from below, so that the bound stays tight.
    #[test]
    fn the_future_of_a_request_is_bounded() {
        let request = size(Exchange::<'static>::run);
        assert!((REQUEST_BYTES_MAX / 2..=REQUEST_BYTES_MAX).contains(&request), "{request}");
    }

    const REQUEST_BYTES_MAX: usize = 4 * 1024;
}
