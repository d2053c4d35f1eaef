//! A record as OpenTelemetry spans, by the semantic conventions for HTTP servers.
//!
//! A request is one `SERVER` span. The segments of a long one, as long as it is open, are
//! `INTERNAL` spans below it, so that no span id is sent twice; the request's own span comes with
//! the last segment.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Event as SpanEvent, Link, SpanContext, SpanId as OtelSpanId, SpanKind, Status, TraceFlags,
    TraceId as OtelTraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::attributes::{self, Attributes};
use super::source::{Exportable, is_span};
use crate::record::model::{Entry, Event, Method, Protocol, Remote, Span, SpanId, Wide};

/// The spans of `record`, the request's own first; none holds more than `bytes` of events.
pub(super) fn spans(
    record: &dyn Exportable,
    scope: &InstrumentationScope,
    bytes: usize,
) -> Vec<SpanData> {
    let wide = record.wide();
    let mut context = Context {
        wide,
        scope,
        bytes,
        began: UNIX_EPOCH.checked_add(wide.began).unwrap_or(UNIX_EPOCH),
        room: vec![],
    };
    let mut spans =
        vec![if record.open() { context.segment(record) } else { context.server(record) }];
    let mut places = HashMap::new();
    record.visit(&mut |entry| {
        let sent = is_span(record, &entry);
        if let Entry::Span(span) = entry
            && sent
        {
            places.insert(span.id, spans.len());
            spans.push(context.inner(&span));
        }
    });
    // A second time: an event may come before the entry of the span it lies in.
    record.visit(&mut |entry| {
        if let Entry::Event(event) = entry {
            // Its span may be sent with another segment.
            let place = event.span.and_then(|span| places.get(&span).copied());
            context.event(&mut spans, place.unwrap_or_default(), &event);
        }
    });
    spans
}

/// An upper bound of what `span` takes in the protocol's encoding.
pub(super) fn wire_len(span: &SpanData) -> usize {
    // Identifiers, two times, flags, kind, status, counts and the lengths in front of them.
    const SPAN: usize = 112;
    const LINK: usize = 48;
    let status = match &span.status {
        Status::Error { description } => description.len(),
        _ => 0,
    };
    let events: usize = span.events.iter().map(event_len).sum();
    SPAN + span.name.len()
        + status
        + attributes::wire_len(&span.attributes)
        + events
        + LINK * span.links.len()
}

/// Bytes of memory `span` holds, itself included.
pub(super) fn memory_len(span: &SpanData) -> usize {
    let events: usize =
        span.events.iter().map(|event| attributes::memory_len(&event.attributes)).sum();
    size_of::<SpanData>()
        + attributes::memory_len(&span.attributes)
        + span.events.events.capacity() * size_of::<SpanEvent>()
        + events
        + span.links.links.capacity() * size_of::<Link>()
}

fn event_len(event: &SpanEvent) -> usize {
    const EVENT: usize = 24;
    EVENT + event.name.len() + attributes::wire_len(&event.attributes)
}

struct Context<'a> {
    wide: &'a Wide,
    scope: &'a InstrumentationScope,
    /// For the events of one span.
    bytes: usize,
    began: SystemTime,
    /// What is left of `bytes`, by position of the span.
    room: Vec<usize>,
}

// === impl Context ===

