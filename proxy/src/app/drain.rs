//! A drain for maintenance: said at once, acted upon a little later, taken back at any time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::threads::Remote;
use crate::admin::control::Caller;
use crate::admin::drain::{Answer, Draining, Stopping};
use crate::drain::State;
use crate::edge::Edge;
use crate::worker::Phase;

/// Has the workers follow what the node says of itself, until `stop`.
pub(super) async fn run(edge: Arc<Edge>, remote: Remote, stop: CancellationToken) {
    let mut states = edge.drain.states();
    while stop.run_until_cancelled(states.changed()).await.is_some_and(|changed| changed.is_ok()) {
        let state = *states.borrow_and_update();
        let delay = edge.config.timeouts.drain_delay;
        match state {
            State::Serving => remote.enter(Phase::Serving),
            // Health checks, routes and peers turn away first; whoever is told to go before they have
            // would come back to this node.
            State::Operator { .. } => tokio::select! {
                () = stop.cancelled() => return,
                () = other_than(state, &mut states) => states.mark_changed(),
                () = sleep(delay) => remote.enter(Phase::Draining),
            },
            // Those who stop the workers tell them.
            State::Leaving { .. } => {}
        }
    }
    stop.cancelled().await;
}

async fn other_than(state: State, states: &mut watch::Receiver<State>) {
    // Without a sender there is nothing to change.
    if states.wait_for(|now| *now != state).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Asks everybody to send elsewhere.
pub(super) fn begin(edge: &Edge, caller: &Caller) -> Answer {
    let changed = edge.drain.begin(SystemTime::now());
    if changed {
        tracing::info!(%caller, "drained by an operator");
    }
    Answer { changed, draining: draining(edge) }
}

/// Takes that back.
pub(super) fn end(edge: &Edge, caller: &Caller) -> Result<Answer, Stopping> {
    let changed = edge.drain.end();
    if changed {
        tracing::info!(%caller, "serving again");
    }
    match edge.drain.state() {
        State::Leaving { .. } => Err(Stopping),
        _ => Ok(Answer { changed, draining: draining(edge) }),
    }
}

/// Tells everybody that the node ends, and gives them time to turn away; `hurry` cuts that short. Those
/// who know already need none.
pub(super) async fn leave(edge: &Edge, hurry: &CancellationToken) {
    if edge.drain.leave(SystemTime::now()) {
        let delay = edge.config.timeouts.drain_delay;
        let _hurried = hurry.run_until_cancelled(sleep(delay)).await;
    }
}

/// What is left to go; `None` while the node serves.
pub(super) fn draining(edge: &Edge) -> Option<Draining> {
    let state = edge.drain.state();
    let since = state.since()?;
    let by = match state {
        State::Operator { .. } => "operator",
        State::Serving | State::Leaving { .. } => "stop",
    };
    let seconds = |span: Result<Duration, _>| span.map_or(0.0, |span: Duration| span.as_secs_f64());
    Some(Draining {
        by: by.to_owned(),
        since: seconds(since.duration_since(SystemTime::UNIX_EPOCH)),
        seconds: seconds(since.elapsed()),
        connections: edge.metrics.connections.value().max(0).unsigned_abs(),
        requests: u64::from(edge.requests.in_flight()),
    })
}
