use std::net::Ipv4Addr;

use opentelemetry_proto::tonic::trace::v1::Span as Proto;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::record::model::{Exposed, Keep, ShortText, TraceId, Value};

struct Fed {
    wide: Wide,
    entries: Vec<Entry<'static>>,
    open: bool,
}

impl Exportable for Fed {
    fn wide(&self) -> &Wide {
        &self.wide
    }

    fn keep(&self) -> Keep {
        Keep::NearAnomaly
    }

    fn segment(&self) -> u16 {
        1
    }

    fn open(&self) -> bool {
        self.open
    }

    fn cut(&self) -> (u32, u32) {
        (3, 70_000)
    }

    fn bytes(&self) -> usize {
        0
    }

    fn visit(&self, each: &mut dyn FnMut(Entry<'_>)) {
        self.entries.iter().cloned().for_each(each);
    }
}

fn fed(entries: Vec<Entry<'static>>) -> Fed {
    let mut wide = Wide::new(TraceId(1), SpanId(2));
    wide.request_id = ShortText::new("01JD5W5S8H3E4Q9GXK2TQZ7M3B-ams");
    wide.lasted = Duration::from_secs(3);
    Fed { wide, entries, open: false }
}

fn span(id: u64, end: Option<Duration>) -> Span<'static> {
    Span {
        id: SpanId(id),
        parent: None,
        name: "inner",
        target: "proxy",
        start: Duration::from_secs(1),
        end,
        busy: Duration::MAX,
        idle: Duration::MAX,
        polls: u32::MAX,
        failed: false,
        fields: vec![("number", Value::Unsigned(u64::MAX)), ("text", Value::Exposed("hello"))],
    }
}

fn event(span: Option<u64>) -> Event<'static> {
    Event {
        span: span.map(SpanId),
        name: "happened",
        target: "proxy",
        level: tracing::Level::INFO,
        at: Duration::from_secs(2),
        fields: vec![("float", Value::Float(0.1)), ("signed", Value::Signed(-1))],
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("ferrule").build()
}

#[test]
fn events_beyond_the_bound_are_dropped_and_counted() {
    let entries = (0..1000).map(|_| Entry::Event(event(None))).collect();
    let spans = spans(&fed(entries), &scope(), 10_000);
    let events = &spans[0].events;
    assert!(events.len() > 50 && events.dropped_count > 500, "{}", events.len());
    assert_eq!(events.len() + events.dropped_count as usize, 1000);
    assert!(Proto::from(spans[0].clone()).encoded_len() < 12_000);
}

#[test]
fn a_span_that_is_still_open_waits_for_the_segment_it_ends_in() {
    let entries = vec![
        Entry::Span(span(7, None)),
        Entry::Span(span(8, Some(Duration::from_secs(2)))),
        Entry::Event(event(Some(7))),
        Entry::Event(event(Some(8))),
    ];
    let mut record = fed(entries);
    record.open = true;
    let ids = |spans: &[SpanData]| {
        spans
            .iter()
            .map(|span| (span.span_context.span_id(), span.events.len()))
            .collect::<Vec<_>>()
    };
    let segment = OtelSpanId::from(segment_id(SpanId(2), 1).0);
    // What happened in it is told where it happened.
    let sent = spans(&record, &scope(), 10_000);
    assert_eq!(ids(&sent), [(segment, 1), (8.into(), 1)]);
    assert_eq!(sent[0].start_time, UNIX_EPOCH + Duration::from_secs(1));
    record.open = false;
    let sent = spans(&record, &scope(), 10_000);
    assert_eq!(ids(&sent), [(2.into(), 0), (7.into(), 1), (8.into(), 1)]);
}

#[test]
fn the_status_blames_the_server_for_its_own_faults_only() {
    let failed = |status, error| {
        let mut record = fed(Vec::new());
        (record.wide.status, record.wide.error) = (status, error);
        let span = spans(&record, &scope(), 1000).remove(0);
        let kind = span.attributes.iter().find(|pair| pair.key.as_str() == "error.type");
        (matches!(span.status, Status::Error { .. }), kind.map(|pair| pair.value.to_string()))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(failed(Some(200), None), (false, None));
    assert_eq!(failed(Some(404), None), (false, None));
    assert_eq!(failed(Some(421), Some("PR01")), (false, text("PR01")));
    assert_eq!(failed(Some(500), None), (true, text("500")));
    assert_eq!(failed(Some(502), Some("PU02")), (true, text("PU02")));
    assert_eq!(failed(None, Some("PC01")), (true, text("PC01")));
    assert_eq!(failed(None, None), (false, None));
}

#[test]
fn no_time_overflows() {
    let mut record = fed(vec![Entry::Span(span(7, Some(Duration::MAX)))]);
    record.wide.began = Duration::from_secs(u64::MAX);
    record.wide.lasted = Duration::MAX;
    assert_eq!(spans(&record, &scope(), 1000).len(), 2);
}

proptest! {
    #[test]
    fn the_estimate_is_an_upper_bound_and_no_fantasy(
        inner in 0..20_usize,
        events in prop::collection::vec(prop::option::of(0..25_u64), 0..40),
        text in "\\PC{0,200}",
        exposed in any::<bool>(),
        linked in any::<bool>(),
    ) {
        let spans_of = (0..inner).map(|id| Entry::Span(span(id as u64, None)));
        let mut record = fed(spans_of.collect());
        record.entries.extend(events.into_iter().map(|span| Entry::Event(event(span))));
        record.wide.app = Some(text.as_str().into());
        record.wide.status = Some(500);
        record.wide.request_bytes = u64::MAX;
        record.wide.link = linked.then_some(Remote { trace: TraceId(5), span: SpanId(6) });
        record.wide.exposed = exposed.then(|| Box::new(Exposed {
            client: Some(Ipv4Addr::LOCALHOST.into()),
            path: Some(text.as_str().into()),
            ..Exposed::default()
        }));
        for span in spans(&record, &scope(), 100_000) {
            let estimate = wire_len(&span);
            // With the tag and length in front of it.
            let exact = Proto::from(span).encoded_len() + 4;
            prop_assert!(exact <= estimate, "{} > {}", exact, estimate);
            prop_assert!(estimate <= 2 * exact + 64, "{} is far from {}", estimate, exact);
        }
    }
}
