//! Two memory leaks on purpose, compiled into `ferrule-leaky` and nowhere else.
//!
//! A guard that never caught anything proves nothing, so what watches memory is tried on these: both
//! are what one would write first, and what others have shipped.
//!
//! `FERRULE_LEAK` says which:
//!
//! | value | fault |
//! |---|---|
//! | `children` (default) | a `tracing` layer keeps every closed span with its parent, to export them together, and the parent never closes |
//! | `queue` | an exporter behind a queue without bound, while the collector takes nothing; its place is `OTEL_EXPORTER_OTLP_ENDPOINT` |

pub(crate) mod children;
mod queue;

use std::sync::OnceLock;
use std::task::{Context, Poll};

use futures_util::future::LocalBoxFuture;
use tower::{Layer, Service};

use crate::http::Arrival;
use children::Children;
use queue::Queue;

/// The leak of the process.
static LEAK: OnceLock<Leak> = OnceLock::new();

enum Leak {
    Children(Children),
    Queue(Queue),
}

/// Puts every request into the leak.
#[derive(Clone, Copy)]
pub struct LeakLayer(());

/// One for each connection.
#[derive(Clone)]
pub struct Leaking<S> {
    inner: S,
}

/// A request that leaves something behind when it ends.
struct Begun {
    leak: &'static Leak,
    request: Option<Request>,
}

enum Request {
    Span(tracing::Span),
    Record(String),
}

// === impl Leak ===

impl Leak {
    fn of_process() -> &'static Self {
        LEAK.get_or_init(|| match std::env::var("FERRULE_LEAK").as_deref() {
            Ok("queue") => Self::Queue(Queue::start()),
            _ => Self::Children(Children::new()),
        })
    }

    fn begin(&'static self, arrival: &Arrival) -> Begun {
        let (method, path) = (arrival.request.method(), arrival.request.uri().path());
        let request = match self {
            Self::Children(children) => Request::Span(children.open(method, path)),
            Self::Queue(_) => Request::Record(queue::record(&arrival.request)),
        };
        Begun { leak: self, request: Some(request) }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        match (self.leak, self.request.take()) {
            (Leak::Children(children), Some(Request::Span(span))) => children.close(span),
            (Leak::Queue(queue), Some(Request::Record(record))) => queue.push(record),
            _ => {}
        }
    }
}

// === impl LeakLayer ===

impl LeakLayer {
    pub fn new() -> Self {
        Leak::of_process();
        Self(())
    }
}

impl Default for LeakLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for LeakLayer {
    type Service = Leaking<S>;

    fn layer(&self, inner: S) -> Leaking<S> {
        Leaking { inner }
    }
}

// === impl Leaking ===

impl<S> Service<Arrival> for Leaking<S>
where
    S: Service<Arrival>,
    S::Future: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = LocalBoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, arrival: Arrival) -> Self::Future {
        let begun = Leak::of_process().begin(&arrival);
        let answer = self.inner.call(arrival);
        Box::pin(async move {
            let answered = answer.await;
            drop(begun);
            answered
        })
    }
}
