//! Connections that are parked between requests, and what they do when something happens to them.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::client::Client;
use crate::harness::Node;

const GET: &[u8] = b"GET /echo HTTP/1.1\r\nhost: app.test\r\n\r\n";

#[tokio::test]
async fn three_hundred_requests_share_a_connection() {
    let node = Node::start().await;
    let before = node.metric("ferrule_downstream_accepted_total").await;
    let mut client = node.connect().await;
    for index in 0..300 {
        let request = format!("GET /echo/{index} HTTP/1.1\r\nhost: app.test\r\n\r\n");
        client.send(request.as_bytes()).await;
        assert_eq!(client.response().await.text(), format!("GET /echo/{index} "));
    }
    assert_eq!(node.metric("ferrule_downstream_accepted_total").await, before + 1.0);
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn three_hundred_requests_share_a_tls_connection() {
    let node = Node::start().await;
    let mut client = Client::new(node.connect_tls(b"http/1.1").await);
    for index in 0..300 {
        let request = format!(
            "POST /echo/{index} HTTP/1.1\r\nhost: app.test\r\ncontent-length: 4\r\n\r\nbody"
        );
        client.send(request.as_bytes()).await;
        assert_eq!(client.response().await.text(), format!("POST /echo/{index} body"));
    }
    drop(client);
    node.settles().await;
}

/// The bytes behind the client's Finished are read by the handshake; nothing more makes the socket
/// readable.
#[tokio::test]
async fn a_request_in_the_segment_of_the_finished_is_served() {
    use std::io::{Read as _, Write as _};
    let node = Node::start().await;
    for round in 0..10 {
        let secure = node.secure;
        let config = node.client_config(b"http/1.1");
        let answer = tokio::task::spawn_blocking(move || {
            let name = rustls_pki_types::ServerName::try_from(crate::harness::HOST).unwrap();
            let mut tls = rustls::ClientConnection::new(config, name).unwrap();
            let mut socket = std::net::TcpStream::connect(secure).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            while tls.is_handshaking() && !tls.wants_read() {
                tls.write_tls(&mut socket).unwrap();
            }
            while tls.is_handshaking() {
                tls.read_tls(&mut socket).unwrap();
                tls.process_new_packets().unwrap();
                if tls.wants_write() && tls.is_handshaking() {
                    tls.write_tls(&mut socket).unwrap();
                }
            }
            // Finished and request leave in one segment.
            tls.writer().write_all(GET).unwrap();
            let mut flight = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut flight).unwrap();
            }
            socket.write_all(&flight).unwrap();
            let mut answer = vec![0; 1000];
            let read = rustls::Stream::new(&mut tls, &mut socket).read(&mut answer).unwrap();
            answer.truncate(read);
            answer
        });
        let answer = answer.await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "round {round}");
    }
    node.settles().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let node = Node::start().await;
    for count in [2, 3, 15, 16, 17, 50, 200] {
        let mut client = node.connect().await;
        let requests: String = (0..count)
            .map(|index| {
                format!(
                    "POST /echo/{index} HTTP/1.1\r\nhost: app.test\r\ncontent-length: 3\r\n\r\nabc"
                )
            })
            .collect();
        client.send(requests.as_bytes()).await;
        for index in 0..count {
            assert_eq!(client.response().await.text(), format!("POST /echo/{index} abc"));
        }
        client.send(GET).await;
        assert_eq!(client.response().await.text(), "GET /echo ", "after {count}");
    }
    node.settles().await;
}

/// Answers of the node itself are ready at once, so hyper goes through many of them in one poll and
/// then yields in the middle.
#[tokio::test]
async fn pipelined_requests_that_need_no_instance_are_answered_in_order() {
    let node = Node::start().await;
    for count in [2, 16, 17, 33, 200] {
        let mut client = node.connect().await;
        let unknown = b"GET / HTTP/1.1\r\nhost: nobody.test\r\n\r\n".repeat(count);
        client.send(&[unknown, GET.to_vec()].concat()).await;
        for _ in 0..count {
            assert_eq!(client.response().await.code(), "PE01");
        }
        assert_eq!(client.response().await.text(), "GET /echo ", "after {count}");
    }
    node.settles().await;
}

