//! What the exporter sends, byte for byte as a collector decodes it, and what it holds when the
//! collector does not want it.

mod fed;
mod hostile;
mod recorded;
mod rotel;

use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value::AsInt;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, metric::Data};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use telemetry::export::{Compression, Config, LogRecord, Protocol, Severity};
use tests::certs::Certs;
use tests::collector::{Collector, Transport, attribute};
use tests::wait;

use fed::{BEGAN, Fed, Node, quick};

fn over(transport: Transport, config: Config) -> Config {
    let protocol = match transport {
        Transport::Http => Protocol::HttpProtobuf,
        Transport::Grpc => Protocol::Grpc,
    };
    Config { protocol, ..config }
}

fn pairs(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |pair: &KeyValue| attribute(attributes, &pair.key).unwrap();
    attributes.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

#[track_caller]
fn assert_pairs(attributes: &[KeyValue], expected: &[(&str, &str)]) {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    assert_eq!(pairs(attributes), expected.iter().map(own).collect::<Vec<_>>());
}

fn at(since: Duration) -> u64 {
    u64::try_from((BEGAN + since).as_nanos()).unwrap()
}

#[test]
fn a_record_arrives_whole_over_http() {
    arrives_whole(Transport::Http);
}

#[test]
fn a_record_arrives_whole_over_grpc() {
    arrives_whole(Transport::Grpc);
}

fn arrives_whole(transport: Transport) {
    let collector = Collector::start(transport);
    let node = Node::start(&collector, over(transport, quick()));
    node.worker.send(Fed::full()).unwrap();
    collector.wait_until("three spans have come", |collector| collector.spans().len() == 3);

    let [server, route, upstream] = collector.spans().try_into().unwrap();
    check_server(&server);
    check_inner(&route, &upstream);
    check_resource(&collector);
    let left = node.handle.shutdown(Duration::from_secs(2));
    assert_eq!((left.units, left.ended), (0, true));
}

fn check_server(server: &Span) {
    assert_eq!(server.trace_id, 0x0123_4567_89ab_cdef_0011_2233_4455_6677_u128.to_be_bytes());
    assert_eq!(server.span_id, 0x11_u64.to_be_bytes());
    assert_eq!(server.parent_span_id, 0x77_u64.to_be_bytes());
    assert_eq!((server.name.as_str(), server.kind()), ("POST", SpanKind::Server));
    // Sampled; the parent is known to be on another node.
    assert_eq!(server.flags, 0x301);
    assert_eq!(server.start_time_unix_nano, at(Duration::ZERO));
    assert_eq!(server.end_time_unix_nano, at(Duration::from_millis(20)));
    let status = server.status.as_ref().unwrap();
    assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "PU03"));
    assert_pairs(
        &server.attributes,
        &[
            ("http.request.method", "POST"),
            ("url.scheme", "https"),
            ("network.protocol.version", "2"),
            ("http.response.status_code", "502"),
            ("error.type", "PU03"),
            ("http.request.body.size", "7"),
            ("http.response.body.size", "5"),
            ("client.address", "198.51.100.9"),
            ("server.address", "hello.example"),
            ("url.path", "/a"),
            ("url.query", "b=c"),
            ("user_agent.original", "curl"),
            ("ferrule.request_id", "01J-ams"),
            ("ferrule.app", "hello"),
            ("ferrule.instance", "hello-1"),
            ("ferrule.node", "fra-1"),
            ("ferrule.attempts", "2"),
            ("ferrule.head_after_seconds", "0.015"),
            ("ferrule.keep", "error"),
            ("ferrule.verbosity", "normal"),
        ],
    );
    let [link] = server.links.as_slice() else { panic!("{:?}", server.links) };
    assert_eq!(link.trace_id, 0xabc_u128.to_be_bytes());
    assert_eq!(link.span_id, 0x99_u64.to_be_bytes());
    let [retrying] = server.events.as_slice() else { panic!("{:?}", server.events) };
    assert_eq!(retrying.name, "retrying");
    assert_eq!(retrying.time_unix_nano, at(Duration::from_millis(4)));
    assert_pairs(
        &retrying.attributes,
        &[("level", "DEBUG"), ("target", "proxy::retry"), ("cause", "reset"), ("delta", "-1")],
    );
}

