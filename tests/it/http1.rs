//! HTTP/1.1 in the ordinary case: reuse, order, bodies, trailers, streaming, cancellation.

use std::io::Write as _;
use std::time::{Duration, Instant};

use tests::app::App;
use tests::client::{Curl, Oha};
use tests::edge::Edge;
use tests::instance::{Echo, Nginx, Scripted};
use tests::strict::{Framing, Reader};
use tests::wait;

fn echo() -> (Echo, Edge) {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    (echo, edge)
}

#[test]
fn one_connection_carries_many_requests() {
    let (echo, edge) = echo();
    let mut client = edge.connect();
    for size in 0..100 {
        assert_eq!(client.get("hello.test", &format!("/bytes/{size}")).body.len(), size);
    }
    assert_eq!(edge.metric("ferrule_downstream_connections"), 1.0);
    assert!(echo.connections() <= 2, "upstream connections are reused: {}", echo.connections());
}

#[test]
fn an_app_that_counts_connections_gets_one_for_each_request() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").by_connections().instance(echo.address())]);
    let mut client = edge.connect();
    for _ in 0..10 {
        assert_eq!(client.get("hello.test", "/").status, 200);
    }
    assert_eq!(echo.connections(), 10);
}

#[test]
fn a_tls_connection_carries_many_requests() {
    let (_echo, edge) = echo();
    let mut client = edge.connect_tls("hello.test");
    assert_eq!(client.alpn().as_deref(), Some("http/1.1"));
    for size in [0, 1, 16_383, 16_384, 16_385, 300_000] {
        assert_eq!(client.get("hello.test", &format!("/bytes/{size}")).body.len(), size);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    let requests: String = (0..50)
        .map(|n| {
            let size = (n * 7919) % 3000;
            format!("GET /bytes/{size} HTTP/1.1\r\nhost: hello.test\r\nx-nonce: {n}\r\n\r\n")
        })
        .collect();
    client.send(requests);
    for n in 0..50 {
        let response = client.response();
        assert_eq!(response.header("x-nonce"), Some(n.to_string().as_str()));
        assert_eq!(response.body.len(), (n * 7919) % 3000);
    }
}

#[test]
fn a_head_may_come_one_byte_at_a_time() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    for n in 0..3 {
        for byte in format!("GET /bytes/{n} HTTP/1.1\r\nhost: hello.test\r\n\r\n").bytes() {
            client.send([byte]);
        }
        assert_eq!(client.response().body.len(), n);
    }
}

#[test]
fn the_client_is_told_to_continue_before_it_sends_its_body() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    client.send(
        "POST /echo HTTP/1.1\r\nhost: hello.test\r\nexpect: 100-continue\r\n\
         content-length: 5\r\n\r\n",
    );
    assert_eq!(client.reader().head().unwrap().0, 100);
    client.send("hello");
    assert_eq!(client.response().text(), "hello");
}

#[test]
fn another_expectation_is_refused() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    client.send("GET / HTTP/1.1\r\nhost: hello.test\r\nexpect: tea\r\n\r\n");
    client.response().assert_error(417, "PP08");
    assert_eq!(edge.get("hello.test", "/").status, 200);
}

#[test]
fn head_is_answered_with_the_length_and_no_body() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    client.send("HEAD /bytes/1234 HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    let response = client.response_to("HEAD");
    assert_eq!((response.status, response.header("content-length")), (200, Some("1234")));
    assert_eq!(client.get("hello.test", "/bytes/3").body.len(), 3);
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    for status in [204, 304, 404, 500, 200] {
        let response = client.get("hello.test", &format!("/status/{status}"));
        assert_eq!((response.status, response.body.len()), (status, 0));
        assert_eq!(response.error_code(), None, "the instance said so, not the edge");
    }
}

#[test]
fn a_body_with_a_length_arrives_with_its_length() {
    let instance = Scripted::mirror();
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    let mut client = edge.connect();
    client.send("POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!(client.response().status, 200);
    let request = instance.request(1);
    assert!(request.contains("content-length: 5\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\nhello"), "{request}");
    assert!(!request.contains("transfer-encoding"), "{request}");
}

#[test]
fn chunked_bodies_pass_both_ways() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    for _ in 0..3 {
        client.send(
            "POST /echo HTTP/1.1\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\nA;ext=1\r\n, chunked!\r\n0\r\n\r\n",
        );
        // One that is complete when its head is read may have a length by then.
        assert_eq!(client.response().text(), "hello, chunked!");
    }
}

