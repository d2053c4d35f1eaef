//! Threads that do not come back, and what is said of them: to the log, to systemd, to who asks.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tests::app::App;
use tests::client::{Raw, WebSocket};
use tests::edge::Edge;
use tests::instance::{Echo, websocket_echo};
use tests::process::Process;
use tests::wait;

fn hang() -> PathBuf {
    env!("CARGO_BIN_EXE_hang").into()
}

/// Seconds of the day, by the first word of a line.
fn seconds(line: &str) -> f64 {
    let time = line.split_once('T').and_then(|(_, rest)| rest.split_once('Z')).unwrap().0;
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap())
}

/// From the start of a hang until the first line with `words` and `function`.
fn told_after(log: &str, words: &str, function: &str) -> Option<Duration> {
    let began = seconds(log.lines().find(|line| line.ends_with(" hangs"))?);
    let line = log.lines().find(|line| line.contains(words) && line.contains(function))?;
    Some(Duration::from_secs_f64(seconds(line) - began))
}

/// How long it took until a hang was reported, as addresses and with the name of `function`.
fn hangs(how: &str, function: &str) -> [Duration; 2] {
    let mut process = Process::start("a hanging process", Command::new(hang()).arg(how));
    assert!(process.wait(wait::PATIENCE).success());
    let log = process.output();
    let raw = told_after(&log, "does not come back from a poll", "thread=\"worker-0\"");
    let named = told_after(&log, "where a thread hangs", function);
    assert!(log.contains("a thread came back thread=\"worker-0\" milliseconds=1"), "{log}");
    [raw.expect(&log), named.expect(&log)]
}

#[test]
fn a_thread_that_hangs_is_reported_with_the_name_of_its_function() {
    for (how, function) in [("spin", "a_poll_that_computes"), ("sleep", "a_poll_that_sleeps")] {
        // The first time the symbols come from the disk, and the machine may be busy.
        let fast = (0..5).any(|_| {
            let [raw, named] = hangs(how, function);
            println!("{how}: addresses after {raw:?}, names after {named:?}");
            assert!(raw >= Duration::from_millis(200), "{raw:?}");
            named <= Duration::from_millis(300)
        });
        assert!(fast, "{how}");
    }
}

/// What a process tells systemd, with when.
struct Told {
    socket: UnixDatagram,
    directory: TempDir,
    messages: Vec<(Instant, String)>,
}

impl Told {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self { socket, directory, messages: Vec::new() }
    }

    fn environment(&self, watchdog: Duration) -> [String; 3] {
        [
            "env".to_owned(),
            format!("NOTIFY_SOCKET={}", self.directory.path().join("notify").display()),
            format!("WATCHDOG_USEC={}", watchdog.as_micros()),
        ]
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            self.messages.extend(text.lines().map(|line| (Instant::now(), line.to_owned())));
        }
    }

    fn has(&self, message: &str) -> bool {
        self.count(message) > 0
    }

    fn count(&self, message: &str) -> usize {
        self.messages.iter().filter(|(_, told)| told == message).count()
    }
}

#[test]
fn systemd_hears_that_a_process_lives_unless_a_thread_hangs() {
    let mut told = Told::new();
    let environment = told.environment(Duration::from_millis(400));
    let mut command = Command::new(&environment[0]);
    command.args(&environment[1..]).arg(hang()).arg("spin");
    let mut process = Process::start("a hanging process", &mut command);
    wait::until("it ends", || {
        told.read();
        process.has_ended().is_some()
    });
    told.read();
    assert!(told.has("READY=1") && told.has("STATUS=watching") && told.has("STOPPING=1"));
    let beats: Vec<Instant> =
        told.messages.iter().filter(|(_, told)| told == "WATCHDOG=1").map(|(at, _)| *at).collect();
    let gaps: Vec<Duration> = beats.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let silent = gaps.iter().filter(|gap| **gap > Duration::from_millis(1_000)).count();
    assert_eq!(silent, 1, "{gaps:?}"); // and beats on either side of it
    assert!(gaps.len() >= 4, "{gaps:?}");
}