fn check_inner(route: &Span, upstream: &Span) {
    assert_eq!((route.name.as_str(), route.kind()), ("route", SpanKind::Internal));
    assert_eq!(route.parent_span_id, 0x11_u64.to_be_bytes());
    assert_eq!(route.flags, 0x101, "its parent is here");
    assert_eq!(route.start_time_unix_nano, at(Duration::from_millis(1)));
    assert_eq!(route.end_time_unix_nano, at(Duration::from_millis(2)));
    assert_eq!(route.status.as_ref().unwrap().code(), StatusCode::Unset);
    assert_pairs(
        &route.attributes,
        &[
            ("target", "proxy::route"),
            ("ferrule.busy_ns", "40000"),
            ("ferrule.idle_ns", "960000"),
            ("ferrule.polls", "2"),
            ("candidates", "3"),
        ],
    );
    assert!(route.events.is_empty());

    assert_eq!((upstream.name.as_str(), upstream.kind()), ("upstream attempt", SpanKind::Client));
    assert_eq!(upstream.parent_span_id, 0x21_u64.to_be_bytes());
    assert_eq!(upstream.start_time_unix_nano, at(Duration::from_millis(2)));
    assert_eq!(upstream.end_time_unix_nano, at(Duration::from_millis(20)), "it was still open");
    assert_eq!(upstream.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_pairs(
        &upstream.attributes,
        &[
            ("target", "proxy::upstream"),
            ("ferrule.busy_ns", "10000"),
            ("ferrule.idle_ns", "0"),
            ("ferrule.polls", "1"),
            ("ferrule.open", "true"),
            ("instance", "hello-1"),
            ("load", "0.5"),
        ],
    );
    let [connected] = upstream.events.as_slice() else { panic!("{:?}", upstream.events) };
    assert_eq!(
        (connected.name.as_str(), connected.time_unix_nano),
        ("connected", at(Duration::from_millis(3)))
    );
}

fn check_resource(collector: &Collector) {
    let received = collector.accepted().remove(0);
    let mut pairs = pairs(&received.resource.unwrap().attributes);
    pairs.sort();
    let expected = [
        ("cloud.region", "ams"),
        ("host.name", "box"),
        ("process.pid", "42"),
        ("service.instance.id", "ams-1"),
        ("service.name", "ferrule"),
        ("service.version", "1.2.3"),
    ];
    assert_eq!(pairs, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let agent = received.headers.get("user-agent").unwrap().to_str().unwrap();
    assert!(agent.starts_with("ferrule/"), "{agent}");
}

#[test]
fn segments_of_an_open_request_never_repeat_a_span() {
    let collector = Collector::start(Transport::Http);
    let node = Node::start(&collector, quick());
    for segment in 0..3 {
        let last = segment == 2;
        node.worker.send(Fed { segment, open: !last, ..Fed::plain(1) }).unwrap();
    }
    collector.wait_until("three spans have come", |collector| collector.spans().len() == 3);
    let spans = collector.spans();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["request segment", "request segment", "GET"]);
    assert!(spans[..2].iter().all(|span| span.parent_span_id == spans[2].span_id));
    assert!(spans[0].span_id != spans[1].span_id && spans[1].span_id != spans[2].span_id);
    assert_eq!(attribute(&spans[1].attributes, "ferrule.segment").as_deref(), Some("1"));
    assert_eq!(attribute(&spans[2].attributes, "ferrule.segment").as_deref(), Some("2"));
}

#[test]
fn logs_and_metrics_arrive_over_both_transports() {
    for transport in [Transport::Http, Transport::Grpc] {
        let collector = Collector::start(transport);
        let interval = Duration::from_millis(50);
        let endpoint = Some(collector.endpoint());
        let config = Config { endpoint, metric_interval: interval, ..over(transport, quick()) };
        let node = Node::start_with(config, &[]);
        node.handle.log(LogRecord {
            severity: Severity::Error,
            at: BEGAN,
            body: "the last exit was an out-of-memory kill".to_owned(),
            attributes: vec![("ferrule.verdict", "oom".to_owned())],
        });
        collector.wait_until("a log has come", |collector| collector.logs().len() == 1);
        let registry = &node.counts.registry;
        registry.counter("ferrule_kettles_total", "Kettles.", &[("app", "a")]).add(3);
        let waits = registry.histogram("ferrule_boil_seconds", "Waits.", &[], &[0.1, 1.0]);
        waits.record(Duration::from_millis(500));
        collector.wait_until("metrics have come", |collector| {
            metric(collector, "ferrule_boil_seconds").is_some()
        });

        let log = collector.logs().remove(0);
        assert_eq!((log.severity_number, log.severity_text.as_str()), (17, "ERROR"));
        assert_eq!(log.time_unix_nano, at(Duration::ZERO));
        assert_pairs(&log.attributes, &[("ferrule.verdict", "oom")]);
        check_metrics(&collector);
        let left = node.handle.shutdown(Duration::from_secs(2));
        assert_eq!((left.units, left.ended), (0, true));
    }
}

/// As it came last.
fn metric(collector: &Collector, name: &str) -> Option<Metric> {
    collector.metrics().into_iter().rev().find(|metric| metric.name == name)
}

fn check_metrics(collector: &Collector) {
    const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;
    let kettles = metric(collector, "ferrule_kettles_total").unwrap();
    assert_eq!((&*kettles.description, &*kettles.unit), ("Kettles.", ""));
    let Some(Data::Sum(sum)) = kettles.data else { panic!("{:?}", kettles.data) };
    assert_eq!((sum.aggregation_temporality, sum.is_monotonic), (CUMULATIVE, true));
    let [point] = &sum.data_points[..] else { panic!("{sum:?}") };
    assert_pairs(&point.attributes, &[("app", "a")]);
    assert_eq!(point.value, Some(AsInt(3)));
    assert!(point.start_time_unix_nano > 0);
    assert!(point.start_time_unix_nano <= point.time_unix_nano);

    let boil = metric(collector, "ferrule_boil_seconds").unwrap();
    assert_eq!(boil.unit, "s");
    let Some(Data::Histogram(histogram)) = boil.data else { panic!("{:?}", boil.data) };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.sum), (1, Some(0.5)));
    assert_eq!((&*point.bucket_counts, &*point.explicit_bounds), (&[0, 1, 0][..], &[0.1, 1.0][..]));
}

