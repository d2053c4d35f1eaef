//! A raw TCP service, in cleartext or behind TLS: one instance, bytes both ways.

use http::Request;
use telemetry::work::State;
use telemetry::{event, site};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::balance::{self, Assignment, Origin, Tried};
use crate::copy;
use crate::downstream::{Downstream, From};
use crate::error::{Code, Failure, Retry};
use crate::http::upgrade::Kind;
use crate::identify::{Route, mesh};
use crate::inventory::{Binding, Place};
use crate::io::proxy_protocol;
use crate::io::stream::Stream;
use crate::limit::{Held, HeldTunnel};
use crate::trace::{self, Trace};
use crate::upstream::{Target, Transport, Tunnel};
use crate::worker::Worker;

/// Connects `stream` to an instance of the app that owns the port, and copies.
///
/// # Errors
///
/// Why there was no instance, or how the copy ended early.
pub async fn serve(
    mut stream: Stream,
    downstream: &Downstream,
    worker: &Worker,
) -> Result<(), Failure> {
    let From::Client(Binding::Dedicated { entry, .. }) = &downstream.from else {
        return Err(Code::PX01.into()); // only such bindings are raw
    };
    let route = Route::find(entry, downstream.local.port()).ok_or(Code::PE01)?;
    downstream.slot.enter(State::Upstream);
    let trace = begin(&route, downstream, worker);
    let record = trace.record.clone();
    let connected = record.scope(connect(&route, downstream, &trace, worker)).await;
    record.wide(|wide| wide.head_after = Some(record.elapsed()));
    drop(record);
    let (tunnel, assignment) = match connected {
        Ok(connected) => connected,
        Err(failure) => {
            trace.record.wide(|wide| wide.error = Some(failure.code.as_str()));
            // There is no way to say why in raw TCP; a clean end is better than none.
            drop(stream.shutdown().await);
            return Err(failure);
        }
    };
    downstream.slot.enter(State::Tunnel);
    let permit = Some(assignment.into_permit());
    let held = HeldTunnel::new(Held { permit, trace: Some(trace), ..Held::default() });
    let copied = copy(&mut stream, tunnel, &route, downstream, worker, &held).await;
    held.ended(&copied);
    copied.inspect_err(|failure| stream.end_after(failure))
}

/// The record of the connection.
fn begin(route: &Route, downstream: &Downstream, worker: &Worker) -> Trace {
    let record = trace::begin_raw(worker, downstream);
    let app = &route.entry.app.name;
    record.wide(|wide| wide.app = Some(app.shared()));
    downstream.slot.traced(record.trace().0);
    Trace::raw(record, app.as_str(), downstream, worker)
}

async fn copy(
    stream: &mut Stream,
    mut tunnel: Tunnel,
    route: &Route,
    downstream: &Downstream,
    worker: &Worker,
    held: &HeldTunnel,
) -> Result<(), Failure> {
    if let Some(version) = route.port().handlers.proxy_protocol {
        let header = proxy_protocol::header(version, downstream.peer, downstream.local);
        tunnel.write_all(&header).await.map_err(|error| Failure::new(Code::PC03).because(error))?;
    }
    copy::both_ways(stream, tunnel, Kind::Raw, worker, &held.moved).await
}

/// A tunnel to some instance; nothing of the client's has been sent, so every failure may be tried
/// elsewhere.
async fn connect(
    route: &Route,
    downstream: &Downstream,
    trace: &Trace,
    worker: &Worker,
) -> Result<(Tunnel, Assignment), Failure> {
    let record = &trace.record;
    let edge = &worker.edge;
    let mut tried = Tried::default();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let patience = edge.config.timeouts.queue;
        let (entry, service) = (&route.entry, route.service);
        let assign = balance::assign(entry, service, &tried, Origin::Client, patience, &worker.rng);
        let assignment = record.spanned(site!("balance"), assign).await?;
        let instance = &assignment.candidate.instance;
        trace::note_attempt(record, attempts, instance);
        let sent = attempt(route, downstream, trace, worker, &assignment);
        let failure = match trace::attempt(record, attempts, instance, sent).await {
            Ok(tunnel) => {
                assignment.answered(Instant::now());
                return Ok((tunnel, assignment));
            }
            Err(failure) => failure,
        };
        match failure.code {
            code if code.is_for_peers() => assignment.refused_by_peer(code, Instant::now()),
            code => assignment.failed(code, Instant::now()),
        }
        tried.add(&assignment);
        let again = failure.retry != Retry::Never
            && route.entry.candidates.len() > tried.count()
            && attempts < edge.config.limits.attempts_max
            && worker.may_retry(Instant::now());
        if !again {
            return Err(failure);
        }
        worker.count(&failure);
        worker.metrics.retries.increment();
        event!(record, WARN, "retry", code = failure.code.as_str());
    }
}

async fn attempt(
    route: &Route,
    downstream: &Downstream,
    trace: &Trace,
    worker: &Worker,
    assignment: &Assignment,
) -> Result<Tunnel, Failure> {
    let instance = &assignment.candidate.instance;
    let target = match &assignment.candidate.place {
        Place::Local => Target {
            address: (instance.address, route.service().internal_port).into(),
            transport: Transport::Http1 { reuse: false },
        },
        Place::Remote(node) => {
            Target { address: node.address, transport: Transport::Mesh(node.clone()) }
        }
        Place::Unknown => return Err(Code::PX01.into()), // never assigned
    };
    let app = route.entry.app.name.as_str();
    // In here the current span is this attempt's.
    let record = &trace.record;
    let mut head = Request::connect(format!("{app}:{}", downstream.local.port()))
        .header(mesh::APP, app)
        .header(mesh::PORT, downstream.forwarded.port.clone())
        .header(mesh::INSTANCE, instance.id.as_str())
        .header(mesh::HOPS, "0")
        .header(trace::TRACEPARENT, Trace::context(record));
    if trace.is_wanted() {
        head = head.header(mesh::VERBOSE, "1");
    }
    let head = head.body(()).map_err(|error| Failure::new(Code::PX01).because(error))?;
    let connected = worker.upstreams.connect(&target, head).await;
    if let Err(failure) = &connected {
        event!(record, WARN, "failed", code = failure.code.as_str());
        record.fail_span();
    }
    connected
}
