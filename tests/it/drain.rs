//! Drains: for maintenance, taken back and asked for again; for good, each class to its deadline.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::app::App;
use tests::client::Raw;
use tests::edge::{Edge, binary};
use tests::instance::{Echo, Scripted};
use tests::process::run;
use tests::strict::Error;
use tests::wait;

const SOON: Duration = Duration::from_secs(5);

fn ready(edge: &Edge) -> (u16, String) {
    let response = edge.admin_get("/readyz");
    (response.status, response.text().to_owned())
}

fn drain(edge: &Edge) {
    let outcome = edge.command(&["drain"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}

fn undrain(edge: &Edge) {
    let outcome = edge.command(&["undrain"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "serving again\n"));
}

#[test]
fn a_drained_node_says_so_serves_whoever_comes_and_does_not_end() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    assert_eq!(ready(&edge).0, 200);
    assert_eq!(edge.command(&["undrain"]).stdout, "was not drained\n");
    drain(&edge);
    let (status, reason) = ready(&edge);
    assert_eq!((status, reason.trim()), (503, "not ready: drained by an operator"));
    let status = edge.status();
    assert_eq!((&status["draining"], &status["drain"]["by"]), (&true.into(), &"operator".into()));
    assert!(status["drain"]["since"].as_f64().unwrap() > 1.0e9);
    assert_eq!(edge.metric("ferrule_draining"), 1.0);
    let again = edge.command(&["drain", "--json"]);
    let again: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(again["changed"], false, "asking twice changes nothing");
    wait::until("answers are the last of their connections", || {
        edge.connect().get("hello.test", "/").says_close()
    });
    for _ in 0..3 {
        let mut client = edge.connect_tls("hello.test");
        let response = client.get("hello.test", "/");
        assert!(response.status == 200 && response.says_close());
        assert!(client.closes_within(SOON));
    }
    undrain(&edge);
    assert_eq!(ready(&edge).0, 200);
    assert_eq!(edge.status()["draining"], false);
    wait::until("connections are kept again", || {
        !edge.connect().get("hello.test", "/").says_close()
    });
    drain(&edge);
    wait::until("a second drain is like the first", || {
        edge.connect().get("hello.test", "/").says_close()
    });
    edge.stop();
}

#[test]
fn what_is_left_is_waited_for() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut client = edge.connect();
    client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    let socket = edge.path("admin.sock");
    let outcome = std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let words = ["drain", "--wait", "--socket"];
            run(Command::new(binary()).args(words).arg(socket))
        });
        wait::until("it says what is left", || {
            edge.status()["drain"]["connections"] == 1 && edge.status()["drain"]["requests"] == 1
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waits.is_finished());
        echo.open(1);
        assert!(client.response().says_close());
        waits.join().unwrap()
    });
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("1 connection and 1 request left"), "{}", outcome.stderr);
    assert!(outcome.stdout.ends_with("0 connections and 0 requests left\n"), "{}", outcome.stdout);
}

#[test]
fn a_drain_is_seen_before_the_first_connection_is_told() {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let edge = Edge::builder().app(app).timeout("drain_delay", "2s").start();
    let mut idle = edge.connect();
    assert_eq!(idle.get("hello.test", "/").status, 200);
    let start = Instant::now();
    drain(&edge);
    assert_eq!((ready(&edge).0, &edge.status()["draining"]), (503, &true.into()));
    assert!(!idle.get("hello.test", "/").says_close(), "nobody is told yet");
    assert!(idle.closes_within(SOON));
    let after = start.elapsed();
    assert!(after > Duration::from_millis(1_900), "told after {after:?}");
    // Taken back within the delay, nobody ever hears of it.
    undrain(&edge);
    let mut client = edge.connect();
    assert!(!client.get("hello.test", "/").says_close());
    drain(&edge);
    undrain(&edge);
    assert!(client.stays_open_for(Duration::from_secs(3)));
    assert!(!client.get("hello.test", "/").says_close());
}

/// Sends requests one after the other on connections that are kept until they say close; an end of the
/// connection before the first byte of an answer is asked again on a new one, once.
struct Requests<'a> {
    at: SocketAddr,
    stop: &'a AtomicUsize,
    pause: Duration,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    answered: usize,
    ended: usize,
    failed: usize,
}

