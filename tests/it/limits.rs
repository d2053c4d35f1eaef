//! Bounds: of an app's requests and connections, of the node's, of handshakes. Each has a control
//! that shows the same thing passing below the bound.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use tests::app::App;
use tests::client::Raw;
use tests::edge::Edge;
use tests::instance::Echo;
use tests::wait;

const GATE: &str = "GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n";

fn send(edge: &Edge, request: &str) -> Raw {
    let mut client = edge.connect();
    client.send(request);
    client
}

#[test]
fn at_the_hard_limit_requests_wait_in_line() {
    let echo = Echo::http1();
    let app = App::new("hello").limits(1, 2).instance(echo.address());
    let edge = Edge::with([app]);
    let mut clients: Vec<Raw> = (0..2).map(|_| send(&edge, GATE)).collect();
    echo.holds(2);
    clients.push(send(&edge, GATE));
    wait::until("the third waits", || edge.metric("ferrule_requests_in_flight") == 3.0);
    assert_eq!(edge.metric("ferrule_permits_in_use"), 2.0);
    assert_eq!(echo.in_flight(), 2, "the instance never has more than its hard limit");
    echo.open(3);
    for client in &mut clients {
        assert_eq!(client.response().text(), "through the gate");
    }
    assert_eq!(edge.metric("ferrule_permits_in_use"), 0.0);
}

#[test]
fn who_waits_too_long_is_told_503() {
    let echo = Echo::http1();
    let app = App::new("hello").limits(1, 1).instance(echo.address());
    let edge = Edge::builder().app(app).timeout("queue", "300ms").start();
    let mut first = send(&edge, GATE);
    echo.holds(1);
    let start = Instant::now();
    let mut second = send(&edge, GATE);
    second.response().assert_error(503, "PR04");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(290), "it waited in line: {waited:?}");
    assert!(waited < Duration::from_secs(5), "and not for ever: {waited:?}");
    echo.open(2);
    assert_eq!(first.response().status, 200);
    assert_eq!(second.get("hello.test", "/gate").status, 200, "the connection goes on");
}

#[test]
fn a_full_line_is_told_503_at_once() {
    let echo = Echo::http1();
    let app = App::new("hello").limits(1, 1).instance(echo.address());
    let edge = Edge::builder().app(app).limit("queue_length_max", 1).start();
    let mut clients = vec![send(&edge, GATE)];
    echo.holds(1);
    clients.push(send(&edge, GATE));
    wait::until("the second waits", || edge.metric("ferrule_requests_in_flight") == 2.0);
    let start = Instant::now();
    send(&edge, GATE).response().assert_error(503, "PR04");
    assert!(start.elapsed() < Duration::from_secs(3));
    echo.open(2);
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn who_leaves_the_line_gives_its_place_to_the_next() {
    let echo = Echo::http1();
    let app = App::new("hello").limits(1, 1).instance(echo.address());
    let edge = Edge::builder().app(app).timeout("queue", "20s").start();
    let mut first = send(&edge, GATE);
    echo.holds(1);
    let left = send(&edge, GATE);
    wait::until("the second waits", || edge.metric("ferrule_requests_in_flight") == 2.0);
    let mut third = send(&edge, GATE);
    wait::until("the third waits", || edge.metric("ferrule_requests_in_flight") == 3.0);
    drop(left);
    wait::until("its leaving is seen", || edge.metric("ferrule_requests_in_flight") == 2.0);
    echo.open(2);
    assert_eq!(first.response().status, 200);
    assert_eq!(third.response().status, 200);
    assert_eq!(echo.requests(), 2, "the one that left was never sent");
}

#[test]
fn the_other_instance_takes_what_is_above_the_soft_limit() {
    let one = Echo::http1();
    let two = Echo::http1_at((tests::port::loopback(2), one.address().port()).into());
    let app = App::new("hello").limits(2, 10).instance(one.address()).instance(two.address());
    let edge = Edge::with([app]);
    let mut clients: Vec<Raw> = (0..4).map(|_| send(&edge, GATE)).collect();
    wait::until("both have two", || (one.in_flight(), two.in_flight()) == (2, 2));
    one.open(2);
    two.open(2);
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn an_apps_connections_are_capped_and_its_neighbours_are_not() {
    let echo = Echo::http1();
    let edge = Edge::builder()
        .apps(["hello", "other"].map(|name| App::new(name).instance(echo.address())))
        .limit("app_connections_max", 3)
        .start();
    let mut held: Vec<Raw> = (0..3).map(|_| edge.connect_tls("hello.test")).collect();
    for client in &mut held {
        assert_eq!(client.get("hello.test", "/").status, 200);
    }
    // Refused in the handshake or told so in HTTP: served it is not.
    if let Ok(mut fourth) = edge.tls("hello.test").connect(edge.https())
        && fourth.try_send("GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n").is_ok()
        && let Ok(response) = fourth.try_response("GET")
    {
        response.assert_error(503, "PL04");
    }
    wait::until("the refusal is counted", || edge.errors("PL04") >= 1.0);
    assert_eq!(edge.connect_tls("other.test").get("other.test", "/").status, 200);
    held.pop();
    wait::until("there is room again", || {
        edge.tls("hello.test").connect(edge.https()).is_ok_and(|mut client| {
            client.try_send("GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n").is_ok()
                && client.try_response("GET").is_ok_and(|response| response.status == 200)
        })
    });
}

#[test]
fn unfinished_handshakes_of_one_network_are_capped() {
    let echo = Echo::http1();
    let edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .limit("handshakes_per_prefix_max", 5)
        .start();
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
    let held: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(edge.https()).unwrap()).collect();
    wait::until("all are accepted", || edge.metric("ferrule_downstream_connections") >= 5.0);
    assert!(edge.tls("hello.test").connect(edge.https()).is_err());
    wait::until("the refusal is counted", || edge.errors("PT01") >= 1.0);
    assert_eq!(edge.get("hello.test", "/").status, 200, "cleartext has no handshake");
    drop(held);
    wait::until("there is room again", || edge.tls("hello.test").connect(edge.https()).is_ok());
}

#[test]
fn a_node_out_of_file_descriptors_backs_off_and_recovers() {
    let echo = Echo::http1();
    let edge = Edge::builder().app(App::new("hello").instance(echo.address())).start();
    let mut steady = edge.connect();
    assert_eq!(steady.get("hello.test", "/").status, 200);
    let pid = rustix::process::Pid::from_raw(i32::try_from(edge.pid()).unwrap());
    let open = std::fs::read_dir(format!("/proc/{}/fd", edge.pid())).unwrap().count() as u64;
    let before = rustix::process::getrlimit(Resource::Nofile);
    let few = Rlimit { current: Some(open + 8), maximum: before.maximum };
    rustix::process::prlimit(pid, Resource::Nofile, few).unwrap();
    let crowd: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(edge.http()).unwrap()).collect();
    // Out of descriptors, the accept loop must not spin: it uses next to no CPU.
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", edge.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
        fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
    };
    let (ticks, start) = (cpu(), Instant::now());
    wait::until("half a second passed", || start.elapsed() > Duration::from_millis(500));
    let used = cpu() - ticks;
    assert!(used < 15, "{used} of 50 ticks were used while nothing could be accepted");
    assert_eq!(steady.get("hello.test", "/").status, 200, "who is connected is served");
    drop(crowd);
    rustix::process::prlimit(pid, Resource::Nofile, before).unwrap();
    assert_eq!(edge.get("hello.test", "/").status, 200);
}