#[test]
fn a_body_whose_length_nobody_knows_yet_stays_chunked() {
    const CHUNK: usize = 50_000;
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    let chunk = format!("{CHUNK:x}\r\n{}\r\n", "x".repeat(CHUNK));
    client.send(format!(
        "POST /echo HTTP/1.1\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\n\r\n\
         {chunk}{chunk}{chunk}{chunk}0\r\n\r\n"
    ));
    let response = client.response();
    assert_eq!((response.body.len(), response.framing), (4 * CHUNK, Framing::Chunked));
}

#[test]
fn trailers_reach_the_instance_and_a_client_that_wants_them() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    client.send(
        "POST /echo HTTP/1.1\r\nhost: hello.test\r\nte: trailers\r\ntrailer: x-sum\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n",
    );
    let response = client.response();
    assert_eq!(response.text(), "hi");
    assert_eq!(response.trailers, [("x-sum".to_owned(), "42".to_owned())]);
}

#[test]
fn trailers_are_kept_from_a_client_that_did_not_ask_for_them() {
    // This instance sends its trailer to whoever asks or not.
    let instance = Scripted::answering(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
         2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n",
    );
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    let mut client = edge.connect();
    let response = client.get("hello.test", "/");
    assert_eq!((response.text(), response.trailers.len()), ("hi", 0));
    client.send("GET / HTTP/1.1\r\nhost: hello.test\r\nte: trailers\r\n\r\n");
    assert_eq!(client.response().trailers.len(), 1);
}

