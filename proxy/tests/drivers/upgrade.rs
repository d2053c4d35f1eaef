//! Tunnels after an upgrade: whose bytes are whose, and when.

use std::time::Duration;

use crate::client::Client;
use crate::harness::Node;

const FIELDS: &str = "host: app.test\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\
                      sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn asks(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{FIELDS}\r\n")
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_keeps_half_closes() {
    let node = Node::start().await;
    for tls in [false, true] {
        let mut client = Client::new(node.stream(tls).await);
        // After ordinary requests on the same connection.
        client.send(b"GET /echo HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
        assert_eq!(client.response().await.status, 200);
        client.send(asks("/ws").as_bytes()).await;
        let response = client.head().await;
        assert_eq!((response.status, response.header("upgrade")), (101, Some("websocket")));
        assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(client.take(5).await, b"hello");
        let large: Vec<u8> = crate::instance::pattern(300_000);
        for part in large.chunks(30_000) {
            client.send(part).await;
            assert!(client.take(part.len()).await == part);
        }
        client.shutdown().await;
        assert_eq!(client.take(3).await, b"bye");
        client.ended().await;
    }
    assert_eq!(node.instance.count("upgrade upgrade websocket"), 2, "{:?}", node.instance.notes());
    assert_eq!(node.instance.count("half-closed"), 2);
    node.settles().await;
}

/// Also bytes that look like a broken request, and a line that ends in LF.
#[tokio::test]
async fn bytes_sent_before_the_101_arrive_after_it() {
    let node = Node::start().await;
    let frames: [&[u8]; 4] =
        [b"\x81\x85\0\0\0\0early", b"line\nline\r\n\r\n", b"GET / HTTP/1.1\r\n", &[b'\n'; 5000]];
    for frame in frames {
        // In the same segment as the request.
        let mut client = node.connect().await;
        client.send(&[asks("/ws-gate").as_bytes(), frame].concat()).await;
        node.instance.noted_times("GET /ws-gate", 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.instance.open_gate();
        assert_eq!(client.head().await.status, 101, "{frame:?}");
        assert_eq!(client.take(5).await, b"hello");
        assert!(client.take(frame.len()).await == frame, "{frame:?}");
        client.send(b"more").await;
        assert_eq!(client.take(4).await, b"more");

        // While the instance thinks about it.
        let mut client = node.connect().await;
        let before = node.instance.count("GET /ws-gate");
        client.send(asks("/ws-gate").as_bytes()).await;
        node.instance.noted_times("GET /ws-gate", before + 1).await;
        client.send(frame).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.instance.open_gate();
        assert_eq!(client.head().await.status, 101, "{frame:?}");
        assert_eq!(client.take(5).await, b"hello");
        assert!(client.take(frame.len()).await == frame, "{frame:?}");
    }
    let early = node.instance.notes().into_iter().filter(|note| note.starts_with("early")).count();
    assert_eq!(early, 0, "nothing is passed on before the 101");
    node.settles().await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for _ in 0..3 {
        client.send(asks("/ws-no").as_bytes()).await;
        let response = client.response().await;
        assert_eq!((response.status, response.text()), (403, "no"));
        assert_eq!(response.header("x-why"), Some("no"));
        client.send(b"GET /echo HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
        assert_eq!(client.response().await.text(), "GET /echo ");
    }
    // What came behind it is no tunnel's: it is a request, and this is none.
    client.send(&[asks("/ws-no").as_bytes(), b"\x81\x05early\r\n"].concat()).await;
    assert_eq!(client.response().await.status, 403);
    assert_eq!(client.response().await.status, 400);
    client.ended().await;
    node.settles().await;
}

#[tokio::test]
async fn an_upgrade_with_a_body_is_an_ordinary_request() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client
        .send(format!("GET /fields HTTP/1.1\r\n{FIELDS}content-length: 2\r\n\r\nhi").as_bytes())
        .await;
    let response = client.response().await;
    assert_eq!(response.status, 200);
    assert!(!response.text().contains("upgrade"), "{}", response.text());
    for upgrade in ["h2c", "websocket, h2c"] {
        let mut client = node.connect().await;
        let request = format!(
            "GET /fields HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade, http2-settings\r\n\
             upgrade: {upgrade}\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        client.send(request.as_bytes()).await;
        let response = client.response().await;
        assert_eq!(response.status, 200);
        assert!(!response.text().contains("upgrade"), "{}", response.text());
        assert!(!response.text().contains("http2-settings"), "{}", response.text());
    }
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn a_tunnel_ends_when_either_side_breaks() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(asks("/ws").as_bytes()).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.take(5).await, b"hello");
    client.stream.set_zero_linger().unwrap();
    drop(client);
    node.instance.noted("reset").await;
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn a_tunnel_that_the_instance_breaks_does_not_end_as_if_complete() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(asks("/ws-break").as_bytes()).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.take(4).await, b"part");
    node.instance.open_gate();
    let (rest, ended) = client.rest().await;
    assert!(rest.is_empty() && ended.is_err(), "{ended:?}");
    node.failed("PU05", 1.0).await;
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn a_tunnel_without_a_byte_ends_after_its_idle_time() {
    let node = Node::with(|setup| setup.timeouts.websocket_idle = Duration::from_secs(2)).await;
    let mut idle = node.connect().await;
    idle.send(asks("/ws").as_bytes()).await;
    assert_eq!(idle.head().await.status, 101);
    let mut busy = node.connect().await;
    busy.send(asks("/ws").as_bytes()).await;
    assert_eq!(busy.head().await.status, 101);
    assert_eq!(busy.take(5).await, b"hello");
    for _ in 0..10 {
        busy.send(b"x").await;
        assert_eq!(busy.take(1).await, b"x");
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    assert_eq!(idle.take(5).await, b"hello");
    let (rest, _) = idle.rest().await;
    assert!(rest.is_empty());
    drop(busy);
    node.settles().await;
}

#[tokio::test]
async fn a_drain_that_runs_out_of_time_cuts_tunnels() {
    let mut node =
        Node::with(|setup| setup.timeouts.drain_websocket = Duration::from_secs(1)).await;
    let mut client = node.connect().await;
    client.send(asks("/ws").as_bytes()).await;
    assert_eq!(client.head().await.status, 101);
    assert_eq!(client.take(5).await, b"hello");
    node.drain();
    client.send(b"still").await;
    assert_eq!(client.take(5).await, b"still");
    // In order or not: it ends.
    drop(client.rest().await);
    node.ended().await;
}