#[test]
fn a_node_tells_systemd_when_it_serves_and_when_it_stops() {
    let mut told = Told::new();
    let echo = Echo::http1();
    let mut edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .through(&told.environment(Duration::from_secs(1)))
        .start();
    wait::until("it gives signs of life", || {
        told.read();
        told.count("WATCHDOG=1") >= 3
    });
    assert!(told.has("READY=1") && !told.has("STOPPING=1"), "{:?}", told.messages);
    assert!(
        told.has("STATUS=listen bind, filter off")
            || told
                .messages
                .iter()
                .any(|(_, told)| { told.starts_with("STATUS=listen bind, filter ") })
    );
    edge.signal(rustix::process::Signal::TERM);
    edge.stopped();
    told.read();
    assert!(told.has("STOPPING=1"), "{:?}", told.messages);
}

fn lines(edge: &Edge, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["requests", "--json"], arguments].concat();
    let done = edge.command(&arguments);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let page: Value = serde_json::from_str(&done.stdout).unwrap();
    page["lines"].as_array().unwrap().clone()
}

#[test]
fn what_waits_is_listed_with_its_app_its_state_and_its_age() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let mut stuck = edge.connect();
    stuck.send("GET /hang HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    let handshake = Raw::tcp(edge.https()); // says nothing
    wait::until("both are listed", || {
        let lines = lines(&edge, &[]);
        let shows = |kind: &str, state: &str| {
            lines.iter().any(|line| line["kind"] == kind && line["state"] == state)
        };
        shows("request", "upstream")
            && shows("connection", "serving")
            && shows("connection", "tls handshake")
    });
    let all = lines(&edge, &[]);
    let request = all.iter().find(|line| line["kind"] == "request").unwrap();
    assert_eq!(request["app"], "hello");
    let trace = request["trace"].as_str().expect("it has a record");
    assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()), "{trace}");
    let age = request["age_seconds"].as_f64().unwrap();
    wait::until("it ages", || {
        let lines = lines(&edge, &[]);
        let line = lines.iter().find(|line| line["trace"] == trace).unwrap();
        line["age_seconds"].as_f64().unwrap() >= age + 1.0
            && line["waiting_seconds"].as_f64().unwrap() >= 1.0
    });
    assert_eq!(lines(&edge, &["--stuck"]), [Value::Null; 0], "nothing is late yet");
    let text = edge.command(&["requests"]).stdout;
    let row = text.lines().find(|line| line.starts_with("request ")).expect(&text);
    assert!(row.contains(" hello ") && row.contains(" upstream ") && row.contains(trace), "{text}");
    drop((stuck, handshake));
    wait::until("nothing is listed", || lines(&edge, &[]).is_empty());
}

/// The line of the request of `app` in `state`.
fn request<'a>(lines: &'a [Value], app: &str, state: &str) -> Option<&'a Value> {
    lines
        .iter()
        .find(|line| line["kind"] == "request" && line["app"] == app && line["state"] == state)
}

fn seconds_of(line: &Value, what: &str) -> f64 {
    line[what].as_f64().unwrap()
}

