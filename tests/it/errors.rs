//! What the client is told when something fails, and that a failure is never taken for success.

use std::time::{Duration, Instant};

use h2::Reason;
use tests::app::App;
use tests::client::{H2, H2Response};
use tests::edge::Edge;
use tests::instance::{Echo, Scripted};
use tests::port::free_address;
use tests::strict::Error;
use tests::wait;

fn with(instance: &Scripted) -> Edge {
    Edge::with([App::new("hello").instance(instance.address())])
}

#[test]
fn an_unknown_name_is_404_and_counted() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let before = edge.errors("PE01");
    let mut client = edge.connect();
    client.get("nobody.test", "/").assert_error(404, "PE01");
    assert_eq!(client.get("hello.test", "/").status, 200, "the connection goes on");
    wait::until("the failure is counted", || edge.errors("PE01") == before + 1.0);
}

#[test]
fn an_instance_that_refuses_is_a_bad_gateway() {
    let edge = Edge::with([App::new("hello").instance(free_address(1))]);
    edge.get("hello.test", "/").assert_error(502, "PC01");
}

#[test]
fn the_instance_that_lives_is_used_when_the_other_refuses() {
    let echo = Echo::http1();
    let dead = (tests::port::loopback(9), echo.address().port()).into();
    let app = App::new("hello").instance(dead).instance(echo.address());
    let edge = Edge::with([app]);
    for _ in 0..50 {
        // Nothing was sent to the dead one, so any method may go to the other.
        let mut client = edge.connect();
        client.send("POST /echo HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2\r\n\r\nhi");
        assert_eq!(client.response().text(), "hi");
    }
}

#[test]
fn an_instance_that_never_answers_is_a_gateway_timeout() {
    let instance = Scripted::start(|connection| {
        connection.request()?;
        connection.hang()
    });
    let app = App::new("hello").instance(instance.address());
    let edge = Edge::builder().app(app).timeout("response_head", "500ms").start();
    let start = Instant::now();
    edge.get("hello.test", "/").assert_error(504, "PU06");
    let took = start.elapsed();
    assert!((Duration::from_millis(480)..Duration::from_secs(5)).contains(&took), "{took:?}");
    wait::until("the instance's connection is closed", || instance.closed_by_edge() >= 1);
}

#[test]
fn with_the_defaults_a_hanging_instance_is_given_up_within_15_seconds() {
    let instance = Scripted::start(|connection| {
        connection.request()?;
        connection.hang()
    });
    let edge = with(&instance);
    let start = Instant::now();
    edge.get("hello.test", "/").assert_error(504, "PU06");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

/// Every way an answer can break the protocol in its head.
#[test]
fn an_answer_that_is_not_http_is_a_bad_gateway() {
    let sound = Scripted::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(with(&sound).get("hello.test", "/").text(), "ok");
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "garbage\r\n\r\n",
        "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let instance = Scripted::answering(answer);
        let edge = with(&instance);
        let response = edge.get("hello.test", "/");
        let got = (response.status, response.error_code());
        assert_eq!(got, (502, Some("PU07")), "{answer:?}");
    }
}

#[test]
fn an_answer_that_stops_in_its_head_is_a_bad_gateway() {
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n"] {
        let instance = Scripted::start(move |connection| {
            connection.request()?;
            connection.send(answer)
        });
        let edge = with(&instance);
        let mut client = edge.connect();
        client.send("POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2\r\n\r\nhi");
        let response = client.response();
        assert_eq!(response.status, 502, "{answer:?}");
        assert_eq!(instance.requests().len(), 1, "a POST that was sent is not sent again");
    }
}

const CUT: [&str; 4] = [
    "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nha",
];