impl Requests<'_> {
    fn run(&self) -> Tally {
        let mut tally = Tally::default();
        let mut client = None;
        while self.stop.load(SeqCst) == 0 {
            let is_fresh = client.is_none();
            let mut on = client.take().unwrap_or_else(|| Raw::tcp(self.at));
            match Self::ask(&mut on) {
                Ok(closes) => {
                    tally.answered += 1;
                    client = (!closes).then_some(on);
                }
                // The end and nothing else, on a connection that had been idle: nobody has it.
                Err(Error::Io(error))
                    if !is_fresh && error.kind() == std::io::ErrorKind::UnexpectedEof =>
                {
                    tally.ended += 1;
                }
                Err(error) => {
                    eprintln!("failed: {error}");
                    tally.failed += 1;
                }
            }
            std::thread::sleep(self.pause);
        }
        tally
    }

    fn ask(on: &mut Raw) -> Result<bool, Error> {
        on.try_send("GET /bytes/100 HTTP/1.1\r\nhost: hello.test\r\n\r\n").map_err(Error::Io)?;
        let response = on.try_response("GET")?;
        assert_eq!(response.status, 200);
        Ok(response.says_close())
    }
}

#[test]
fn requests_that_race_a_drain_never_meet_a_reset() {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let edge = Edge::builder().app(app).start();
    let mut sum = Tally::default();
    for _ in 0..5 {
        let (at, stop) = (edge.http(), AtomicUsize::new(0));
        let tallies: Vec<Tally> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..40_u64)
                .map(|client| {
                    // From back to back to about as long as a connection is kept active.
                    let pause = Duration::from_millis(client * 5);
                    let requests = Requests { at, stop: &stop, pause };
                    scope.spawn(move || requests.run())
                })
                .collect();
            std::thread::sleep(Duration::from_millis(300));
            drain(&edge);
            std::thread::sleep(Duration::from_millis(500));
            undrain(&edge);
            std::thread::sleep(Duration::from_millis(100));
            stop.store(1, SeqCst);
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        for tally in tallies {
            sum.answered += tally.answered;
            sum.ended += tally.ended;
            sum.failed += tally.failed;
        }
    }
    eprintln!("{sum:?}");
    assert_eq!(sum.failed, 0, "{sum:?}");
    assert!(sum.answered > 5_000, "{sum:?}");
    assert!(sum.ended * 1_000 < sum.answered, "nearly all are told by an answer: {sum:?}");
}

/// The control: who is closed without regard is counted.
#[test]
fn a_reset_would_be_counted() {
    let rude = Scripted::start(|connection| {
        for _ in 0..3 {
            connection.request()?;
            connection.ok("x")?;
        }
        connection.reset()
    });
    let stop = AtomicUsize::new(0);
    let tally = std::thread::scope(|scope| {
        let requests =
            Requests { at: rude.address(), stop: &stop, pause: Duration::from_millis(1) };
        let client = scope.spawn(move || requests.run());
        wait::until("it was rude", || rude.connections() > 3);
        stop.store(1, SeqCst);
        client.join().unwrap()
    });
    assert!(tally.failed > 0, "{tally:?}");
}

#[test]
fn idle_connections_go_spread_over_the_window() {
    let (quarters, last) = departures("2s");
    eprintln!("{quarters:?}, the last after {last:?}");
    // 50 each is even; 25 is four deviations away.
    assert!(quarters.iter().all(|count| *count >= 25), "{quarters:?}");
    assert!(last < Duration::from_millis(2_800), "{last:?}");
}

/// The control: without a window they come back in one burst.
#[test]
fn without_a_window_idle_connections_go_at_once() {
    let (quarters, last) = departures("0s");
    assert!(quarters[0] >= 190, "{quarters:?}, the last after {last:?}");
}

/// How many of 200 idle connections go in each half second of a drain, and when the last.
fn departures(spread: &str) -> (Vec<usize>, Duration) {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let edge = Edge::builder().app(app).timeout("drain_spread", spread).start();
    const CLIENTS: usize = 200;
    let clients: Vec<Raw> = (0..CLIENTS)
        .map(|_| {
            let mut client = edge.connect();
            assert_eq!(client.get("hello.test", "/bytes/1").status, 200);
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300)); // so that all are parked
    let start = Instant::now();
    drain(&edge);
    let waits: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                assert!(client.closes_within(SOON));
                start.elapsed()
            })
        })
        .collect();
    let mut after: Vec<Duration> = waits.into_iter().map(|wait| wait.join().unwrap()).collect();
    after.sort_unstable();
    // From the first on: when the command was heard depends on how busy the machine is.
    let first = after[0];
    let mut quarters = vec![0; 4];
    for after in &mut after {
        *after -= first;
        quarters[(after.as_millis() / 500).min(3) as usize] += 1;
    }
    (quarters, after[CLIENTS - 1])
}