#[test]
fn who_looks_at_requests_is_answered_while_a_worker_hangs() {
    let echo = Echo::http1();
    let edge = Edge::builder()
        .app(App::new("waiting").instance(echo.address()))
        .app(App::new("blocking").instance(echo.address()))
        .workers(1)
        .seeded("block")
        .start();
    let mut stuck = edge.connect();
    stuck.send("GET /hang HTTP/1.1\r\nhost: waiting.test\r\n\r\n");
    wait::until("it waits for its instance", || {
        request(&lines(&edge, &[]), "waiting", "upstream").is_some()
    });
    let mut blocks = edge.connect();
    let sent = Instant::now();
    blocks.send("GET /block HTTP/1.1\r\nhost: blocking.test\r\n\r\n");
    // Each look: when it began, how long it took, and the line of the request that blocks.
    let mut looks = Vec::new();
    while sent.elapsed() < Duration::from_millis(1_400) {
        let asked = sent.elapsed();
        let lines = lines(&edge, &[]);
        let took = sent.elapsed() - asked;
        if let Some(line) = request(&lines, "blocking", "upstream") {
            let other = request(&lines, "waiting", "upstream").expect("both are listed");
            assert_eq!((&line["worker"], &other["worker"]), (&0.into(), &0.into()));
            looks.push((asked, took, line.clone()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(blocks.response().status, 200);
    let held_up = sent.elapsed();
    assert!(held_up >= Duration::from_millis(1_500), "the worker did not hang: {held_up:?}");
    println!(
        "{} looks, of which the slowest took {:?}",
        looks.len(),
        looks.iter().map(|(_, took, _)| took).max()
    );
    // The machine may be busy; that a look waited for the worker would be another matter.
    let (first, last) = (&looks[0], &looks[looks.len() - 1]);
    assert!(
        looks.len() >= 3 && looks.iter().all(|(_, took, _)| *took < Duration::from_millis(700))
    );
    let passed = (last.0 - first.0).as_secs_f64();
    for what in ["age_seconds", "waiting_seconds", "quiet_seconds"] {
        let grown = seconds_of(&last.2, what) - seconds_of(&first.2, what);
        assert!((grown - passed).abs() < 0.4, "{what} grew by {grown} s in {passed} s");
    }
    assert!(passed > 0.5, "{passed} s between two looks tell little");
    wait::until("the function is named", || {
        edge.log().lines().any(|line| {
            line.contains("where a thread hangs") && line.contains("hold_the_worker_up")
        })
    });
    drop(stuck);
}

#[test]
fn what_moves_was_polled_a_moment_ago_however_old_it_is() {
    let (echo, chat) = (Echo::http1(), websocket_echo());
    let edge = Edge::with([
        App::new("hello").instance(echo.address()),
        App::new("chat").instance(chat.address()),
    ]);
    let mut drips = edge.connect();
    drips.send("GET /drip HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    let mut hangs = edge.connect();
    hangs.send("GET /hang HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    let mut talks = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    let mut say = || {
        talks.send(1, b"still here");
        assert_eq!(talks.receive().1, b"still here");
    };
    wait::until("those who move are told from the one that does not", || {
        say();
        let lines = lines(&edge, &[]);
        let old = |app, state| {
            let line = request(&lines, app, state)?;
            (seconds_of(line, "waiting_seconds") >= 1.5).then_some(line)
        };
        let all = (old("hello", "response"), old("chat", "tunnel"), old("hello", "upstream"));
        let (Some(drips), Some(talks), Some(hangs)) = all else { return false };
        let quiet = |line| seconds_of(line, "quiet_seconds");
        // The control: only its deadlines are looked at, now and then.
        quiet(drips) < 0.3 && quiet(talks) < 0.3 && quiet(hangs) > 0.4
    });
    drop((drips, hangs));
}

/// The control of "stuck", and of the report at the end.
#[test]
fn what_waits_for_too_long_is_stuck_and_told_when_it_is_cut() {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let mut edge = Edge::builder()
        .app(app)
        .timeout("handshake", "60s")
        .timeout("response_head", "60s")
        .timeout("drain", "1s")
        .start();
    let _handshake = Raw::tcp(edge.https());
    let mut stuck = edge.connect();
    stuck.send("GET /hang HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    wait::until("the request waits", || echo.in_flight() == 1);
    let late = || lines(&edge, &["--stuck"]);
    wait::within(Duration::from_secs(30), "the handshake is late", || !late().is_empty());
    assert!(late().iter().all(|line| line["state"] == "tls handshake"), "{:?}", late());
    edge.signal(rustix::process::Signal::TERM);
    edge.stopped();
    let log = edge.log();
    let cut = |parts: [&str; 3]| {
        log.lines().any(|line| {
            line.contains("cut at the deadline") && parts.iter().all(|part| line.contains(part))
        })
    };
    assert!(cut(["kind=\"request\"", "app=\"hello\"", "state=\"upstream\""]), "{log}");
    assert!(cut(["kind=\"connection\"", "app=\"-\"", "state=\"tls handshake\""]), "{log}");
    assert!(log.contains("lines=0 sockets="), "{log}");
}
