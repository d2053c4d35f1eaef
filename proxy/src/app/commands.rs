//! What an operator may have a running node do: each command as it meets the node's parts.

use std::path::PathBuf;

use telemetry::heapwatch::{Reason, SnapshotError};
use telemetry::record::{TraceId, json, timeline};
use telemetry::verbosity::{Issued, Listing, NewRule, NewToken, Now, RuleError, TokenError};
use tokio::time::Instant;

use super::drain;
use super::view::NodeView;
use crate::admin::control::{Caller, Control, Form};
use crate::admin::drain::{Answer, Stopping};
use crate::admin::upgrade::{self, Lines};

impl Control for NodeView {
    fn upgrade(&self, ask: &upgrade::Ask, caller: &Caller) -> Result<Lines, String> {
        tracing::info!(%caller, "an upgrade is asked for");
        self.succession.ask(ask.binary.clone())
    }

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

    fn drain(&self, caller: &Caller) -> Answer {
        drain::begin(&self.edge, caller)
    }

    fn undrain(&self, caller: &Caller) -> Result<Answer, Stopping> {
        drain::end(&self.edge, caller)
    }

    fn memory_snapshot(&self) -> Result<PathBuf, SnapshotError> {
        self.heapwatch.snapshot(Reason::Command)
    }
}
