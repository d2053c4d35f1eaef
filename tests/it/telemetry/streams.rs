//! What lasts long: it holds no buffer, and is told in pieces.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tests::app::App;
use tests::collector::{Collector, Transport};
use tests::edge::{Builder, Edge};
use tests::instance::Echo;
use tests::wait;

use super::{is_server, ledger, servers, value};

fn node(collector: &Collector, echo: &Echo) -> Builder {
    Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .exporting(collector, Transport::Http)
        .sampling(100)
        .telemetry("telemetry.records", "retained_buffers = 0")
}

#[test]
fn a_long_answer_gives_its_buffer_back() {
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let edge = node(&collector, &echo).start();
    let mut client = edge.connect();
    // Before the head of the answer there is no stream: the buffer stays.
    client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    assert_eq!(ledger(&edge, "record_buffers"), 4096.0);
    echo.open(1);
    assert_eq!(client.response().status, 200);
    wait::until("it is given back", || ledger(&edge, "record_buffers") == 0.0);

    client.send("GET /drip HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    assert_eq!(client.reader().head().unwrap().0, 200);
    wait::until("it is given back", || {
        client.reader().exactly(64).unwrap();
        ledger(&edge, "record_buffers") == 0.0
    });
    assert_eq!(edge.metric("ferrule_records_live"), 1.0, "the request goes on");
    assert!(ledger(&edge, "record_slots") > 0.0);
    drop(client);
    edge.idle();
}

#[test]
fn a_long_request_is_told_in_segments_of_one_span() {
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let edge =
        node(&collector, &echo).telemetry("telemetry.records", "segment_after = \"1s\"").start();
    let mut client = edge.connect();
    client.send("GET /drip HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    assert_eq!(client.reader().head().unwrap().0, 200);
    let segments = |collector: &Collector| {
        let spans = collector.spans().into_iter();
        spans.filter(|span| span.name == "request segment").collect::<Vec<_>>()
    };
    wait::until("three segments have come", || {
        client.reader().exactly(64).unwrap();
        segments(&collector).len() >= 3
    });
    assert_eq!(servers(&collector), [], "the request goes on");
    drop(client);
    collector.wait_until("its end has come", |collector| !servers(collector).is_empty());
    drop(edge);

    let [server] = <[_; 1]>::try_from(servers(&collector)).unwrap();
    let segments = segments(&collector);
    for (number, segment) in segments.iter().enumerate() {
        assert_eq!(segment.kind(), SpanKind::Internal);
        assert_eq!(
            (&segment.trace_id, &segment.parent_span_id),
            (&server.trace_id, &server.span_id)
        );
        assert_eq!(
            (value(segment, "ferrule.segment"), value(segment, "ferrule.open")),
            (number.to_string(), "true".into())
        );
        assert!(segment.start_time_unix_nano <= segment.end_time_unix_nano);
        assert!(segment.end_time_unix_nano <= server.end_time_unix_nano);
    }
    assert_eq!(value(&server, "ferrule.segment"), segments.len().to_string());
    assert_eq!(value(&server, "http.response.status_code"), "200");
    let spans = collector.spans();
    let ids: std::collections::BTreeSet<_> = spans.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), spans.len(), "no span comes twice");
    assert_eq!(spans.iter().filter(|span| is_server(span)).count(), 1);
}

#[test]
fn a_tunnel_gives_its_buffer_back_too() {
    let collector = Collector::start(Transport::Http);
    let (socket, raw) = (tests::instance::websocket_echo(), Echo::http1());
    let edge = Edge::builder()
        .app(App::new("chat").instance(socket.address()))
        .app(App::raw("raw", "[]").instance(raw.address()))
        .exporting(&collector, Transport::Http)
        .sampling(100)
        .telemetry("telemetry.records", "retained_buffers = 0")
        .start();
    let mut tunnel = tests::client::WebSocket::upgrade(edge.connect(), "chat.test", "/");
    let mut client = tests::client::Raw::tcp(edge.tcp());
    client.send("GET /bytes/3 HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(client.response().text(), "xxx");
    assert_eq!(edge.metric("ferrule_records_live"), 2.0);
    wait::until("they are given back", || ledger(&edge, "record_buffers") == 0.0);
    assert_eq!(edge.metric("ferrule_records_live"), 2.0);
    tunnel.send(1, b"x");
    assert_eq!(tunnel.receive().0, 1);
    drop((tunnel, client));
    edge.idle();
    collector.wait_until("both have come", |collector| servers(collector).len() == 2);
    let told = servers(&collector);
    let raw = told.iter().find(|span| span.name == "TCP").unwrap();
    assert_eq!(value(raw, "network.protocol.name"), "tcp");
    assert_eq!(value(raw, "ferrule.app"), "raw");
    assert_eq!(value(raw, "http.request.method"), "");
    let socket = told.iter().find(|span| span.name == "GET").unwrap();
    assert_eq!(value(socket, "http.request.body.size"), "7");
    assert_eq!(value(socket, "http.response.body.size"), "3");
}
