//! Identification as a layer: an admitted request becomes one that knows its app.

use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::Response;
use http::header::HeaderValue;
use telemetry::pressure::Level;

use super::{Identity, identify};
use crate::admission::Admitted;
use crate::answer::Received;
use crate::body::Body;
use crate::downstream::Downstream;
use crate::error::{Code, Failure};
use crate::holdings;
use crate::http::upgrade;
use crate::limit::Held;
use crate::metrics::InFlight;
use crate::trace::{self, Trace};
use crate::worker::Worker;

/// A request whose app is known, with the guards it holds so far.
pub struct Identified {
    pub request: http::Request<Body>,
    pub upgrade: Option<upgrade::Request>,
    pub id: HeaderValue,
    pub downstream: Rc<Downstream>,
    pub identity: Identity,
    pub held: Held,
}

#[derive(Clone)]
pub struct IdentifyLayer {
    worker: Rc<Worker>,
}

#[derive(Clone)]
pub struct Identify<S> {
    inner: S,
    worker: Rc<Worker>,
}

// === impl IdentifyLayer ===

impl IdentifyLayer {
    pub fn new(worker: Rc<Worker>) -> Self {
        Self { worker }
    }
}

impl<S> tower::Layer<S> for IdentifyLayer {
    type Service = Identify<S>;

    fn layer(&self, inner: S) -> Identify<S> {
        Identify { inner, worker: self.worker.clone() }
    }
}

// === impl Identify ===

impl<S> Identify<S> {
    fn identify(&self, admitted: Admitted) -> Result<Identified, Failure> {
        let edge = &self.worker.edge;
        let Admitted { received, guard } = admitted;
        let Received { request, upgrade, id, downstream, live, record, asked, began } = received;
        let (mut head, body) = request.into_parts();
        let identity =
            identify(&downstream, &edge.inventory, &mut head, edge.config.limits.hops_max)?;
        let entry = &identity.route.entry;
        record.wide(|wide| wide.app = Some(entry.app.name.shared()));
        if let super::Origin::Client = identity.origin {
            downstream.belongs_to(entry)?;
        } else {
            // Between nodes each stream is booked by itself.
            holdings::current().belong_to(&entry.live);
        }
        if edge.pressure.is_at(Level::Shed) && !entry.live.may_have_more() {
            self.worker.metrics.pressure.shed.increment();
            return Err(Code::PL06.into());
        }
        let in_flight = {
            // Others may be kept too, for how they end; that is known only after they are counted.
            let traced =
                (record.sampled() && edge.records.exports_wanted()).then(|| record.trace());
            InFlight::new(entry.live.clone(), began, traced)
        };
        live.slot.belongs_to(entry.live.id());
        let app = entry.app.name.as_str();
        let facts = || trace::facts(app, identity.named.host(), &head, &downstream);
        let trace = Trace::new(record, asked, facts, &self.worker);
        let held = Held {
            node: Some(guard),
            permit: None,
            live: Some(live),
            trace: Some(trace),
            in_flight: Some(in_flight),
        };
        let request = http::Request::from_parts(head, body);
        Ok(Identified { request, upgrade, id, downstream, identity, held })
    }
}

impl<S> tower::Service<Admitted> for Identify<S>
where
    S: tower::Service<Identified, Response = Response<Body>, Error = Failure>,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Either<Ready<Result<Response<Body>, Failure>>, S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted) -> Self::Future {
        match self.identify(admitted) {
            Ok(identified) => Either::Right(self.inner.call(identified)),
            Err(failure) => Either::Left(ready(Err(failure))),
        }
    }
}
