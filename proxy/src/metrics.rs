//! The data plane's own metrics: handles made once, so that recording is an add.

use std::sync::Arc;

use http::StatusCode;
use telemetry::metrics::{Counter, Gauge, Registry};
use tokio::time::Instant;

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
    pub accept_errors: Counter,
    pub retries: Counter,
}

/// A request that has begun and not ended; recorded for its app when dropped.
pub struct InFlight {
    app: Arc<AppLive>,
    began: Instant,
    /// What the client was answered; `None` when it went away before.
    pub status: Option<StatusCode>,
}

// === impl Metrics ===

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        let error = |code: &Code| {
            registry.counter(
                "ferrule_errors_total",
                "Failures of connections and requests, by code.",
                &[("code", code.as_str())],
            )
        };
        let tasks = |kind| {
            registry.gauge(
                "ferrule_tasks",
                "Tasks that have not ended, by kind.",
                &[("kind", kind)],
            )
        };
        Self {
            errors: Code::ALL.iter().map(error).collect(),
            connections: registry.gauge(
                "ferrule_downstream_connections",
                "Client connections that are open.",
                &[],
            ),
            peer_connections: registry.gauge(
                "ferrule_mesh_connections",
                "Connections of other nodes that are open.",
                &[],
            ),
            connection_tasks: tasks("connection"),
            stream_tasks: tasks("stream"),
            services: registry.gauge(
                "ferrule_connection_services",
                "Tower services that live; one for each HTTP connection.",
                &[],
            ),
            accepted: registry.counter(
                "ferrule_downstream_accepted_total",
                "Client connections accepted.",
                &[],
            ),
            accept_errors: registry.counter(
                "ferrule_accept_errors_total",
                "Failed accepts, descriptor exhaustion among them.",
                &[],
            ),
            retries: registry.counter(
                "ferrule_retries_total",
                "Second and further attempts of requests.",
                &[],
            ),
        }
    }

    /// Counts one failure.
    pub fn count(&self, failure: &Failure) {
        self.errors[failure.code as usize].increment();
        tracing::debug!(code = failure.code.as_str(), "failed: {failure:?}");
    }
}

// === impl InFlight ===

impl InFlight {
    pub fn new(app: Arc<AppLive>, began: Instant) -> Self {
        Self { app, began, status: None }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.app.request_ended(self.status, self.began.elapsed());
    }
}
