//! Verbosity as a running node has it: what control does for it, and what operators do with it.

use std::sync::Arc;
use std::time::Duration;

use telemetry::bridge;
use telemetry::metrics::Registry;
use telemetry::record::{TraceId, json, timeline};
use telemetry::verbosity::{
    Issued, Listing, NewRule, NewToken, Now, RuleError, TokenError, Verbosity,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::view::NodeView;
use crate::admin::control::{Caller, Control, Form};
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

impl Control for NodeView {
    fn trace_on(&self, rule: NewRule, caller: &Caller) -> Result<u64, RuleError> {
        self.edge.verbosity.add_rule(rule, &caller.to_string(), Now::read())
    }

    fn trace_off(&self, id: Option<u64>, caller: &Caller) -> usize {
        let (verbosity, who, now) = (&self.edge.verbosity, caller.to_string(), Now::read());
        match id {
            Some(id) => usize::from(verbosity.remove_rule(id, &who, now)),
            None => verbosity.remove_all_rules(&who, now),
        }
    }

    fn trace_list(&self) -> Listing {
        self.edge.verbosity.list(Instant::now())
    }

    fn trace_token(&self, token: &NewToken, caller: &Caller) -> Result<Issued, TokenError> {
        self.edge.verbosity.sign(token, &caller.to_string(), Now::read())
    }

    fn trace_record(&self, trace: TraceId, form: Form) -> Option<String> {
        self.observers.with_record(trace, |segments| {
            let segments = segments.iter().copied();
            match form {
                Form::Text => timeline::render(segments),
                Form::Json => json::render(segments).to_string() + "\n",
            }
        })
    }
}
