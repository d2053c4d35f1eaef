//! A raw TCP service, in cleartext or behind TLS: one instance, bytes both ways.

use http::Request;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::balance::{self, Assignment, Origin, Tried};
use crate::copy;
use crate::downstream::{Downstream, From};
use crate::error::{Code, Failure, Retry};
use crate::identify::{Route, mesh};
use crate::inventory::{Binding, Place};
use crate::io::proxy_protocol;
use crate::io::stream::Stream;
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
    let connected = connect(&route, downstream, worker).await;
    let (mut tunnel, assignment) = match connected {
        Ok(connected) => connected,
        Err(failure) => {
            // There is no way to say why in raw TCP; a clean end is better than none.
            drop(stream.shutdown().await);
            return Err(failure);
        }
    };
    let _permit = assignment.into_permit();
    if let Some(version) = route.port().handlers.proxy_protocol {
        let header = proxy_protocol::header(version, downstream.peer, downstream.local);
        tunnel.write_all(&header).await.map_err(|error| Failure::new(Code::PC03).because(error))?;
    }
    let idle = worker.edge.config.timeouts.tcp_idle;
    let copied = copy::both_ways(&mut stream, tunnel, worker, idle).await;
    copied.inspect_err(|failure| stream.end_after(failure))
}

/// A tunnel to some instance; nothing of the client's has been sent, so every failure may be tried
/// elsewhere.
async fn connect(
    route: &Route,
    downstream: &Downstream,
    worker: &Worker,
) -> Result<(Tunnel, Assignment), Failure> {
    let edge = &worker.edge;
    let mut tried = Tried::default();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let assignment = balance::assign(
            &route.entry,
            route.service,
            &tried,
            Origin::Client,
            edge.config.timeouts.queue,
            &worker.rng,
        )
        .await?;
        let failure = match attempt(route, downstream, worker, &assignment).await {
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
        worker.metrics.count(&failure);
        worker.metrics.retries.increment();
    }
}

async fn attempt(
    route: &Route,
    downstream: &Downstream,
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
    let head = Request::connect(format!("{app}:{}", downstream.local.port()))
        .header(mesh::APP, app)
        .header(mesh::PORT, downstream.forwarded.port.clone())
        .header(mesh::INSTANCE, instance.id.as_str())
        .header(mesh::HOPS, "0")
        .body(())
        .map_err(|error| Failure::new(Code::PX01).because(error))?;
    worker.upstreams.connect(&target, head).await
}