#[test]
fn a_body_that_was_cut_short_never_looks_complete_over_http1() {
    for answer in CUT {
        for reset in [false, true] {
            let instance = Scripted::start(move |connection| {
                connection.request()?;
                if reset {
                    connection.reset()?;
                }
                connection.send(answer)
            });
            let edge = with(&instance);
            for mut client in [edge.connect(), edge.connect_tls("hello.test")] {
                client.send("POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 0\r\n\r\n");
                match client.try_response("POST") {
                    Err(Error::Closed | Error::Truncated | Error::Io(_)) => {}
                    Ok(response) if response.status == 502 => {} // noticed before the head left
                    other => panic!("{answer:?} (reset: {reset}) became {other:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_was_cut_short_never_looks_complete_over_http2() {
    for answer in CUT {
        let instance = Scripted::start(move |connection| {
            connection.request()?;
            connection.send(answer)
        });
        let edge = with(&instance);
        let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
        let request = http::Request::post("https://hello.test/").body(()).unwrap();
        match client.send(request, "x").await {
            // The reset may come before the client has sent its own byte: then that fails.
            Err(error) if error.to_string().contains("inactive stream") => {}
            Err(error) => assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}"),
            Ok(H2Response { status, .. }) if status == 502 => {}
            Ok(response) => panic!("{answer:?} became {response:?}"),
        }
    }
}

#[test]
fn a_pooled_connection_that_went_stale_costs_nothing() {
    // Closes its connection after one answer, without having said so.
    let instance = Scripted::start(|connection| {
        connection.request()?;
        connection.ok("once")
    });
    let edge = with(&instance);
    let mut client = edge.connect();
    for _ in 0..20 {
        assert_eq!(client.get("hello.test", "/").text(), "once");
    }
}

#[test]
fn a_request_on_a_pooled_connection_that_breaks_is_sent_again_only_if_that_is_safe() {
    // Answers one request per connection, reads a second one, and closes.
    let instance = Scripted::start(|connection| {
        connection.request()?;
        connection.ok("first")?;
        connection.request()?;
        Ok(())
    });
    let edge =
        Edge::builder().app(App::new("hello").instance(instance.address())).workers(1).start();
    let mut client = edge.connect();
    for _ in 0..10 {
        assert_eq!(client.get("hello.test", "/").text(), "first", "a GET may be sent again");
    }
    let seen = instance.requests().len();
    client.send("POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2\r\n\r\nhi");
    let response = client.response();
    let posts = instance.requests().iter().filter(|request| request.starts_with("POST")).count();
    assert_eq!(posts, 1, "a POST that was sent is not sent again ({seen} requests before)");
    assert!(response.status == 502 || response.text() == "first", "{response:?}");
}

#[test]
fn bytes_after_an_answer_are_never_anybodys_answer() {
    let instance = Scripted::answering(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
    );
    let edge =
        Edge::builder().app(App::new("hello").instance(instance.address())).workers(1).start();
    let mut client = edge.connect();
    for _ in 0..20 {
        assert_eq!(client.get("hello.test", "/").text(), "ok");
    }
}

#[test]
fn an_error_never_holds_the_clients_bytes() {
    const CANARY: &str = "CaNaRy7";
    let instance = Scripted::start(|connection| {
        connection.request()?;
        Ok(())
    });
    let edge = Edge::builder()
        .app(App::new("hello").instance(instance.address()))
        .app(App::new("dead").instance(free_address(1)))
        .start();
    let canary = CANARY;
    for request in [
        format!("GET /{canary} HTTP/1.1\r\nhost: {canary}.test\r\nx-{canary}: {canary}\r\n\r\n"),
        format!("GET /{canary} HTTP/1.1\r\nhost: dead.test\r\nx-{canary}: {canary}\r\n\r\n"),
        format!(
            "POST /{canary} HTTP/1.1\r\nhost: hello.test\r\ncookie: {canary}\r\ncontent-length: 0\r\n\r\n"
        ),
        format!("TRACE /{canary} HTTP/1.1\r\nhost: hello.test\r\nx: {canary}\r\n\r\n"),
        format!("GET /{canary} HTTP/1.1\r\nhost: {canary} x\r\n\r\n"),
        format!("{canary}@ / HTTP/1.1\r\nhost: hello.test\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: hello.test\r\nx {canary}: 1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: hello.test\r\nexpect: {canary}\r\n\r\n"),
        format!("GET /{} HTTP/1.1\r\nhost: hello.test\r\n\r\n", canary.repeat(3000)),
        format!("GET / HTTP/1.1\r\nhost: hello.test\r\nx: {}\r\n\r\n", canary.repeat(3000)),
    ] {
        let mut client = edge.connect();
        client.try_send(&request).unwrap_or_default();
        let response = client.response();
        assert!(response.status >= 400 && response.error_code().is_some(), "{response:?}");
        let said = format!("{response:?}{}", String::from_utf8_lossy(&response.body));
        assert!(!said.to_lowercase().contains(&canary.to_lowercase()), "{said}");
    }
    assert!(!edge.log().to_lowercase().contains(&canary.to_lowercase()), "the log holds them");
}
