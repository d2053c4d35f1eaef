//! Verbosity as a running node has it: what control does for it.

use std::sync::Arc;
use std::time::Duration;

use telemetry::bridge;
use telemetry::metrics::Registry;
use telemetry::verbosity::{Now, Verbosity};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::edge::Edge;
use crate::metrics::catalogue;

/// How often rules are swept and the budget learns how many requests there are.
const TICK: Duration = Duration::from_secs(1);

pub(super) fn export(verbosity: &Arc<Verbosity>, registry: &Registry) {
    let rules = verbosity.clone();
    catalogue::TRACE_RULES.gauge_read_in(registry, &[], move || rules.rules() as f64);
    let armed = verbosity.clone();
    catalogue::TRACE_ARMED.gauge_read_in(registry, &[], move || armed.armed() as f64);
}

/// Ends what is over, once a second and whenever something begins, until `stop`.
pub(super) async fn run(edge: Arc<Edge>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut libraries = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            () = edge.verbosity.woken() => {}
        }
        edge.verbosity.tick(Now::read(), edge.metrics.received.value());
        // Libraries speak only while somebody listens.
        match (libraries, edge.verbosity.wants_libraries()) {
            (false, true) => bridge::arm(),
            (true, false) => bridge::disarm(),
            _ => {}
        }
        libraries = edge.verbosity.wants_libraries();
    }
}
