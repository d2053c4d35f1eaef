//! Everything at once, with clients that leave at any moment: at the end nothing is held.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::h2_client::{self as h2c, Client as H2Client};
use crate::harness::Node;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn pause(&mut self) -> Duration {
        Duration::from_micros(self.below(3000) as u64)
    }
}

const PATHS: [&str; 8] = [
    "/echo",
    "/size/200000",
    "/chunked/50",
    "/slow/5",
    "/stream",
    "/hang",
    "/broken",
    "/until-close",
];

/// A few requests in pieces, read for a while, and then it is gone.
async fn fickle_http1(node: &Node, seed: u64) {
    let mut numbers = Numbers(seed);
    let mut client = Client::new(node.stream(numbers.below(2) == 0).await);
    for _ in 0..1 + numbers.below(3) {
        let path = PATHS[numbers.below(PATHS.len())];
        let body = "b".repeat(numbers.below(3) * numbers.below(30_000));
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: app.test\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let end = if numbers.below(4) == 0 { numbers.below(request.len()) } else { request.len() };
        for part in request.as_bytes()[..end].chunks(1 + numbers.below(20_000)) {
            if client.try_send(part).await.is_err() {
                return;
            }
            sleep(numbers.pause()).await;
        }
        if numbers.below(2) == 0 {
            // Whatever comes in that time.
            drop(timeout(5 * numbers.pause(), client.rest()).await);
        }
    }
    if numbers.below(3) == 0 {
        // It may have been closed already.
        drop(tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await);
        sleep(numbers.pause()).await;
    }
}

async fn fickle_http2(node: &Node, seed: u64) {
    let mut numbers = Numbers(seed);
    let client = H2Client::connect(node).await;
    let mut held = Vec::new();
    for _ in 0..1 + numbers.below(20) {
        let path = PATHS[numbers.below(PATHS.len())];
        // The client's library ends a connection that brings many small frames nobody reads, and
        // these clients do not read.
        let sent = client.try_send(H2Client::request("POST", path), false).await;
        let Ok((response, mut stream)) = sent else { return };
        // A stream that has ended takes nothing, which is as good.
        drop(stream.send_data(vec![b'b'; numbers.below(5000)].into(), numbers.below(2) == 0));
        match numbers.below(4) {
            0 => stream.send_reset(h2::Reason::CANCEL),
            1 => drop(timeout(5 * numbers.pause(), response).await),
            _ => held.push((response, stream)),
        }
        sleep(numbers.pause()).await;
    }
    if numbers.below(2) == 0 {
        drop(held);
        client.ended().await;
    }
}

#[tokio::test]
async fn clients_that_leave_at_any_moment_leave_nothing() {
    let node = Node::start().await;
    let node = &node;
    for round in 0..4 {
        let http1 = (0..60).map(|index| fickle_http1(node, 1000 * round + index));
        let http2 = (0..15).map(|index| fickle_http2(node, 1000 * round + 500 + index));
        tokio::join!(join_all(http1), join_all(http2));
        node.control().await;
        h2c::control(node).await;
        node.settles().await;
    }
    node.failed("PX01", 0.0).await;
}
