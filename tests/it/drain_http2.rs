//! HTTP/2 in a drain: GOAWAY in two steps, and what is on its way between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use http::Request;
use tests::app::App;
use tests::client::{H2, H2Response, Raw};
use tests::edge::Edge;
use tests::instance::Echo;

fn tell(edge: &Edge, word: &str) {
    let outcome = edge.command(&[word]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}

#[tokio::test]
async fn an_idle_http2_connection_goes_and_a_stream_that_began_finishes() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut idle = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let mut busy = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let request = Request::get("https://hello.test/gate").body(()).unwrap();
    let (response, _) = busy.start(request, true).await.unwrap();
    echo.holds(1);
    tell(&edge, "drain");
    idle.ended().await.unwrap();
    tell(&edge, "undrain");
    // Whoever was told goes all the same.
    assert!(!busy.has_ended());
    echo.open(1);
    assert_eq!(&H2Response::read(response).await.unwrap().body[..], b"through the gate");
    busy.ended().await.unwrap();
    let mut next = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    assert_eq!(next.get("hello.test", "/").await.status, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!next.has_ended(), "a connection of after the drain stays");
}

/// What an HTTP/2 server says, frame by frame: type, flags, stream, payload.
struct Frames {
    raw: Raw,
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

impl Frames {
    fn greet(edge: &Edge) -> Self {
        let mut raw = edge.tls("hello.test").alpn(&["h2"]).connect(edge.https()).unwrap();
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut frames = Self { raw };
        frames.send(SETTINGS, 0, 0, &[]);
        frames.send(SETTINGS, 1, 0, &[]);
        frames
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.raw.send(frame);
    }

    /// `GET path` of hello.test, as HPACK literals.
    fn get(&mut self, stream: u32, path: &str) {
        let mut head = vec![0x82, 0x87, 0x04, u8::try_from(path.len()).unwrap()];
        head.extend(path.as_bytes());
        head.extend([0x01, 10]);
        head.extend(b"hello.test");
        self.send(HEADERS, 0x5, stream, &head);
    }

    /// The next frame of one of these types.
    fn next(&mut self, kinds: &[u8]) -> (u8, u8, u32, Vec<u8>) {
        loop {
            let reader = self.raw.reader();
            let head = reader.exactly(9).expect("a frame");
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
            let payload = reader.exactly(length as usize).expect("a payload");
            if kinds.contains(&head[3]) {
                return (head[3], head[4], stream, payload);
            }
        }
    }

    fn goaway(&mut self) -> (u32, u32) {
        let (_, _, _, payload) = self.next(&[GOAWAY]);
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        (number(0), number(4))
    }
}

#[test]
fn goaway_comes_in_two_steps_and_a_stream_between_them_is_served() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut client = Frames::greet(&edge);
    client.get(1, "/gate");
    echo.holds(1);
    tell(&edge, "drain");
    assert_eq!(client.goaway(), (0x7fff_ffff, 0), "first a word that loses nobody");
    let (_, _, _, ping) = client.next(&[PING]);
    // The client has not heard of it, and asks once more.
    client.get(3, "/gate");
    echo.holds(2);
    client.send(PING, 1, 0, &ping);
    assert_eq!(client.goaway(), (3, 0), "then, after a round trip, the last stream");
    echo.open(2);
    let mut answered = [client.next(&[HEADERS, RST_STREAM]), client.next(&[HEADERS, RST_STREAM])]
        .map(|(kind, _, stream, _)| (kind, stream));
    answered.sort_unstable();
    assert_eq!(answered, [(HEADERS, 1), (HEADERS, 3)]);
}

#[test]
fn a_stream_after_the_last_word_is_not_processed() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut client = Frames::greet(&edge);
    client.get(1, "/gate");
    echo.holds(1);
    tell(&edge, "drain");
    client.goaway();
    let (_, _, _, ping) = client.next(&[PING]);
    client.send(PING, 1, 0, &ping);
    assert_eq!(client.goaway(), (1, 0));
    client.get(3, "/");
    echo.open(1);
    assert_eq!(client.next(&[HEADERS]).2, 1);
    edge.idle();
    assert_eq!(echo.requests(), 1, "the second may be sent again elsewhere");
}

#[tokio::test]
async fn streams_that_race_a_drain_are_served_or_refused_unsent() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let (at, tls) = (edge.https(), edge.tls("hello.test"));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (tls, stop) = (tls.clone(), stop.clone());
        clients.spawn(async move {
            let (mut answered, mut unsent) = (0, 0);
            let mut client = H2::connect(at, &tls).await;
            while !stop.load(SeqCst) {
                let request = Request::get("https://hello.test/bytes/10").body(()).unwrap();
                match client.send(request, "").await {
                    Ok(response) => {
                        assert_eq!(response.status, 200);
                        answered += 1;
                    }
                    // Nothing of it has left: the client knows that it should go.
                    Err(error) if error.is_go_away() || !error.is_remote() && error.is_io() => {
                        unsent += 1;
                        client = H2::connect(at, &tls).await;
                    }
                    Err(error) => panic!("after {answered}: {error}"),
                }
            }
            (answered, unsent)
        });
    }
    for word in ["drain", "undrain"].repeat(4) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        tell(&edge, word);
    }
    stop.store(true, SeqCst);
    let counts = clients.join_all().await;
    let answered: usize = counts.iter().map(|(answered, _)| answered).sum();
    let unsent: usize = counts.iter().map(|(_, unsent)| unsent).sum();
    eprintln!("{answered} answered, {unsent} not sent");
    assert!(answered > 500 && unsent > 0, "{counts:?}");
    // What was processed was answered.
    assert_eq!(echo.requests(), answered);
}
