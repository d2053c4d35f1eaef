//! A node that drains, as its peers see it: they know before its connections close, send elsewhere what
//! anybody else can take, and lose nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::app::App;
use tests::client::Raw;
use tests::edge::{Builder, Edge};
use tests::instance::{Echo, Scripted};
use tests::port::loopback;
use tests::wait;

/// How long a node that has nothing to ask may take to learn of it: "about a second", on a busy machine.
const ABOUT_A_SECOND: Duration = Duration::from_millis(1_500);

fn knows(a: &Edge, draining: bool) {
    wait::within(ABOUT_A_SECOND, "the peer knows", || {
        a.status()["peers"][0]["draining"] == draining
    });
}

fn tell(edge: &Edge, word: &str) {
    let outcome = edge.command(&[word]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}

#[test]
fn a_peer_without_traffic_knows_at_once() {
    let echo = Echo::http1();
    let [a, b] = Edge::two_regions([App::new("hello").instance_on("b", echo.address())]);
    assert_eq!(a.status()["peers"][0]["draining"], false);
    for _ in 0..2 {
        tell(&b, "drain");
        knows(&a, true);
        assert!(a.command(&["status"]).stdout.contains(" ms, draining"));
        tell(&b, "undrain");
        knows(&a, false);
    }
    assert_eq!(a.status()["peers"][0]["reachable"], true);
}

/// Requests one after the other, each fourth a POST, until told to stop; every one must succeed.
fn requests(at: SocketAddr, stop: &AtomicBool) -> usize {
    let mut client = None;
    let mut answered = 0;
    while !stop.load(SeqCst) {
        let mut on: Raw = client.take().unwrap_or_else(|| Raw::tcp(at));
        let response = if answered % 4 == 0 {
            on.send("POST /whole HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 3\r\n\r\nabc");
            on.response()
        } else {
            on.get("hello.test", "/bytes/100")
        };
        assert_eq!(response.status, 200, "after {answered}: {response:?}");
        assert_eq!(response.header("ferrule-mesh-draining"), None);
        client = (!response.says_close()).then_some(on);
        answered += 1;
    }
    answered
}

#[test]
fn requests_through_a_peer_that_drains_all_succeed() {
    let echo = Echo::http1();
    let [a, b] = Edge::two_regions([App::new("hello").instance_on("b", echo.address())]);
    let (at, stop) = (a.http(), AtomicBool::new(false));
    let answered: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| requests(at, &stop))).collect();
        for word in ["drain", "undrain", "drain", "undrain"] {
            std::thread::sleep(Duration::from_millis(400));
            tell(&b, word);
        }
        std::thread::sleep(Duration::from_millis(400));
        stop.store(true, SeqCst);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(answered > 500, "{answered}");
    assert_eq!(a.metric("ferrule_errors_total"), 0.0);
}

#[test]
fn new_requests_go_elsewhere_if_anybody_else_can_take_them() {
    let near = Echo::http1();
    let far = Echo::http1_at((loopback(2), near.address().port()).into());
    let app = App::new("hello")
        .instance_on("a", near.address())
        .instance_on("b", far.address())
        .limits(1, 3);
    let [a, b] = Edge::joined(Builder::one_region([app]));
    let mut holders: Vec<Raw> = Vec::new();
    let mut hold = |near_holds: usize| {
        let mut client = a.connect();
        client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
        near.holds(near_holds);
        holders.push(client);
    };
    hold(1);
    for _ in 0..10 {
        assert_eq!(a.get("hello.test", "/").status, 200);
    }
    assert_eq!(far.requests(), 10, "above the near one's soft limit it is the far one's turn");
    tell(&b, "drain");
    knows(&a, true);
    for _ in 0..10 {
        assert_eq!(a.get("hello.test", "/").status, 200);
    }
    assert_eq!(far.requests(), 10, "the near one can take it");
    hold(2);
    hold(3);
    assert_eq!(a.get("hello.test", "/").status, 200);
    assert_eq!(far.requests(), 11, "nobody else can take it");
    near.open(3);
    for mut holder in holders {
        assert_eq!(holder.response().status, 200);
    }
}