#[test]
fn compressed_requests_are_read_by_gzip_itself() {
    for transport in [Transport::Http, Transport::Grpc] {
        let collector = Collector::start(transport);
        let config = Config { compression: Compression::Gzip, ..over(transport, quick()) };
        let node = Node::start(&collector, config);
        (0..100).for_each(|id| node.worker.send(Fed::plain(id)).unwrap());
        collector.wait_until("all have come", |collector| collector.spans().len() == 100);
        let received = collector.accepted().remove(0);
        assert!(received.bytes < received.spans.len() * 100, "{} bytes", received.bytes);
    }
}

#[test]
fn batches_keep_to_their_bounds_and_one_connection() {
    for transport in [Transport::Http, Transport::Grpc] {
        let collector = Collector::start(transport);
        let config =
            Config { batch_spans: 100, batch_bytes: 64 * 1024, ..over(transport, quick()) };
        let node = Node::start(&collector, config);
        (0..2_000).for_each(|id| node.worker.send(Fed::plain(id)).unwrap());
        collector.wait_until("all have come", |collector| collector.spans().len() == 2_000);
        for received in collector.accepted() {
            assert!(received.spans.len() <= 100, "{} spans", received.spans.len());
            assert!(received.bytes <= 64 * 1024, "{} bytes", received.bytes);
        }
        let first = collector.spans().iter().map(|span| span.span_id.clone()).collect::<Vec<_>>();
        let expected: Vec<_> = (1..=2_000_u64).map(|id| id.to_be_bytes().to_vec()).collect();
        assert_eq!(first, expected, "in the order they were finished");
        assert_eq!(collector.connections(), 1);
        wait::until("they are off the books", || node.counts.books("telemetry_queue").0 == 0);
        assert_eq!((node.counts.sent("traces"), node.counts.dropped_in_all()), (2_000, 0));
        assert_eq!(node.counts.books("telemetry_encoding").0, 0);
    }
}

