//! Upgrades: the same choice of an instance, but what comes back is a tunnel.

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, request};
use telemetry::record::Protocol;
use telemetry::work::State;
use telemetry::{event, site};
use tokio::time::Instant;

use super::Exchange;
use crate::balance::Assignment;
use crate::body::Body;
use crate::error::{Code, Failure, Retry};
use crate::http::upgrade::{self, Switched};
use crate::http::websocket::Handshake;
use crate::limit::Held;
use crate::trace::{self, Trace};
use crate::upstream::{Target, Transport, Upgrade};

impl Exchange<'_> {
    /// Opens the tunnel and puts it where the owner of the client's bytes finds it.
    pub(super) async fn upgrade(
        &mut self,
        asked: upgrade::Request,
    ) -> Result<Response<Body>, Failure> {
        // It has no body, so its head is sent as often as needed.
        let (head, _) = self.take_request();
        loop {
            let record = self.record();
            let assignment = record.spanned(site!("balance"), self.assign()).await?;
            self.waits_for(State::Upstream);
            let failure = match self.attempt_upgrade(&asked, &head, &assignment).await {
                Ok(Upgrade::Switched(response, tunnel)) => {
                    assignment.answered(Instant::now());
                    let response = self.switching(&asked, response);
                    self.waits_for(State::Tunnel);
                    let kind = upgrade::Kind::of(&asked.protocol);
                    let protocol = match kind {
                        upgrade::Kind::Raw => Protocol::Tcp,
                        upgrade::Kind::WebSocket | upgrade::Kind::Other => Protocol::WebSocket,
                    };
                    self.record().wide(|wide| wide.protocol = protocol);
                    let held = self.hold(assignment);
                    asked.slot.put(Switched { tunnel, held, kind });
                    return Ok(response);
                }
                Ok(Upgrade::Answered(response)) => match self.accept(response, assignment) {
                    Ok(response) => return Ok(response),
                    Err(failure) => failure,
                },
                Err(failure) => {
                    assignment.failed(failure.code, Instant::now());
                    self.note_failure(&failure, &assignment);
                    failure
                }
            };
            // Nothing of the new protocol has been sent, so what reached nobody may go elsewhere.
            let again = failure.retry == Retry::Unsent
                && self.has_alternatives()
                && self.attempts < self.worker.edge.config.limits.attempts_max
                && self.worker.may_retry(Instant::now());
            if !again {
                return Err(failure);
            }
            self.worker.count(&failure);
            self.worker.metrics.retries.increment();
            event!(record, WARN, "retry", code = failure.code.as_str());
        }
    }

    /// One attempt, in a span that the next node or the instance continues.
    async fn attempt_upgrade(
        &self,
        asked: &upgrade::Request,
        head: &request::Parts,
        assignment: &Assignment,
    ) -> Result<Upgrade, Failure> {
        let target = self.target(assignment)?;
        let mut head = super::copy(head);
        self.address_head(&mut head, &target, assignment)?;
        let record = self.record();
        let instance = &assignment.candidate.instance;
        trace::note_attempt(&record, self.attempts, instance);
        let attempt = async {
            // In here the current span is this attempt's.
            head.headers.insert(trace::TRACEPARENT, Trace::context(&record));
            let upgraded = self.upgrade_at(target, Request::from_parts(head, ()), asked).await;
            if let Err(failure) = &upgraded {
                event!(record, WARN, "failed", code = failure.code.as_str());
                record.fail_span();
            }
            upgraded
        };
        trace::attempt(&record, self.attempts, instance, attempt).await
    }

    async fn upgrade_at(
        &self,
        target: Target,
        request: Request<()>,
        asked: &upgrade::Request,
    ) -> Result<Upgrade, Failure> {
        if *asked.protocol == *upgrade::RAW {
            return self.raw(&target, request).await;
        }
        match target.transport {
            Transport::Mesh(_) => {
                self.worker.upstreams.upgrade(&target, request, &asked.protocol).await
            }
            _ => self.upgrade_instance(target, request, &asked.protocol).await,
        }
    }

    /// Raw TCP for a peer: the instance gets the bytes and nothing else.
    async fn raw(&self, target: &Target, request: Request<()>) -> Result<Upgrade, Failure> {
        let target =
            Target { address: target.address, transport: Transport::Http1 { reuse: false } };
        let tunnel = self.worker.upstreams.connect(&target, request).await?;
        Ok(Upgrade::Switched(Response::new(()), tunnel))
    }

    /// HTTP/1 to the instance, with the handshake of WebSocket where the client's side has none.
    async fn upgrade_instance(
        &self,
        target: Target,
        mut request: Request<()>,
        protocol: &str,
    ) -> Result<Upgrade, Failure> {
        // An h2c instance is upgraded over HTTP/1 too: RFC 8441 towards instances is not spoken.
        let target = Target { transport: Transport::Http1 { reuse: false }, ..target };
        let wanted = HeaderValue::from_str(protocol)
            .map_err(|error| Failure::new(Code::PP07).because(error))?;
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, wanted);
        let handshake = Handshake::begin(protocol, request.headers_mut());
        let upgraded = self.worker.upstreams.upgrade(&target, request, protocol).await?;
        if let Upgrade::Switched(mut response, tunnel) = upgraded {
            handshake.verify(response.headers_mut())?;
            return Ok(Upgrade::Switched(response, tunnel));
        }
        Ok(upgraded)
    }

    fn hold(&mut self, assignment: Assignment) -> Held {
        let held = std::mem::take(&mut self.request.held);
        Held { permit: Some(assignment.into_permit()), ..held }
    }

    /// 101 with the instance's own fields.
    fn switching(
        &mut self,
        asked: &upgrade::Request,
        mut response: Response<()>,
    ) -> Response<Body> {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        self.finish_head(&mut response);
        let protocol = HeaderValue::from_str(&asked.protocol);
        if let (Ok(protocol), true) = (protocol, *asked.protocol != *upgrade::RAW) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(UPGRADE, protocol);
        }
        response.map(|()| Body::Empty)
    }
}