#[test]
fn a_download_and_an_upload_outlast_the_window() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    let slow = Scripted::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")?;
        for _ in 0..100 {
            connection.send("x")?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    });
    edge.write_app(&App::new("slow").instance(slow.address()));
    wait::until("the app is known", || edge.status()["apps"] == 2);
    let mut download = edge.connect();
    download.send("GET / HTTP/1.1\r\nhost: slow.test\r\n\r\n");
    slow.request(1);
    let mut upload = edge.connect();
    upload.send("POST /whole HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 100\r\n\r\n");
    echo.holds(1);
    edge.signal(Signal::TERM);
    for _ in 0..100 {
        upload.send("y");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(upload.response().text(), "y".repeat(100));
    assert_eq!(download.response().text(), "x".repeat(100));
    edge.stopped();
}

#[test]
fn a_tunnel_goes_on_to_its_own_deadline_and_is_counted() {
    let echo = Echo::http1();
    let raw = Scripted::start(|connection| {
        loop {
            let bytes = connection.exactly(1)?;
            connection.send(bytes)?;
        }
    });
    let mut edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .app(App::raw("raw", "[]").instance(raw.address()))
        .timeout("drain", "500ms")
        .timeout("drain_websocket", "500ms")
        .timeout("drain_tcp", "3s")
        .start();
    let mut tunnel = Raw::tcp(edge.tcp());
    tunnel.send("a");
    assert_eq!(tunnel.reader().exactly(1).unwrap(), b"a");
    let mut request = edge.connect();
    request.send("GET /hang HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    let start = Instant::now();
    edge.signal(Signal::TERM);
    assert!(request.closes_within(SOON), "requests have their own deadline");
    let after = start.elapsed();
    assert!((400..2_000).contains(&after.as_millis()), "{after:?}");
    wait::until("what was cut is counted", || {
        edge.metrics().sum_with("ferrule_drain_cut_total", &[("class", "request")]) == 1.0
    });
    assert_eq!(edge.metrics().sum_with("ferrule_drain_cut_total", &[("class", "tcp")]), 0.0);
    tunnel.send("b");
    assert_eq!(tunnel.reader().exactly(1).unwrap(), b"b", "a tunnel goes on");
    assert!(tunnel.closes_within(SOON));
    let after = start.elapsed();
    assert!((2_800..4_500).contains(&after.as_millis()), "{after:?}");
    edge.stopped();
    let log = edge.log();
    assert!(log.contains("cut=2 cut_requests=1 cut_websockets=0 cut_tcp=1"), "{log}");
}

#[test]
fn a_tunnel_that_is_half_closed_ends_in_its_own_time() {
    let raw = Scripted::start(|connection| {
        let bytes = connection.to_end()?;
        std::thread::sleep(Duration::from_millis(700));
        connection.send(bytes)?;
        connection.finish()
    });
    let mut edge = Edge::with([App::raw("raw", "[]").instance(raw.address())]);
    let mut tunnel = Raw::tcp(edge.tcp());
    tunnel.send("all of it");
    wait::until("the instance has it", || raw.connections() == 1);
    edge.signal(Signal::TERM);
    tunnel.finish();
    assert_eq!(tunnel.reader().exactly(9).unwrap(), b"all of it");
    assert!(tunnel.closes_within(SOON));
    edge.stopped();
    assert!(edge.log().contains("cut=0"));
}

#[test]
fn a_second_signal_ends_the_drain_and_a_third_changes_nothing() {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let mut edge = Edge::builder()
        .app(app)
        .timeout("drain", "60s")
        .timeout("drain_websocket", "60s")
        .timeout("drain_tcp", "60s")
        .timeout("drain_delay", "60s")
        .start();
    let mut client = edge.connect();
    client.send("GET /hang HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    edge.signal(Signal::TERM);
    wait::until("it drains", || edge.status()["draining"] == true);
    assert!(client.stays_open_for(Duration::from_millis(500)));
    let start = Instant::now();
    edge.signal(Signal::TERM);
    assert!(client.closes_within(SOON));
    edge.signal(Signal::TERM);
    edge.stopped();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let log = edge.log();
    assert!(log.contains("cut=1 cut_requests=1"), "{log}");
}

#[test]
fn what_the_node_holds_is_said_before_anything_else_ends() {
    let echo = Echo::http1();
    let mut edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut client = edge.connect();
    client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    edge.signal(Signal::TERM);
    wait::until("it drains", || edge.status()["draining"] == true);
    echo.open(1);
    client.response();
    edge.stopped();
    let log = edge.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?} in {log}"));
    let held = at("held at the end");
    let line = log[held..].lines().next().unwrap();
    for part in ["connections=1", "requests=1", "permits=1", "records=", "tasks=", "old_bytes="] {
        assert!(line.contains(part), "{line}");
    }
    assert!(held < at("the heap was written down") && held < at("stopped"));
    edge.start_again();
    let told = edge.admin_get("/last-exit");
    assert!(told.text().contains("held at the end: records="), "{}", told.text());
    edge.stop();
}