#[test]
fn a_record_larger_than_a_batch_is_sent_in_parts() {
    use telemetry::record::model::{Entry, SpanId};
    let collector = Collector::start(Transport::Http);
    let node = Node::start(&collector, Config { batch_spans: 100, ..quick() });
    let mut fed = Fed::full();
    let Some(Entry::Span(model)) = fed.entries.get(1).cloned() else { panic!("a span") };
    let spans = (0..1_234).map(|id| {
        Entry::Span(telemetry::record::model::Span { id: SpanId(1_000 + id), ..model.clone() })
    });
    fed.entries = spans.collect();
    node.worker.send(fed).unwrap();
    collector.wait_until("all have come", |collector| collector.spans().len() == 1_235);
    assert!(collector.accepted().iter().all(|received| received.spans.len() <= 100));
    wait::until("all are counted", || node.counts.sent("traces") == 1_235);
}

#[test]
fn the_ring_answers_by_trace_and_forgets_its_oldest() {
    use telemetry::record::model::TraceId;
    let collector = Collector::start(Transport::Http);
    let node = Node::start(&collector, Config { ring_bytes: 64 * 1024, ..quick() });
    (0..1_000).for_each(|id| node.worker.send(Fed::plain(id)).unwrap());
    collector.wait_until("all have come", |collector| collector.spans().len() == 1_000);
    assert!(node.handle.find(TraceId(1)).is_empty(), "the first is forgotten");
    let last = node.handle.find(TraceId(1_000));
    assert_eq!(last.iter().map(|found| found.record().wide().span.0).collect::<Vec<_>>(), [1_000]);
    let (held, cap) = node.counts.books("telemetry_ring");
    assert!(held > 0 && held <= cap, "{held} of {cap}");
}

#[test]
fn the_environment_decides_where_and_how() {
    let (generic, own) = (Collector::start(Transport::Http), Collector::start(Transport::Grpc));
    let own_endpoint = own.endpoint();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", generic.endpoint()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", own_endpoint),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc".to_owned()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment=test,service.instance.id=no".to_owned()),
        ("OTEL_SERVICE_NAME", "edge".to_owned()),
    ];
    let environment: Vec<_> = environment.iter().map(|(key, value)| (*key, &**value)).collect();
    let config = Config { endpoint: Some("http://127.0.0.1:9".to_owned()), ..quick() };
    let node = Node::start_with(config, &environment);
    node.worker.send(Fed::plain(1)).unwrap();
    node.handle.log(LogRecord {
        severity: Severity::Info,
        at: BEGAN,
        body: String::new(),
        attributes: Vec::new(),
    });
    own.wait_until("the span has come", |collector| collector.spans().len() == 1);
    generic.wait_until("the log has come", |collector| collector.logs().len() == 1);
    let received = generic.accepted().remove(0);
    assert_eq!(
        (&*received.path, &received.headers["x-key"]),
        ("/v1/logs", &"a b".parse().unwrap())
    );
    let resource = received.resource.unwrap().attributes;
    for (key, value) in
        [("service.name", "edge"), ("deployment", "test"), ("service.instance.id", "ams-1")]
    {
        assert_eq!(attribute(&resource, key).as_deref(), Some(value));
    }
}

#[test]
fn a_collector_behind_tls_is_verified_and_verifies() {
    for transport in [Transport::Http, Transport::Grpc] {
        let (certs, strangers) = (Certs::new(), Certs::new());
        let collector = Collector::start_tls(transport, &certs);
        let identity = certs.ca().with_file_name("edge.pem");
        certs.leaf(&["edge"]).write(&identity);
        let start = |authority: PathBuf| {
            let environment = [
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", authority),
                ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", identity.clone()),
                ("OTEL_EXPORTER_OTLP_CLIENT_KEY", identity.with_extension("key")),
            ];
            let environment =
                environment.each_ref().map(|(name, path)| (*name, path.to_str().unwrap()));
            let endpoint = Some(collector.endpoint());
            Node::start_with(Config { endpoint, ..over(transport, quick()) }, &environment)
        };
        let deceived = start(strangers.ca());
        deceived.worker.send(Fed::plain(1)).unwrap();
        wait::until("it has come and gone", || collector.connections() > 1);
        assert_eq!((collector.requests(), deceived.counts.sent("traces")), (0, 0));
        drop(deceived);

        let node = start(certs.ca());
        node.worker.send(Fed::plain(2)).unwrap();
        collector.wait_until("the span has come", |collector| collector.spans().len() == 1);
    }
}
