//! Clients that leave, and clients that only look as if they did.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::harness::Node;

/// From a client's departure to the end of what it asked for.
const AT_ONCE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_client_that_closes_cancels_its_request_at_once() {
    let node = Node::start().await;
    for tls in [false, true] {
        for path in ["hang", "stream"] {
            let path = format!("/{path}/{}", u8::from(tls));
            let mut client = Client::new(node.stream(tls).await);
            client.send(format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes()).await;
            node.instance.noted(&format!("GET {path}")).await;
            if path.starts_with("/stream") {
                assert_eq!(client.head().await.status, 200);
            }
            let left = Instant::now();
            drop(client);
            node.instance.noted(&format!("closed {path}")).await;
            assert!(left.elapsed() < 2 * AT_ONCE, "{path}: {:?}", left.elapsed());
        }
    }
    node.control().await;
    node.settles().await;
}

/// Bytes that nobody can use yet lie before its end; it is noticed all the same, if not at once.
#[tokio::test]
async fn a_client_that_leaves_behind_unread_bytes_cancels_its_request() {
    let node = Node::start().await;
    for tls in [false, true] {
        let path = format!("/hang/{}", u8::from(tls));
        let mut client = Client::new(node.stream(tls).await);
        let mut requests = format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n");
        requests += &"GET /echo HTTP/1.1\r\nhost: app.test\r\n\r\n".repeat(2000);
        client.send(requests.as_bytes()).await;
        node.instance.noted(&format!("GET {path}")).await;
        let left = Instant::now();
        drop(client);
        node.instance.noted(&format!("closed {path}")).await;
        assert!(left.elapsed() < Duration::from_secs(3), "{:?}", left.elapsed());
    }
    // In an upload that the instance does not take only a reset says that the client is gone.
    let mut client = node.connect().await;
    let head = "POST /gate HTTP/1.1\r\nhost: app.test\r\ncontent-length: 50000000\r\n\r\n";
    client.send(head.as_bytes()).await;
    let part = vec![b'x'; 100_000];
    let half_a_second = Duration::from_millis(500);
    while tokio::time::timeout(half_a_second, client.try_send(&part)).await.is_ok() {}
    let left = Instant::now();
    client.stream.set_zero_linger().unwrap();
    drop(client);
    node.settles().await;
    assert!(left.elapsed() < Duration::from_secs(4), "{:?}", left.elapsed());
    node.instance.open_gate();
    node.control().await;
}

#[tokio::test]
async fn a_client_that_leaves_in_its_upload_cancels_it() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(b"POST /echo HTTP/1.1\r\nhost: app.test\r\ncontent-length: 100\r\n\r\nhalf").await;
    node.instance.noted("POST /echo").await;
    drop(client);
    node.instance.noted("incomplete /echo").await;
    node.control().await;
    node.settles().await;
}

/// `printf | nc -N`: the end of the client's side comes with its request.
#[tokio::test]
async fn a_client_that_ends_its_side_with_the_request_is_answered() {
    let node = Node::start().await;
    for tls in [false, true] {
        for request in [
            "GET /echo HTTP/1.1\r\nhost: app.test\r\n\r\n",
            "GET /size/3000000 HTTP/1.1\r\nhost: app.test\r\n\r\n",
            "GET /slow/10 HTTP/1.1\r\nhost: app.test\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: nobody.test\r\n\r\n",
        ] {
            let mut client = Client::new(node.stream(tls).await);
            client.send(request.as_bytes()).await;
            client.shutdown().await;
            let expected = match (request.contains("nobody"), tls) {
                (false, _) => 200,
                (true, false) => 404,
                (true, true) => 421,
            };
            assert_eq!(client.response().await.status, expected, "{request}");
            client.ended().await;
        }
        // All that was asked for, one after the other.
        let mut client = Client::new(node.stream(tls).await);
        let requests = b"POST /echo HTTP/1.1\r\nhost: app.test\r\ncontent-length: 2\r\n\r\nhi";
        client.send(&requests.repeat(20)).await;
        client.shutdown().await;
        for _ in 0..20 {
            assert_eq!(client.response().await.text(), "POST /echo hi");
        }
        client.ended().await;
        // A bad request is told so.
        let mut client = Client::new(node.stream(tls).await);
        client.send(b"NONSENSE\r\n\r\n").await;
        client.shutdown().await;
        assert_eq!(client.response().await.status, 400);
        client.ended().await;
    }
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn a_client_that_ends_its_side_and_reads_slowly_gets_everything() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let size = 6_000_000;
    client.send(format!("GET /size/{size} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes()).await;
    client.shutdown().await;
    assert_eq!(client.head().await.status, 200);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.take(size / 20).await;
    }
    client.ended().await;
    node.settles().await;
}

#[tokio::test]
async fn a_client_that_ends_in_the_middle_of_a_head_leaves_nothing() {
    let node = Node::start().await;
    for part in ["G", "GET /echo HTTP/1.1\r\n", "\r\n", "GET /echo HTTP/1.1\r\nhost: app.test\r\n"]
    {
        let mut client = node.connect().await;
        client.send(part.as_bytes()).await;
        client.shutdown().await;
        let (_, _) = client.rest().await;
    }
    node.control().await;
    node.settles().await;
}
