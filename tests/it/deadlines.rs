//! Every place where a peer can stop has a deadline, and one who keeps going meets none.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tests::app::App;
use tests::client::{H2, Raw, WebSocket};
use tests::edge::Edge;
use tests::instance::{Echo, Nginx, Scripted, websocket_echo};
use tests::wait;

const SHORT: &str = "700ms";
const EARLY: Duration = Duration::from_millis(350);
const LATE: Duration = Duration::from_secs(6);

fn edge(instance: std::net::SocketAddr, key: &str) -> Edge {
    Edge::builder().app(App::new("hello").instance(instance)).timeout(key, SHORT).start()
}

/// Reads until the connection ends and returns how long that took.
#[track_caller]
fn ended_after(client: &mut Raw) -> Duration {
    let start = Instant::now();
    client.set_timeout(LATE);
    loop {
        match client.reader().some() {
            Ok(bytes) if bytes.is_empty() => return start.elapsed(),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("still open after {:?}", start.elapsed())
            }
            Err(_) => return start.elapsed(),
        }
    }
}

#[test]
fn a_silent_or_half_handshake_is_ended() {
    let echo = Echo::http1();
    let edge = edge(echo.address(), "handshake");
    for hello in [&b""[..], &[0x16, 3, 1, 1, 0, 1, 0, 0, 252]] {
        let mut client = Raw::tcp(edge.https());
        client.send(hello);
        assert!(client.stays_open_for(EARLY), "not before its time");
        ended_after(&mut client);
    }
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
}

#[test]
fn a_head_that_drips_is_ended_however_steadily_it_drips() {
    let echo = Echo::http1();
    let edge = edge(echo.address(), "request_head");
    let mut client = TcpStream::connect(edge.http()).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: hello.test\r\n").unwrap();
    let start = Instant::now();
    let mut ended = false;
    while start.elapsed() < LATE && !ended {
        ended = client.write_all(b"x: y\r\n").is_err();
        std::thread::sleep(Duration::from_millis(50)); // this is the drip, not a wait
    }
    assert!(ended, "the head was still taken after {:?}", start.elapsed());
    assert_eq!(edge.get("hello.test", "/").status, 200);
}

#[test]
fn half_a_head_is_told_408() {
    let echo = Echo::http1();
    let edge = edge(echo.address(), "request_head");
    let mut client = edge.connect();
    client.send("GET / HTTP/1.1\r\nhost: hel");
    client.response().assert_error(408, "PP06");
    assert!(client.closes_within(LATE));
}

#[test]
fn an_idle_http1_connection_is_closed() {
    let echo = Echo::http1();
    let edge = edge(echo.address(), "h1_idle");
    for mut client in [edge.connect(), edge.connect_tls("hello.test")] {
        assert_eq!(client.get("hello.test", "/").status, 200);
        assert!(client.stays_open_for(EARLY), "not before its time");
        ended_after(&mut client);
    }
}

#[test]
fn a_busy_http1_connection_is_not_idle() {
    let echo = Echo::http1();
    let edge = edge(echo.address(), "h1_idle");
    let mut client = edge.connect();
    client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    assert!(client.stays_open_for(Duration::from_millis(1_500)), "the request is in flight");
    echo.open(1);
    assert_eq!(client.response().status, 200);
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let echo = Echo::http1();
    let edge = edge(echo.address(), "h2_idle");
    let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    assert_eq!(client.get("hello.test", "/").await.status, 200);
    let start = Instant::now();
    client.ended().await.unwrap();
    assert!(start.elapsed() > EARLY, "not before its time: {:?}", start.elapsed());
}

#[test]
fn a_body_that_stops_is_ended() {
    let silent = Scripted::start(|connection| connection.hang());
    let edge = edge(silent.address(), "request_body");
    let mut client = edge.connect();
    client.send("POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 10\r\n\r\nhi");
    ended_after(&mut client);
    wait::until("nothing is held", || edge.metric("ferrule_permits_in_use") == 0.0);
}

#[test]
fn a_body_may_be_silent_while_it_is_answered_but_not_for_ever() {
    let echo = Echo::http1();
    let edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .timeout("request_body", SHORT)
        .timeout("websocket_idle", "3s")
        .start();
    let mut client = edge.connect();
    client.send("POST /echo HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 10\r\n\r\nhi");
    let ended = ended_after(&mut client);
    assert!(ended > Duration::from_secs(2), "{ended:?}");
    wait::until("the instance is told", || echo.in_flight() == 0);
    assert_eq!(edge.get("hello.test", "/").status, 200);
}

#[test]
fn an_answer_that_nobody_reads_is_ended() {
    let Some(nginx) = Nginx::start() else { return };
    let edge = edge(nginx.address(), "response_write");
    let mut client = edge.connect();
    client.send("GET /big HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    wait::until("the connection is there", || edge.metric("ferrule_downstream_connections") == 1.0);
    wait::within(LATE, "it is given up", || edge.metric("ferrule_downstream_connections") == 0.0);
    assert_eq!(edge.metric("ferrule_permits_in_use"), 0.0);
}

#[test]
fn an_answer_that_is_read_slowly_but_steadily_arrives() {
    let Some(nginx) = Nginx::start() else { return };
    let edge = edge(nginx.address(), "response_write");
    let mut client = edge.connect();
    client.send("GET /slow HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    let (status, _) = client.reader().head().unwrap();
    assert_eq!(status, 200);
    let (mut length, start) = (0, Instant::now());
    while start.elapsed() < Duration::from_secs(2) {
        length += client.reader().some().unwrap().len();
    }
    assert!(length > 64 * 1024, "{length} bytes in two seconds");
}

#[test]
fn an_instance_that_stops_in_its_body_is_given_up() {
    let instance = Scripted::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhi")?;
        connection.hang()
    });
    let edge = edge(instance.address(), "response_body");
    let mut client = edge.connect();
    client.send("GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    assert!(client.try_response("GET").is_err(), "half a body is no body");
    wait::until("the instance's connection is closed", || instance.closed_by_edge() == 1);
}

#[test]
fn a_silent_websocket_is_closed_and_a_busy_one_is_not() {
    let instance = websocket_echo();
    let edge = edge(instance.address(), "websocket_idle");
    let mut socket = WebSocket::upgrade(edge.connect(), "hello.test", "/");
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_500) {
        socket.send(1, b"x");
        assert_eq!(socket.receive().0, 1);
        std::thread::sleep(Duration::from_millis(100)); // this is the pace, not a wait
    }
    ended_after(socket.raw());
}

#[test]
fn a_silent_raw_connection_is_closed() {
    let instance = Scripted::start(tests::instance::Conversation::hang);
    let edge = Edge::builder()
        .app(App::raw("raw", "[]").instance(instance.address()))
        .timeout("tcp_idle", SHORT)
        .start();
    let mut client = Raw::tcp(edge.tcp());
    client.send("x");
    assert!(client.stays_open_for(EARLY), "not before its time");
    ended_after(&mut client);
    wait::until("the instance is told", || instance.closed_by_edge() == 1);
}

#[test]
fn idle_upstream_connections_are_closed() {
    let instance = Scripted::mirror();
    let edge = edge(instance.address(), "upstream_idle");
    assert_eq!(edge.get("hello.test", "/").status, 200);
    assert_eq!(instance.closed_by_edge(), 0, "it is kept for the next request");
    wait::within(LATE, "it is closed", || instance.closed_by_edge() == 1);
}