impl Context<'_> {
    /// The request on this node.
    fn server(&mut self, record: &dyn Exportable) -> SpanData {
        let wide = self.wide;
        let name = name(wide);
        let mut span = self.span(wide.span, wide.parent, name, SpanKind::Server);
        span.end_time = self.at(wide.lasted);
        span.attributes = attributes::of_request(record).finish();
        if let Some(link) = wide.link {
            let link = Link::new(context_of(link), Vec::new(), 0);
            let mut links = SpanLinks::default();
            links.links.push(link);
            span.links = links;
        }
        // The conventions: a server's fault only. What a client did wrong leaves it unset.
        let failed = wide.status.map_or_else(|| wide.error.is_some(), |status| status >= 500);
        if failed {
            span.status = Status::error(wide.error.unwrap_or_default());
        }
        span
    }

    /// A part of a request that goes on.
    fn segment(&mut self, record: &dyn Exportable) -> SpanData {
        let wide = self.wide;
        let parent = Remote { trace: wide.trace, span: wide.span };
        let id = segment_id(wide.span, record.segment());
        let mut span = self.span(id, Some(parent), "request segment", SpanKind::Internal);
        span.parent_span_is_remote = false;
        let mut first = wide.lasted;
        record.visit(&mut |entry| {
            first = first.min(match entry {
                Entry::Span(span) => span.start,
                Entry::Event(event) => event.at,
            });
        });
        span.start_time = self.at(first);
        span.end_time = self.at(wide.lasted);
        span.attributes = attributes::of_segment(record).finish();
        span
    }

    fn inner(&mut self, span: &Span<'_>) -> SpanData {
        let kind =
            if span.name.starts_with("upstream") { SpanKind::Client } else { SpanKind::Internal };
        let parent = span.parent.unwrap_or(self.wide.span);
        let parent = Remote { trace: self.wide.trace, span: parent };
        let mut data = self.span(span.id, Some(parent), span.name, kind);
        data.parent_span_is_remote = false;
        data.start_time = self.at(span.start);
        data.end_time = self.at(span.end.unwrap_or(self.wide.lasted).max(span.start));
        let mut attributes = Attributes::with_capacity(span.fields.len() + 5);
        attributes.put("target", span.target);
        attributes.put("ferrule.busy_ns", nanoseconds(span.busy));
        attributes.put("ferrule.idle_ns", nanoseconds(span.idle));
        attributes.put("ferrule.polls", i64::from(span.polls));
        if span.end.is_none() {
            attributes.put("ferrule.open", true);
        }
        attributes.fields(&span.fields);
        data.attributes = attributes.finish();
        if span.failed {
            data.status = Status::error("");
        }
        data
    }

    fn event(&mut self, spans: &mut [SpanData], place: usize, event: &Event<'_>) {
        let mut attributes = Attributes::with_capacity(event.fields.len() + 2);
        attributes.put("level", event.level.as_str());
        attributes.put("target", event.target);
        attributes.fields(&event.fields);
        let at = self.at(event.at);
        let event = SpanEvent::new(event.name, at, attributes.finish(), 0);
        let (len, room) = (event_len(&event), &mut self.room[place]);
        if len > *room {
            spans[place].events.dropped_count += 1;
            return;
        }
        *room -= len;
        spans[place].events.events.push(event);
    }

    /// So long after the request began; a time that cannot be written is its begin.
    fn at(&self, after: Duration) -> SystemTime {
        self.began.checked_add(after).unwrap_or(self.began)
    }

    fn span(
        &mut self,
        id: SpanId,
        parent: Option<Remote>,
        name: impl Into<Cow<'static, str>>,
        span_kind: SpanKind,
    ) -> SpanData {
        self.room.push(self.bytes);
        let trace = self.wide.trace;
        let parent_span = parent.map_or(OtelSpanId::INVALID, |parent| parent.span.0.into());
        SpanData {
            span_context: SpanContext::new(
                trace.0.into(),
                id.0.into(),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: parent_span,
            parent_span_is_remote: parent.is_some(),
            span_kind,
            name: name.into(),
            start_time: self.began,
            end_time: self.began,
            attributes: Vec::<KeyValue>::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn context_of(remote: Remote) -> SpanContext {
    let (trace, span) = (OtelTraceId::from(remote.trace.0), OtelSpanId::from(remote.span.0));
    SpanContext::new(trace, span, TraceFlags::default(), true, TraceState::NONE)
}

/// The conventions want the method and nothing that has many values.
fn name(wide: &Wide) -> &'static str {
    match (wide.protocol, wide.method) {
        (Protocol::Tcp, _) => "TCP",
        (_, Method::Other) => "HTTP",
        (_, method) => method.as_str(),
    }
}

/// The same for the same segment, other than any span of the request but by a chance of 1 in 2^64.
fn segment_id(span: SpanId, segment: u16) -> SpanId {
    // An odd factor maps different segments to different ids.
    let id = span.0 ^ (u64::from(segment) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    SpanId(id.max(1))
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
