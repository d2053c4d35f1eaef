//! Stopping: finish what began, start nothing new, say that nothing is held.

use std::time::{Duration, Instant};

use http::Request;
use rustix::process::Signal;
use tests::app::App;
use tests::client::{H2, H2Response, Raw, WebSocket};
use tests::edge::Edge;
use tests::instance::{Echo, Scripted, websocket_echo};
use tests::wait;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn an_idle_node_stops_at_once() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    let start = Instant::now();
    edge.signal(Signal::TERM);
    edge.stopped();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_request_in_flight_is_finished_and_its_connection_closed() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut busy = [edge.connect(), edge.connect_tls("hello.test")];
    let mut idle = [edge.connect(), edge.connect_tls("hello.test")];
    for client in &mut idle {
        assert_eq!(client.get("hello.test", "/").status, 200);
    }
    for client in &mut busy {
        client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    }
    echo.holds(2);
    let http = edge.http();
    edge.signal(Signal::TERM);
    for client in &mut idle {
        assert!(client.closes_within(SOON), "an idle connection is closed");
    }
    wait::until("nobody is accepted any more", || Raw::try_tcp(http).is_err());
    echo.open(2);
    for client in &mut busy {
        let response = client.response();
        assert_eq!(response.text(), "through the gate");
        assert!(response.says_close());
        assert!(client.closes_within(SOON));
    }
    edge.stopped();
}

#[tokio::test]
async fn an_http2_connection_gets_goaway_and_finishes_its_streams() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut idle = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let request = Request::get("https://hello.test/gate").body(()).unwrap();
    let (response, _) = client.start(request, true).await.unwrap();
    while echo.in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    edge.signal(Signal::TERM);
    idle.ended().await.unwrap();
    echo.open(1);
    assert_eq!(&H2Response::read(response).await.unwrap().body[..], b"through the gate");
    client.ended().await.unwrap();
    edge.stopped();
}

#[test]
fn what_does_not_finish_is_cut_at_the_deadline() {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let mut edge = Edge::builder().app(app).timeout("drain", "1s").start();
    let mut client = edge.connect();
    client.send("GET /hang HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    let start = Instant::now();
    edge.signal(Signal::TERM);
    assert!(client.stays_open_for(Duration::from_millis(500)), "not before the deadline");
    edge.stopped();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(client.try_response("GET").is_err());
    wait::until("the instance is told", || echo.in_flight() == 0);
}

#[test]
fn websockets_are_told_and_raw_connections_ended_by_the_deadline() {
    let (chat, raw) = (websocket_echo(), Scripted::start(tests::instance::Conversation::hang));
    let mut edge = Edge::builder()
        .app(App::new("chat").instance(chat.address()))
        .app(App::raw("raw", "[]").instance(raw.address()))
        .timeout("drain_tcp", "1s")
        .start();
    let mut socket = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    let mut bytes = Raw::tcp(edge.tcp());
    bytes.send("x");
    wait::until("the instance has it", || raw.connections() == 1);
    edge.signal(Signal::TERM);
    const CLOSE: u8 = 8;
    assert_eq!(socket.receive(), (CLOSE, 1001_u16.to_be_bytes().to_vec()));
    socket.send(CLOSE, &1001_u16.to_be_bytes());
    assert!(socket.raw().closes_within(SOON));
    edge.stopped();
    assert!(bytes.closes_within(SOON));
    wait::until("the instance is told", || raw.closed_by_edge() == 1);
}

#[test]
fn an_upload_in_flight_is_finished() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut client = edge.connect();
    client.send("POST /echo HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 10\r\n\r\nfirst");
    echo.holds(1);
    edge.signal(Signal::TERM);
    let http = edge.http();
    wait::until("nobody is accepted any more", || Raw::try_tcp(http).is_err());
    client.send("last.");
    assert_eq!(client.response().text(), "firstlast.");
    edge.stopped();
}

#[test]
fn the_log_of_a_node_that_failed_nothing_has_no_error() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    for _ in 0..10 {
        assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
    }
    edge.signal(Signal::TERM);
    edge.stopped();
    let log = edge.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}
