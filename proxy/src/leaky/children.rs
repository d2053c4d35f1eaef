//! The layer that keeps children with their parent.

use std::fmt;
use std::time::{Duration, Instant};

use http::Method;
use tracing::dispatcher::{self, Dispatch};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// A subscriber of its own, and the span that all requests are children of.
pub(crate) struct Children {
    dispatch: Dispatch,
    process: Span,
}

/// Gives every closed span to its parent, which would hand all of them to an exporter once it closes.
struct CollectChildren;

/// What a span keeps of those that closed below it.
#[derive(Default)]
struct Closed(Vec<Child>);

/// A span while it is open, and afterwards in its parent.
struct Child {
    began: Instant,
    took: Duration,
    fields: Vec<(&'static str, String)>,
}

// === impl Children ===

impl Children {
    pub(crate) fn new() -> Self {
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(CollectChildren));
        let process = dispatcher::with_default(&dispatch, || tracing::info_span!("process"));
        Self { dispatch, process }
    }

    pub(crate) fn open(&self, method: &Method, path: &str) -> Span {
        let open = || tracing::info_span!(parent: &self.process, "request", %method, path);
        dispatcher::with_default(&self.dispatch, open)
    }

    /// With the subscriber as the thread's, which the registry asks for when it lets a parent go.
    pub(crate) fn close(&self, span: Span) {
        dispatcher::with_default(&self.dispatch, || drop(span));
    }
}

// === impl CollectChildren ===

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for CollectChildren {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut child = Child { began: Instant::now(), took: Duration::ZERO, fields: Vec::new() };
        attributes.record(&mut child);
        span.extensions_mut().insert(child);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(mut child) = span.extensions_mut().remove::<Child>() else { return };
        let Some(parent) = span.parent() else { return };
        child.took = child.began.elapsed();
        let mut extensions = parent.extensions_mut();
        match extensions.get_mut::<Closed>() {
            Some(closed) => closed.0.push(child),
            None => extensions.insert(Closed(vec![child])),
        }
    }

    /// Nobody else's level is raised by it.
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }
}

impl Visit for Child {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.push((field.name(), format!("{value:?}")));
    }
}
