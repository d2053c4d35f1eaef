//! Collectors that are away, slow or wrong, while the node serves: bounded memory, exact counts, a
//! stop in time, and nothing that a client notices.

use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::app::App;
use tests::client::Raw;
use tests::collector::{Collector, Mode, Transport};
use tests::edge::Edge;
use tests::instance::Echo;
use tests::port::free_address;
use tests::wait;

use super::{dropped, kept, ledger};

const CLIENTS: usize = 4;
const REQUESTS: usize = 400;
/// Request, choice of an instance, attempt.
const SPANS: f64 = 3.0;
/// How the process before this one ended, which for a first one is told too.
const LOGS: f64 = 1.0;

const CAPS: [(&str, f64); 2] =
    [("telemetry_queue", 256.0 * 1024.0), ("telemetry_ring", 128.0 * 1024.0)];
/// Shares of the 16 MiB that all records may hold.
const RECORD_CAPS: [(&str, f64); 3] = [
    ("record_buffers", 10.0 * 1024.0 * 1024.0),
    ("record_verbose_buffers", 2.0 * 1024.0 * 1024.0),
    ("record_outboxes", 4.0 * 1024.0 * 1024.0),
];

/// Units that the node says were not delivered, as it stops.
fn undelivered(log: &str) -> f64 {
    let line = log.lines().find(|line| line.contains("telemetry is not delivered"));
    let left = line.and_then(|line| line.split("left=").nth(1)?.split(' ').next()?.parse().ok());
    left.unwrap_or(0.0)
}

fn served_in_spite_of(endpoint: &str, transport: Transport) {
    let echo = Echo::http1();
    let mut edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .exporting_to(endpoint, transport)
        .telemetry("telemetry.otlp", "queue_bytes = \"256KiB\"")
        .telemetry("telemetry.otlp", "ring_bytes = \"128KiB\"")
        .telemetry("telemetry.otlp", "timeout = \"500ms\"")
        .sampling(100)
        .start();
    let http = edge.http();
    std::thread::scope(|scope| {
        let serve = move || {
            let mut client = Raw::tcp(http);
            for _ in 0..REQUESTS {
                assert_eq!(client.get("hello.test", "/bytes/10").status, 200);
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(serve)).collect();
        while !clients.iter().all(ScopedJoinHandle::is_finished) {
            for (owner, cap) in CAPS.iter().chain(&RECORD_CAPS) {
                let held = ledger(&edge, owner);
                assert!(held <= *cap, "{owner} holds {held} of {cap}");
            }
        }
    });
    edge.idle();

    // Everything that was kept is in the queue or was dropped from it, and nothing was sent.
    let records = kept(&edge, "sampled");
    assert_eq!(records, (CLIENTS * REQUESTS) as f64);
    wait::until("the workers' outboxes are empty", || ledger(&edge, "record_outboxes") == 0.0);
    let drops = || SPANS * dropped(&edge, "outbox") + dropped(&edge, "queue_full");
    wait::until("what has no room is dropped", || {
        ledger(&edge, "telemetry_queue") <= CAPS[0].1 && drops() > 0.0
    });
    let (before, sent) = (drops(), edge.metric("ferrule_telemetry_sent_total"));
    assert_eq!((sent, dropped(&edge, "retries_exhausted")), (0.0, 0.0));
    wait::until("it was tried", || edge.metric("ferrule_telemetry_export_failures_total") > 0.0);

    let start = Instant::now();
    edge.signal(Signal::TERM);
    edge.stopped();
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    let left = undelivered(&edge.log());
    assert_eq!(records * SPANS + LOGS, before + left, "{before} dropped, {left} left");
}

#[test]
fn a_collector_that_is_not_there_is_not_noticed() {
    served_in_spite_of(&format!("http://{}", free_address(1)), Transport::Http);
}

#[test]
fn a_collector_that_never_answers_is_not_noticed() {
    let collector = Collector::start_as(Transport::Http, Mode::BlackHole);
    served_in_spite_of(&collector.endpoint(), Transport::Http);
}

#[test]
fn a_collector_that_never_answers_grpc_is_not_noticed() {
    let collector = Collector::start_as(Transport::Grpc, Mode::BlackHole);
    served_in_spite_of(&collector.endpoint(), Transport::Grpc);
}

#[test]
fn a_collector_that_asks_for_patience_is_not_noticed() {
    let mode = Mode::Unavailable { retry_after: 30 };
    let collector = Collector::start_as(Transport::Http, mode);
    served_in_spite_of(&collector.endpoint(), Transport::Http);
}

#[test]
fn a_collector_that_answers_by_the_byte_is_not_noticed() {
    let collector = Collector::start_as(Transport::Http, Mode::OneBytePerSecond);
    served_in_spite_of(&collector.endpoint(), Transport::Http);
}

#[test]
fn a_collector_that_closes_in_the_middle_is_not_noticed() {
    let collector = Collector::start_as(Transport::Http, Mode::CloseMidResponse);
    served_in_spite_of(&collector.endpoint(), Transport::Http);
}