#[test]
fn an_answer_is_passed_on_as_it_comes() {
    let (echo, edge) = echo();
    let mut client = edge.connect();
    client.send("GET /drip HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    assert_eq!(client.reader().head().unwrap().0, 200);
    for _ in 0..5 {
        assert_eq!(client.reader().exactly(10).unwrap(), b"5\r\ndrip\n\r\n");
    }
    assert_eq!(echo.in_flight(), 1, "the instance is still sending");
}

#[test]
fn an_upload_is_passed_on_as_it_comes() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    client.send("POST /echo HTTP/1.1\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send("5\r\nfirst\r\n");
    let (status, fields) = client.reader().head().unwrap();
    assert_eq!(status, 200);
    assert_eq!(client.reader().exactly(10).unwrap(), b"5\r\nfirst\r\n");
    client.send("6\r\nsecond\r\n");
    assert_eq!(client.reader().exactly(11).unwrap(), b"6\r\nsecond\r\n");
    client.send("0\r\n\r\n");
    assert_eq!(client.reader().exactly(5).unwrap(), b"0\r\n\r\n");
    // An answer that began before the request was over may end the connection, if it says so.
    if fields.contains(&("connection".to_owned(), "close".to_owned())) {
        assert!(client.closes_within(Duration::from_secs(5)));
    } else {
        assert_eq!(client.get("hello.test", "/bytes/3").body.len(), 3);
    }
}

#[test]
fn ten_mebibytes_arrive_whole() {
    let Some(nginx) = Nginx::start() else { return };
    let edge = Edge::with([App::new("big").instance(nginx.address())]);
    for mut client in [edge.connect(), edge.connect_tls("big.test")] {
        let response = client.get("big.test", "/big");
        assert_eq!(response.body.len(), Nginx::BIG);
        assert!(response.body.iter().all(|byte| *byte == b'b'));
    }
}

#[test]
fn ten_mebibytes_are_echoed_while_they_are_sent() {
    let (_echo, edge) = echo();
    // Whoever only writes, or only reads, would stop for ever: this client does both.
    let body: Vec<u8> = (0..Nginx::BIG).map(|n| (n % 251) as u8).collect();
    let mut reading = std::net::TcpStream::connect(edge.http()).unwrap();
    let mut writing = reading.try_clone().unwrap();
    let sent = body.clone();
    let writer = std::thread::spawn(move || {
        let length = sent.len();
        let head =
            format!("POST /echo HTTP/1.1\r\nhost: hello.test\r\ncontent-length: {length}\r\n\r\n");
        writing.write_all(head.as_bytes()).unwrap();
        writing.write_all(&sent).unwrap();
    });
    reading.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let response = Reader::new(&mut reading).response("POST").unwrap();
    writer.join().unwrap();
    assert!(response.body == body, "{} bytes came back", response.body.len());
}

#[test]
fn an_instance_hears_within_100_ms_that_the_client_left() {
    let (echo, edge) = echo();
    for path in ["/hang", "/drip"] {
        let mut client = edge.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nhost: hello.test\r\n\r\n"));
        echo.holds(1);
        let before = echo.cancelled().len();
        let left = Instant::now();
        drop(client);
        wait::until("the instance hears of it", || echo.cancelled().len() > before);
        let took = echo.cancelled()[before].duration_since(left);
        assert!(took < Duration::from_millis(100), "{path}: {took:?}");
    }
    edge.idle();
}

#[test]
fn connection_close_is_honoured() {
    let (_echo, edge) = echo();
    let mut client = edge.connect();
    client.send("GET / HTTP/1.1\r\nhost: hello.test\r\nconnection: close\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status, 200);
    assert!(response.says_close());
    assert!(client.closes_within(Duration::from_secs(5)));
}

#[test]
fn an_early_answer_does_not_wait_for_the_body_and_is_never_mixed_up_with_the_next() {
    let (echo, edge) = echo();
    let mut client = edge.connect();
    // The instance answers this at once and never reads the body.
    client.send(
        "POST /status/403 HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 1000000\r\n\r\nGET /",
    );
    assert_eq!(client.response().status, 403);
    // The rest of that body, if it is taken at all, is body and not a request.
    let rest = "GET /bytes/7 HTTP/1.1\r\nhost: hello.test\r\n\r\n".repeat(1200);
    if client.try_send(&rest[..50_000]).is_ok() {
        client.set_timeout(Duration::from_millis(300));
        assert!(client.try_response("GET").is_err(), "body bytes were answered");
    }
    assert_eq!(echo.requests(), 1);
    assert_eq!(edge.get("hello.test", "/bytes/3").body.len(), 3);
}

#[test]
fn unknown_methods_and_odd_targets_pass_byte_for_byte() {
    let instance = Scripted::mirror();
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    let mut client = edge.connect();
    for (method, target) in [
        ("PROPFIND", "/"),
        ("M-SEARCH", "/x"),
        ("GET", "/a%2F..//b;c=1,2?x=[1]&y='%00'&z=%E4"),
        ("GET", "//double"),
        ("DELETE", "/?"),
        ("OPTIONS", "*"),
    ] {
        client.send(format!("{method} {target} HTTP/1.1\r\nhost: hello.test\r\n\r\n"));
        let response = client.response();
        let line = format!("{method} {target} HTTP/1.1\r\n");
        assert!(response.text().starts_with(&line), "{line:?} became {:?}", response.text());
    }
}

#[test]
fn large_but_legal_requests_pass() {
    let instance = Scripted::mirror();
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    let mut client = edge.connect();
    let long = "a".repeat(7_500);
    for request in [
        format!("GET /{long} HTTP/1.1\r\nhost: hello.test\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: hello.test\r\nx-long: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: hello.test\r\n{}\r\n", "x-many: 1\r\n".repeat(89)),
        format!("GET / HTTP/1.1\r\nhost: hello.test\r\ncookie: {}\r\n\r\n", "c".repeat(16_000)),
    ] {
        client.send(request);
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn curl_is_served_over_both_protocols() {
    let (_echo, edge) = echo();
    for (version, url) in [
        ("--http1.1", "http://hello.test/bytes/5"),
        ("--http1.1", "https://hello.test/bytes/5"),
        ("--http2", "https://hello.test/bytes/5"),
    ] {
        let address = if url.starts_with("https") { edge.https() } else { edge.http() };
        let Some(curl) = Curl::new(&edge, address) else { return };
        let done = curl.run(&[version, "-w", "%{http_code} %{http_version}", url]);
        let wanted = if version == "--http2" { "xxxxx200 2" } else { "xxxxx200 1.1" };
        assert_eq!((done.code, done.stdout.as_str()), (0, wanted), "{}", done.stderr);
    }
}

#[test]
fn oha_gets_an_answer_to_every_request() {
    let Some(nginx) = Nginx::start() else { return };
    let edge = Edge::with([App::new("hello").instance(nginx.address())]);
    let url = format!("http://{}/", edge.http());
    let Some(oha) = Oha::run(&["-n", "3000", "-c", "30", "-H", "host: hello.test", &url]) else {
        return;
    };
    assert_eq!((oha.responses(200), oha.errors()), (3000, 0), "{}", oha.report);
}
