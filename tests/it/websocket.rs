//! WebSockets: upgraded over HTTP/1.1, by extended CONNECT over HTTP/2, and refused.

use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use http::{Method, Request};
use tests::app::App;
use tests::client::{H2, WebSocket};
use tests::edge::Edge;
use tests::instance::{Scripted, websocket_echo};
use tests::wait;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;

#[test]
fn frames_pass_both_ways_until_a_close() {
    let instance = websocket_echo();
    let edge = Edge::with([App::new("chat").instance(instance.address())]);
    for raw in [edge.connect(), edge.connect_tls("chat.test")] {
        let mut socket = WebSocket::upgrade(raw, "chat.test", "/");
        for size in [0, 1, 125, 126, 60_000] {
            let payload = vec![b'w'; size];
            socket.send(TEXT, &payload);
            assert_eq!(socket.receive(), (TEXT, payload));
        }
        socket.send(CLOSE, &1000_u16.to_be_bytes());
        assert_eq!(socket.receive().0, CLOSE);
        assert!(socket.raw().closes_within(Duration::from_secs(5)));
    }
    edge.idle();
}

#[test]
fn a_client_that_leaves_ends_the_instances_connection() {
    let instance = websocket_echo();
    let edge = Edge::with([App::new("chat").instance(instance.address())]);
    let mut socket = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    socket.send(TEXT, b"x");
    assert_eq!(socket.receive().0, TEXT);
    drop(socket);
    wait::until("the instance is told", || instance.closed_by_edge() == 1);
    edge.idle();
}

#[test]
fn an_instance_that_declines_answers_as_it_likes() {
    let instance = Scripted::mirror();
    let edge = Edge::with([App::new("chat").instance(instance.address())]);
    let mut client = edge.connect();
    client.send(
        "GET /ws HTTP/1.1\r\nhost: chat.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: c2l4dGVlbiBieXRlcyAhIQ==\r\n\r\n",
    );
    assert_eq!(client.response().status, 200);
    assert_eq!(client.get("chat.test", "/").status, 200, "the connection goes on");
}

#[test]
fn an_upgrade_to_anything_else_is_not_passed_on() {
    let instance = Scripted::mirror();
    let edge = Edge::with([App::new("chat").instance(instance.address())]);
    let mut client = edge.connect();
    client.send(
        "GET / HTTP/1.1\r\nhost: chat.test\r\nconnection: upgrade, http2-settings\r\n\
         upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    );
    let response = client.response();
    assert_ne!(response.status, 101);
    if response.status == 200 {
        // An upgrade may be ignored (RFC 9110, section 7.8); then nothing of it is passed on.
        let seen = response.text().to_lowercase();
        assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
    }
}

#[test]
fn bytes_after_the_upgrade_wait_for_the_101() {
    // RUSTSEC-2026-0033: sent early, they would be a second request to an instance that declines.
    let instance = Scripted::start(|connection| {
        let request = connection.request()?;
        connection.ok(&request)?;
        loop {
            let request = connection.request()?;
            assert!(!request.contains("/smuggled"), "the instance got {request:?}");
            connection.ok(&request)?;
        }
    });
    let edge = Edge::with([App::new("chat").instance(instance.address())]);
    let mut client = edge.connect();
    client.send(
        "GET /ws HTTP/1.1\r\nhost: chat.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: c2l4dGVlbiBieXRlcyAhIQ==\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nhost: nobody.test\r\n\r\n",
    );
    assert!(client.response().text().starts_with("GET /ws"));
    // What came after is the next request on this connection, judged like any other.
    if let Ok(response) = client.try_response("GET") {
        response.assert_error(404, "PE01");
    }
    assert_eq!(edge.get("chat.test", "/sound").status, 200);
}

#[tokio::test]
async fn extended_connect_opens_a_websocket_over_http2() {
    //= https://www.rfc-editor.org/rfc/rfc8441#section-4
    //# A new pseudo-header field :protocol MAY be included on request HEADERS indicating the
    //# desired protocol to be spoken on the tunnel created by CONNECT
    let instance = websocket_echo();
    let edge = Edge::with([App::new("chat").instance(instance.address())]);
    let mut client = H2::connect(edge.https(), &edge.tls("chat.test")).await;
    // The server's SETTINGS are known after a first answer.
    assert_eq!(client.get("chat.test", "/").await.status, 400, "no upgrade, says the instance");
    assert!(client.extended_connect());
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("https://chat.test/ws")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .body(())
        .unwrap();
    let (response, mut up) = client.start(request, false).await.unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let mut down = response.into_body();
    for word in [&b"one"[..], b"two"] {
        let mut frame = vec![0x81, 0x80 | u8::try_from(word.len()).unwrap(), 0, 0, 0, 0];
        frame.extend(word);
        up.send_data(Bytes::from(frame), false).unwrap();
        let mut wanted = vec![0x81, u8::try_from(word.len()).unwrap()];
        wanted.extend(word);
        assert_eq!(down.data().await.unwrap().unwrap(), wanted);
    }
    up.send_data(Bytes::new(), true).unwrap();
    while let Some(Ok(_)) = down.data().await {}
    drop((up, down, client));
    edge.idle();
}
