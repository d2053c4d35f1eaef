//! Requests that the real recorder wrote down, through the real outboxes.

use std::sync::Arc;
use std::time::Duration;

use telemetry::export::Config;
use telemetry::record::{self, Begin, Keep, Method, Protocol, Recorder, Shared, ShortText, Value};
use telemetry::{event, site};
use tests::collector::{Collector, Transport, attribute};

use super::fed::{Counts, Node, quick};

fn recorder(counts: &Counts) -> (Recorder, Arc<Shared>) {
    let config = record::Config {
        sample_percent: 100.0,
        exports_per_second_max: 1_000_000,
        app_exports_per_second_max: 1_000_000,
        ..record::Config::default()
    };
    let shared = Shared::new(config, 1, &counts.registry, &counts.ledger).unwrap();
    shared.want_exports(true);
    (Recorder::new(&shared, 0), shared)
}

fn request(recorder: &Recorder) {
    let record = recorder.begin(Begin {
        request_id: ShortText::new("01JD5W5S8H3E4Q9GXK2TQZ7M3B-ams"),
        protocol: Protocol::Http2,
        tls: true,
        method: Method::Get,
        parent: None,
        link: None,
        now: recorder.now(),
    });
    record.wide(|wide| wide.status = Some(200));
    let _outer = record.enter_span(site!("route"));
    let _inner = record.enter_span(site!("upstream attempt"));
    event!(record, "picked", candidates = 3u64);
    record.field("instance", Value::Catalogued("hello-1"));
}

#[test]
fn what_the_recorder_kept_arrives_and_stays_to_be_shown() {
    let counts = Counts::new();
    let (recorder, shared) = recorder(&counts);
    let collector = Collector::start(Transport::Http);
    let config = Config { endpoint: Some(collector.endpoint()), ..quick() };
    let handle = Node::export(config, &[], Box::new(shared.outboxes()), &counts);
    request(&recorder);
    collector.wait_until("the spans have come", |collector| collector.spans().len() == 3);

    let [server, route, upstream] = collector.spans().try_into().unwrap();
    assert_eq!(
        (&*server.name, &*route.name, &*upstream.name),
        ("GET", "route", "upstream attempt")
    );
    assert_eq!(route.parent_span_id, server.span_id);
    assert_eq!(upstream.parent_span_id, route.span_id);
    assert_eq!(attribute(&upstream.attributes, "instance").as_deref(), Some("hello-1"));
    assert_eq!(upstream.events[0].name, "picked");
    for inner in [&route, &upstream] {
        assert!(inner.start_time_unix_nano >= server.start_time_unix_nano);
        assert!(inner.end_time_unix_nano <= server.end_time_unix_nano);
    }
    let trace = u128::from_be_bytes(server.trace_id.as_slice().try_into().unwrap());
    let found = handle.find(record::TraceId(trace));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].finished().unwrap().keep, Keep::Sampled);
}

#[test]
fn a_full_outbox_does_not_wait_for_the_next_turn() {
    let counts = Counts::new();
    let (recorder, shared) = recorder(&counts);
    let collector = Collector::start(Transport::Http);
    let poll = Duration::from_secs(3_600);
    let config = Config { endpoint: Some(collector.endpoint()), poll, ..quick() };
    let _handle = Node::export(config, &[], Box::new(shared.outboxes()), &counts);
    collector.wait_until("records come though nobody asks for them", |collector| {
        (0..100).for_each(|_| request(&recorder));
        !collector.spans().is_empty()
    });
}
