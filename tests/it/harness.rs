//! The harness without a node: what the other tests take for granted.

use tests::client::{H2, Raw, WebSocket};
use tests::instance::{Echo, Nghttpd, Nginx, Scripted, websocket_echo};
use tests::strict::{Error, Framing};

#[test]
fn nginx_answers_with_one_kibibyte() {
    let Some(nginx) = Nginx::start() else { return };
    let response = Raw::tcp(nginx.address()).get("any", "/");
    assert_eq!((response.status, response.body.len()), (200, 1024));
}

#[tokio::test]
async fn nghttpd_answers_with_a_trailer() {
    let Some(nghttpd) = Nghttpd::start() else { return };
    let mut client = H2::clear(nghttpd.address()).await;
    let response = client.get("any", "/").await;
    assert_eq!(&response.body[..], b"h2c\n");
    assert_eq!(response.trailers.unwrap().get("grpc-status").unwrap(), "0");
}

#[test]
fn the_echo_streams_bodies_and_trailers_over_http1() {
    let echo = Echo::http1();
    let mut client = Raw::tcp(echo.address());
    client.send(
        "POST /echo HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-sum\r\nx-nonce: 5\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 9\r\n\r\n",
    );
    let response = client.response();
    assert_eq!((response.text(), response.framing), ("hi", Framing::Chunked));
    assert_eq!(response.header("x-nonce"), Some("5"));
    assert_eq!(response.trailers, [("x-sum".to_owned(), "9".to_owned())]);
}

#[test]
fn the_echo_notices_a_client_that_leaves() {
    let echo = Echo::http1();
    let mut client = Raw::tcp(echo.address());
    client.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n");
    echo.holds(1);
    drop(client);
    echo.holds(0);
    assert_eq!(echo.cancelled().len(), 1);
}

#[tokio::test]
async fn the_echo_speaks_http2() {
    let echo = Echo::h2c();
    let response = H2::clear(echo.address()).await.get("any", "/bytes/70000").await;
    assert_eq!(response.body.len(), 70_000);
    tests::wait::until("the request is complete", || echo.in_flight() == 0);
    assert!(echo.cancelled().is_empty());
}

#[test]
fn a_script_sees_every_byte_and_can_cut_an_answer_short() {
    let instance = Scripted::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab")
    });
    let mut client = Raw::tcp(instance.address());
    client.send("POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi");
    assert!(matches!(client.try_response("POST"), Err(Error::Truncated)));
    assert_eq!(instance.requests(), ["POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi"]);
}

#[test]
fn the_websocket_echo_echoes() {
    let instance = websocket_echo();
    let mut socket = WebSocket::upgrade(Raw::tcp(instance.address()), "any", "/");
    socket.send(1, b"hello");
    assert_eq!(socket.receive(), (1, b"hello".to_vec()));
}