#[test]
fn an_instance_cannot_speak_for_its_node() {
    let answer = "HTTP/1.1 200 OK\r\nferrule-mesh-draining: 1\r\ncontent-length: 0\r\n\r\n";
    let instance = Scripted::answering(answer);
    let [a, b] = Edge::two_regions([App::new("hello").instance_on("b", instance.address())]);
    for edge in [&a, &b] {
        let response = edge.get("hello.test", "/");
        assert_eq!((response.status, response.header("ferrule-mesh-draining")), (200, None));
    }
    assert_eq!(a.status()["peers"][0]["draining"], false);
    // The control: its node can.
    tell(&b, "drain");
    knows(&a, true);
}

#[test]
fn a_node_that_stops_tells_its_peers_before_its_connections_close() {
    let near = Echo::http1();
    let far = Echo::http1_at((loopback(2), near.address().port()).into());
    // One at a time at home: of eight clients most go to the other node, as long as it is there.
    let app = App::new("hello")
        .instance_on("a", near.address())
        .instance_on("b", far.address())
        .limits(1, 50);
    let nodes = Builder::one_region([app]).map(|node| node.timeout("drain_delay", "1500ms"));
    let [a, mut b] = Edge::joined(nodes);
    let (at, stop) = (a.http(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| requests(at, &stop))).collect();
        wait::until("both nodes serve", || far.requests() > 20 && near.requests() > 20);
        let mut holder = a.connect();
        // Goes to the other node while the near one has its one.
        holder.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
        let start = Instant::now();
        b.signal(Signal::TERM);
        knows(&a, true);
        assert!(start.elapsed() < Duration::from_millis(1_500), "before anything closes");
        std::thread::sleep(Duration::from_millis(300));
        let before = far.requests();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(far.requests(), before, "nothing new goes there");
        near.open(1);
        far.open(1);
        assert_eq!(holder.response().status, 200, "what was on its way finishes");
        b.stopped();
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, SeqCst);
        for client in clients {
            client.join().unwrap();
        }
    });
    assert_eq!(a.metrics().sum_with("ferrule_requests_total", &[("class", "5xx")]), 0.0);
}

#[test]
fn a_node_that_is_replaced_is_there_for_its_peers_all_the_time() {
    let echo = Echo::http1();
    let [a, mut b] = Edge::two_regions([App::new("hello").instance_on("b", echo.address())]);
    let (at, stop) = (a.http(), AtomicBool::new(false));
    // Nodes that start at the same time do not find each other at the first look.
    let before = a.log().len();
    let answered: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| requests(at, &stop))).collect();
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(200));
            b.upgrade();
            b.predecessors_end();
        }
        stop.store(true, SeqCst);
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(answered > 100, "{answered}");
    let log = &a.log()[before..];
    assert!(!log.contains("does not answer"), "an end in order is no silence: {log}");
    // A successor has its predecessor's place, so nobody is sent elsewhere.
    assert!(!log.contains("node drains"), "{log}");
}

#[test]
fn maintenance_outlasts_an_upgrade() {
    let echo = Echo::http1();
    let [a, mut b] = Edge::two_regions([App::new("hello").instance_on("b", echo.address())]);
    tell(&b, "drain");
    let since = b.status()["drain"]["since"].as_f64().unwrap();
    b.upgrade();
    let status = b.status();
    assert_eq!((&status["generation"], &status["drain"]["by"]), (&2.into(), &"operator".into()));
    assert!((status["drain"]["since"].as_f64().unwrap() - since).abs() < 1.0e-3);
    assert_eq!(b.admin_get("/readyz").status, 503);
    b.predecessors_end();
    knows(&a, true);
    tell(&b, "undrain");
    knows(&a, false);
    assert_eq!(b.admin_get("/readyz").status, 200);
}

#[test]
fn a_node_with_nothing_but_peers_stops_at_once() {
    let echo = Echo::http1();
    let [a, mut b] = Edge::two_regions([App::new("hello").instance_on("b", echo.address())]);
    assert_eq!(a.get("hello.test", "/").status, 200);
    let start = Instant::now();
    b.signal(Signal::TERM);
    b.stopped();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}