#[tokio::test]
async fn a_request_and_half_of_the_next_are_served_in_turn() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let next = b"GET /echo/next HTTP/1.1\r\nhost: app.test\r\n\r\n";
    for cut in 1..next.len() {
        client.send(&[GET, &next[..cut]].concat()).await;
        assert_eq!(client.response().await.text(), "GET /echo ", "cut at {cut}");
        client.send(&next[cut..]).await;
        assert_eq!(client.response().await.text(), "GET /echo/next ", "cut at {cut}");
    }
}

#[tokio::test]
async fn a_parked_connection_ends_after_its_idle_time_and_not_before() {
    let node = Node::with(|setup| setup.timeouts.h1_idle = Duration::from_secs(1)).await;
    for tls in [false, true] {
        let stream = node.stream(tls).await;
        let mut client = Client::new(stream);
        client.send(GET).await;
        assert_eq!(client.response().await.status, 200);
        let parked = Instant::now();
        client.ended().await;
        let waited = parked.elapsed();
        assert!(
            waited > Duration::from_millis(900) && waited < Duration::from_secs(3),
            "{waited:?}"
        );
    }
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_ends_after_the_time_of_a_head() {
    let node = Node::with(|setup| setup.timeouts.request_head = Duration::from_secs(1)).await;
    let mut client = Client::new(node.stream(false).await);
    client.ended().await;
    let mut client = Client::new(node.stream(true).await);
    client.ended().await;
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn a_drain_ends_parked_connections_at_once_and_lets_running_requests_finish() {
    let mut node = Node::with(|setup| setup.timeouts.drain = Duration::from_secs(10)).await;
    let mut parked = Client::new(node.stream(true).await);
    parked.send(GET).await;
    assert_eq!(parked.response().await.status, 200);
    let mut running = node.connect().await;
    running.send(b"GET /gate HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    node.instance.noted("GET /gate").await;
    let drained = Instant::now();
    node.drain();
    parked.ended().await;
    assert!(drained.elapsed() < Duration::from_secs(2));
    node.instance.open_gate();
    let response = running.response().await;
    assert_eq!((response.text(), response.header("connection")), ("gate", Some("close")));
    running.ended().await;
    node.ended().await;
    assert!(drained.elapsed() < Duration::from_secs(8), "{:?}", drained.elapsed());
}

#[tokio::test]
async fn a_client_that_closes_while_parked_leaves_nothing() {
    let node = Node::start().await;
    for tls in [false, true] {
        let mut client = Client::new(node.stream(tls).await);
        client.send(GET).await;
        assert_eq!(client.response().await.status, 200);
        client.shutdown().await;
        client.ended().await;
    }
    node.settles().await;
}

#[tokio::test]
async fn every_connection_has_one_service() {
    let node = Node::start().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = node.connect().await;
        client.send(GET).await;
        assert_eq!(client.response().await.status, 200);
        clients.push(client);
    }
    let mut busy = node.connect().await;
    busy.send(b"GET /hang HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    node.instance.noted("GET /hang").await;
    node.metric_is("ferrule_connection_services", 6.0).await;
    node.metric_is("ferrule_downstream_connections", 6.0).await;
    drop((busy, clients));
    node.settles().await;
}

/// What takes no request does not start the idle time anew.
#[tokio::test]
async fn empty_tls_records_do_not_keep_a_connection() {
    let node = Node::with(|setup| setup.timeouts.h1_idle = Duration::from_secs(2)).await;
    let mut tls = node.connect_tls(b"http/1.1").await;
    tls.write_all(GET).await.unwrap();
    let mut client = Client::new(tls);
    assert_eq!(client.response().await.status, 200);
    let parked = Instant::now();
    let ended = async {
        loop {
            let (_, connection) = client.stream.get_mut();
            connection.refresh_traffic_keys().unwrap();
            if client.stream.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            if parked.elapsed() > Duration::from_secs(8) {
                panic!("kept alive by nothing");
            }
            let closed = tokio::time::timeout(Duration::from_millis(1), client.rest()).await;
            if closed.is_ok() {
                break;
            }
        }
    };
    ended.await;
    node.settles().await;
}
