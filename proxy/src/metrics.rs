//! The data plane's own metrics: handles made once, so that recording is an add.

pub mod catalogue;

use std::sync::Arc;

use http::StatusCode;
use telemetry::error::chain;
use telemetry::metrics::{Counter, Gauge, Registry};
use telemetry::record::TraceId;
use tokio::time::Instant;

use crate::drain::Class;
use crate::error::{Code, Failure};
use crate::inventory::AppLive;

/// What every connection and request counts.
#[derive(Clone)]
pub struct Metrics {
    errors: Box<[Counter]>,
    pub connections: Gauge,
    pub peer_connections: Gauge,
    pub connection_tasks: Gauge,
    pub stream_tasks: Gauge,
    pub services: Gauge,
    pub accepted: Counter,
    pub received: Counter,
    pub accept_errors: Counter,
    pub retries: Counter,
    pub pressure: Pressure,
    cuts: [Counter; Class::ALL.len()],
}

/// What was given up because memory was short.
#[derive(Clone)]
pub struct Pressure {
    /// Idle connections of clients that were closed.
    pub close: Counter,
    /// Requests and raw connections that were not served, for what their app held.
    pub shed: Counter,
    /// Times that a socket was found ready and nobody was accepted for a while.
    pub refuse: Counter,
    /// Connections, and streams of nodes, that were ended for what they held.
    pub reset: Counter,
}

/// A request that has begun and not ended; recorded for its app when dropped.
pub struct InFlight {
    app: Arc<AppLive>,
    began: Instant,
    /// Its trace, if its record will be kept.
    traced: Option<TraceId>,
    /// What the client was answered; `None` when it went away before.
    pub status: Option<StatusCode>,
}

// === impl Metrics ===

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let error = |code: &Code| catalogue::ERRORS.counter_in(registry, &[code.as_str()]);
        let tasks = |kind| catalogue::TASKS.gauge_in(registry, &[kind]);
        Self {
            errors: Code::ALL.iter().map(error).collect(),
            connections: catalogue::DOWNSTREAM_CONNECTIONS.gauge_in(registry, &[]),
            peer_connections: catalogue::MESH_CONNECTIONS.gauge_in(registry, &[]),
            connection_tasks: tasks("connection"),
            stream_tasks: tasks("stream"),
            services: catalogue::CONNECTION_SERVICES.gauge_in(registry, &[]),
            accepted: catalogue::DOWNSTREAM_ACCEPTED.counter_in(registry, &[]),
            received: catalogue::REQUESTS_RECEIVED.counter_in(registry, &[]),
            accept_errors: catalogue::ACCEPT_ERRORS.counter_in(registry, &[]),
            pressure: Pressure::new(registry),
            retries: catalogue::RETRIES.counter_in(registry, &[]),
            cuts: Class::ALL
                .map(|class| catalogue::DRAIN_CUT.counter_in(registry, &[class.as_str()])),
        }
    }

    /// Counts one failure.
    pub fn count(&self, failure: &Failure) {
        self.errors[failure.code as usize].increment();
        tracing::debug!(code = failure.code.as_str(), "failed: {}", chain(failure));
    }

    /// Counts what was cut at the deadline of `class`.
    pub fn cut(&self, class: Class) {
        self.cuts[class as usize].increment();
    }
}

// === impl Pressure ===

impl Pressure {
    fn new(registry: &Registry) -> Self {
        let action = |action| catalogue::PRESSURE_ACTIONS.counter_in(registry, &[action]);
        Self {
            close: action("close"),
            shed: action("shed"),
            refuse: action("refuse"),
            reset: action("reset"),
        }
    }
}

// === impl InFlight ===

impl InFlight {
    pub fn new(app: Arc<AppLive>, began: Instant, traced: Option<TraceId>) -> Self {
        Self { app, began, traced, status: None }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.app.request_ended(self.status, self.began.elapsed(), self.traced);
    }
}
