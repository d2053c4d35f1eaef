//! Many at once: nothing lost, nothing mixed up, nothing held when it is over.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tests::app::App;
use tests::client::{H2, Raw};
use tests::edge::Edge;
use tests::instance::Echo;
use tests::wait;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A generator of numbers that look random and are the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    /// Mostly small, now and then larger than any buffer on the way.
    fn size(&mut self) -> usize {
        let range = match self.roll(100) {
            0..60 => 512,
            60..95 => 8 * 1024,
            95..99 => 70_000,
            _ => 300_000,
        };
        usize::try_from(self.roll(range)).unwrap()
    }
}

/// A body that no other request has.
fn body(nonce: u64, size: usize) -> Bytes {
    nonce.to_le_bytes().into_iter().cycle().take(size).collect()
}

/// Half of them are answered while they are still being sent.
fn request(nonce: u64) -> http::request::Builder {
    let path = if nonce.is_multiple_of(2) { "/echo" } else { "/whole" };
    Request::post(format!("https://hello.test{path}")).header("x-nonce", nonce)
}

struct Http1 {
    send: http1::SendRequest<Full<Bytes>>,
    _driver: JoinSet<hyper::Result<()>>,
}

impl Http1 {
    async fn connect(edge: &Edge) -> Self {
        let socket = TcpStream::connect(edge.http()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (send, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Self { send, _driver: driver }
    }
}

/// `count` requests over one HTTP/1.1 connection after another, each kept until an answer says
/// that it ends; returns how many were answered right.
async fn over_http1(edge: &Edge, seed: u64, count: u64) -> u64 {
    let mut client = Http1::connect(edge).await;
    let mut dice = Dice(seed);
    let mut right = 0;
    for n in 0..count {
        let nonce = (seed << 32) | n;
        let sent = body(nonce, dice.size());
        let mut request = request(nonce).body(Full::new(sent.clone())).unwrap();
        *request.uri_mut() = request.uri().path().parse().unwrap();
        request.headers_mut().insert("host", "hello.test".parse().unwrap());
        client.send.ready().await.unwrap();
        let response = client.send.send_request(request).await.unwrap();
        let ends = response.headers().get("connection").is_some_and(|value| value == "close");
        let told = response.headers().get("x-nonce").cloned();
        let got = response.into_body().collect().await.unwrap().to_bytes();
        assert!(told.is_some_and(|told| told == nonce.to_string()), "a mixed-up answer");
        assert!(got == sent, "a mixed-up or truncated body");
        right += 1;
        if ends {
            client = Http1::connect(edge).await;
        }
    }
    right
}

/// `count` requests over one HTTP/2 connection, several at a time.
async fn over_http2(edge: &Edge, seed: u64, count: u64) -> u64 {
    const AT_ONCE: u64 = 8;
    let client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let mut dice = Dice(seed);
    let mut right = 0;
    while right < count {
        let mut started = Vec::new();
        for n in right..count.min(right + AT_ONCE) {
            let nonce = (seed << 32) | n;
            started.push((nonce, body(nonce, dice.size())));
        }
        let answers = started.iter().map(|(nonce, sent)| {
            let (request, sent) = (request(*nonce).body(()).unwrap(), sent.clone());
            let mut client = client.share();
            async move { client.send(request, sent).await.unwrap() }
        });
        for (response, (nonce, sent)) in join_all(answers).await.into_iter().zip(&started) {
            assert_eq!(response.header("x-nonce"), Some(nonce.to_string().as_str()));
            assert!(response.body == *sent, "a mixed-up or truncated body");
            right += 1;
        }
    }
    right
}

#[test]
fn a_hundred_thousand_requests_over_two_regions_lose_and_mix_up_nothing() {
    const CONNECTIONS: u64 = 50;
    const EACH: u64 = 2_000;
    let far = Echo::http1();
    let [a, b] = Edge::two_regions([App::new("hello").instance_on("b", far.address())]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let right: u64 = runtime.block_on(async {
        let connections = (0..CONNECTIONS).map(|n| {
            let edge = if n % 4 == 3 { &b } else { &a };
            async move {
                if n % 2 == 0 {
                    over_http1(edge, n + 1, EACH).await
                } else {
                    over_http2(edge, n + 1, EACH).await
                }
            }
        });
        join_all(connections).await.into_iter().sum()
    });
    drop(runtime);
    assert_eq!(right, CONNECTIONS * EACH);
    assert_eq!(far.requests() as u64, CONNECTIONS * EACH, "each was sent exactly once");
    for edge in [&a, &b] {
        wait::until("no request is held", || {
            let metrics = edge.metrics();
            metrics.sum("ferrule_permits_in_use") + metrics.sum("ferrule_requests_in_flight") == 0.0
        });
        assert_eq!(edge.metrics().sum_with("ferrule_errors_total", &[]), 0.0);
    }
}

#[test]
fn ten_thousand_cancelled_requests_leave_no_permit_behind() {
    const H1: u64 = 2_000;
    const H2_STREAMS: u64 = 8_000;
    let echo = Echo::http1();
    let app = App::new("hello").limits(50, 100).instance(echo.address());
    let edge = Edge::builder().app(app).limit("h2_resets_max", 1_000_000).start();
    let mut dice = Dice(1);
    let paths = ["/hang", "/drip", "/bytes/100000", "/gate", "/bytes/1", "/echo"];
    let path = |dice: &mut Dice| paths[usize::try_from(dice.roll(6)).unwrap()];
    for _ in 0..H1 {
        let mut client: Raw = edge.connect();
        let path = path(&mut dice);
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 9\r\n\r\nsome");
        let cut = request.len() - usize::try_from(dice.roll(8)).unwrap();
        client.send(&request[..cut]);
        if dice.roll(2) == 0 {
            client.reset_on_drop();
        }
        if dice.roll(4) == 0 {
            client.set_timeout(Duration::from_millis(1));
            client.reader().some().unwrap_or_default();
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cancelled = Rc::new(Cell::new(0));
    runtime.block_on(async {
        while cancelled.get() < H2_STREAMS {
            let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
            for _ in 0..100 {
                let request = Request::post(format!("https://hello.test{}", path(&mut dice)));
                let request = request.body(()).unwrap();
                let Ok((response, mut stream)) = client.start(request, false).await else { break };
                for _ in 0..dice.roll(3) {
                    tokio::task::yield_now().await;
                }
                stream.send_reset(Reason::CANCEL);
                drop(response);
                cancelled.set(cancelled.get() + 1);
            }
        }
    });
    drop(runtime);
    edge.idle();
    assert_eq!(edge.get("hello.test", "/bytes/5").body.len(), 5);
    wait::until("the instance holds nothing either", || echo.in_flight() == 0);
}
