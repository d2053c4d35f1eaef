//! Every place where an HTTP/1 client can stop, and that it ends in time; each with a client that
//! is slow but moves, and is served.

use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::harness::{Either, Node};

const SECOND: Duration = Duration::from_secs(1);

/// A connection whose receive buffer is as small as it can be.
async fn narrow(node: &Node, tls: bool) -> Client<Either> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    if tls {
        let stream: TcpStream = socket.connect(node.secure).await.unwrap();
        Client::new(Either::Tls(Box::new(node.handshake(stream, b"http/1.1").await)))
    } else {
        Client::new(Either::Tcp(socket.connect(node.clear).await.unwrap()))
    }
}

#[tokio::test]
async fn a_head_that_drips_is_answered_with_408_when_its_time_is_over() {
    let node = Node::with(|setup| setup.timeouts.request_head = 2 * SECOND).await;
    for first in [&b"GET /echo"[..], b"GET /echo HTTP/1.1\r\nhost: app.test\r\nx: "] {
        let mut client = node.connect().await;
        client.send(first).await;
        let began = Instant::now();
        // A byte now and then does not help.
        let answer = loop {
            assert!(began.elapsed() < 6 * SECOND, "dripped for too long");
            if client.try_send(b"a").await.is_err() {
                break None;
            }
            match tokio::time::timeout(Duration::from_millis(300), client.head()).await {
                Ok(answer) => break Some(answer),
                Err(_) => continue,
            }
        };
        let waited = began.elapsed();
        assert_eq!(
            answer.map(|answer| (answer.status, answer.code().to_owned())),
            Some((408, "PP06".to_owned()))
        );
        assert!(waited >= 2 * SECOND - SECOND / 10, "{waited:?}");
        drop(client);
    }
    // On a connection that has served before it is the same.
    let mut client = node.connect().await;
    client.send(b"GET /echo HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
    client.send(b"GET").await;
    assert_eq!(client.response().await.status, 408);
    client.ended().await;
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn empty_lines_that_nothing_follows_end_without_a_word() {
    let node = Node::with(|setup| setup.timeouts.request_head = SECOND).await;
    for before in ["", "POST /echo HTTP/1.1\r\nhost: app.test\r\ncontent-length: 2\r\n\r\nhi"] {
        for line in ["\r\n", "\r", "\r\n\r\n"] {
            let mut client = node.connect().await;
            client.send(format!("{before}{line}").as_bytes()).await;
            if !before.is_empty() {
                assert_eq!(client.response().await.text(), "POST /echo hi");
            }
            let began = Instant::now();
            client.ended().await;
            assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
        }
    }
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn a_body_that_drips_is_cut_and_one_that_moves_is_not() {
    let node = Node::with(|setup| setup.timeouts.request_body = 2 * SECOND).await;
    let head = b"POST /echo HTTP/1.1\r\nhost: app.test\r\ncontent-length: 20000\r\n\r\n";
    let slow = async {
        let mut client = node.connect().await;
        client.send(head).await;
        let began = Instant::now();
        while client.try_send(b"xxxxxxxxxx").await.is_ok() {
            assert!(began.elapsed() < 8 * SECOND, "dripped for too long");
            sleep(SECOND / 5).await;
        }
        assert!(began.elapsed() > 2 * SECOND - SECOND / 10, "{:?}", began.elapsed());
    };
    let moving = async {
        let mut client = node.connect().await;
        client.send(head).await;
        for _ in 0..10 {
            sleep(SECOND / 2).await;
            client.send(&[b'x'; 2000]).await;
        }
        assert_eq!(client.response().await.body.len(), 20_000 + "POST /echo ".len());
    };
    tokio::join!(slow, moving);
    node.instance.noted("incomplete /echo").await;
    node.control().await;
    node.settles().await;
}

/// While the instance does not take the body, the client is not at fault.
#[tokio::test]
async fn a_body_that_the_instance_does_not_take_is_not_the_clients_fault() {
    let node = Node::with(|setup| setup.timeouts.request_body = SECOND).await;
    let mut client = node.connect().await;
    client.send(b"POST /gate HTTP/1.1\r\nhost: app.test\r\ncontent-length: 20000000\r\n\r\n").await;
    let part = vec![b'x'; 100_000];
    // More than the sockets on the way can hold.
    let mut sent = 0;
    while tokio::time::timeout(SECOND / 2, client.try_send(&part)).await.is_ok() {
        sent += part.len();
        assert!(sent < 20_000_000, "everything was taken");
    }
    sleep(3 * SECOND).await;
    node.instance.open_gate();
    assert_eq!(client.response().await.text(), "gate");
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_and_one_that_reads_slowly_is_not() {
    let node = Node::with(|setup| setup.timeouts.response_write = 2 * SECOND).await;
    let node = &node;
    let request = b"GET /size/4000000 HTTP/1.1\r\nhost: app.test\r\n\r\n";
    let stalled = async |tls: bool| {
        let mut client = narrow(node, tls).await;
        client.send(request).await;
        node.metric_is("ferrule_requests_in_flight", 4.0).await;
        sleep(SECOND / 10).await;
        // It never reads, and yet the node lets go of it.
        node.instance.noted_times("GET /size/4000000", 4).await;
        client
    };
    let slow = async |tls: bool| {
        let mut client = narrow(node, tls).await;
        client.send(request).await;
        assert_eq!(client.head().await.status, 200);
        let began = Instant::now();
        while began.elapsed() < 6 * SECOND {
            client.take(20_000).await;
            sleep(SECOND / 5).await;
        }
        drop(client);
    };
    let (a, b, (), ()) = tokio::join!(stalled(false), stalled(true), slow(false), slow(true));
    node.metric_is("ferrule_requests_in_flight", 0.0).await;
    node.metric_is("ferrule_downstream_connections", 0.0).await;
    drop((a, b));
    node.control().await;
    node.settles().await;
}

/// A small answer that only TLS has taken holds a connection no longer than a large one.
#[tokio::test]
async fn answers_that_fill_the_socket_exactly_do_not_hold_the_connection() {
    let node = Node::with(|setup| {
        setup.timeouts.response_write = SECOND;
        setup.timeouts.h1_idle = 60 * SECOND;
    })
    .await;
    for tls in [false, true] {
        let mut client = narrow(&node, tls).await;
        // Small answers until nobody takes them any more.
        let requests = b"GET /size/3000 HTTP/1.1\r\nhost: app.test\r\n\r\n".repeat(20);
        let began = Instant::now();
        loop {
            let sent = tokio::time::timeout(SECOND / 2, client.try_send(&requests)).await;
            if matches!(sent, Ok(Err(_))) || began.elapsed() > 6 * SECOND {
                break;
            }
        }
        node.metric_is("ferrule_downstream_connections", 0.0).await;
        drop(client);
    }
    node.control().await;
    node.settles().await;
}
