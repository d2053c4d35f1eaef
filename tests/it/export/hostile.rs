//! Collectors that are down, hang, refuse or talk nonsense: same memory, exact counts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use telemetry::export::{Config, Reason, Source as _};
use tests::collector::{Collector, Mode, Transport};
use tests::port::free_address;
use tests::wait;

use super::fed::{Counts, Fed, Live, Node, Worker, quick, source};
use super::over;

const TRANSPORTS: [Transport; 2] = [Transport::Http, Transport::Grpc];
const QUEUE: usize = 256 * 1024;
const RING: usize = 64 * 1024;
/// More than four times what the queue and the ring hold.
const RECORDS: u64 = 4_000;
const PADDING: usize = 256;

/// Small enough to overflow within a test.
fn small(transport: Transport) -> Config {
    Config { queue_bytes: QUEUE, ring_bytes: RING, ..over(transport, quick()) }
}

/// The same that does not wait long for an answer.
fn hasty(transport: Transport) -> Config {
    Config { timeout: Duration::from_millis(200), ..small(transport) }
}

/// What the assertion about memory is: the records that exist fit the queue and the ring, but for
/// the one that is being handed over.
fn check_live(live: &Live) -> Result<(), String> {
    let (bytes, bound) = (live.bytes(), QUEUE + RING + 1024);
    if bytes <= bound { Ok(()) } else { Err(format!("{bytes} bytes live, {bound} allowed")) }
}

fn feed(worker: &Worker, live: &Live) -> Result<(), String> {
    for id in 0..RECORDS {
        worker.send(Fed::of_size(id, PADDING)).unwrap();
        check_live(live)?;
    }
    Ok(())
}

/// How an overflown exporter ended.
struct Ended {
    counts: Counts,
    left: u64,
}

/// Feeds it more than it can hold, looks at its memory all the while, stops it, and settles the
/// account: whatever was produced was sent, dropped, or left and counted as dropped.
fn overflow(node: Node) -> Ended {
    let Node { handle, worker, live, counts } = node;
    feed(&worker, &live).unwrap();
    wait::until("every record is accounted for", || {
        check_live(&live).unwrap();
        let held = handle.held();
        assert!(held.bytes <= QUEUE, "{held:?}");
        counts.sent("traces") + counts.dropped_in_all() + held.units as u64 == RECORDS
    });
    for owner in ["telemetry_queue", "telemetry_ring", "telemetry_encoding"] {
        let (held, cap) = counts.books(owner);
        assert!((0..=cap).contains(&held), "{owner} holds {held} of {cap}");
    }
    let began = Instant::now();
    let left = handle.shutdown(Duration::from_secs(2));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2) && left.ended, "{took:?}, {left:?}");
    assert_eq!(counts.sent("traces") + counts.dropped_in_all(), RECORDS);
    assert_eq!(counts.dropped(Reason::Shutdown), left.units as u64);
    assert_eq!(counts.books("telemetry_queue").0, 0);
    assert_eq!(counts.books("telemetry_encoding").0, 0);
    assert_eq!(live.bytes(), 0, "nothing outlives the exporter");
    Ended { counts, left: left.units as u64 }
}

/// The same against a collector in `mode`, over both transports.
fn against(mode: Mode, check: impl Fn(&Ended, &Collector)) {
    for transport in TRANSPORTS {
        let collector = Collector::start_as(transport, mode);
        let config = match mode {
            Mode::BlackHole | Mode::OneBytePerSecond => hasty(transport),
            _ => small(transport),
        };
        let ended = overflow(Node::start(&collector, config));
        check(&ended, &collector);
    }
}

#[test]
fn an_unbounded_queue_fails_the_assertion_about_memory() {
    let (worker, mut records, live) = source();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // An exporter as many are: it takes what comes and waits for a collector that hangs.
        scope.spawn(|| {
            let mut queue = VecDeque::new();
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                queue.extend(std::iter::from_fn(|| records.next()));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut seen = feed(&worker, &live);
        let deadline = Instant::now() + wait::PATIENCE;
        while seen.is_ok() && Instant::now() < deadline {
            seen = check_live(&live);
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(seen.is_err(), "the assertion does not see {} bytes", live.bytes());
    });
}

#[test]
fn a_collector_that_is_not_there_costs_records_and_nothing_else() {
    for transport in TRANSPORTS {
        let endpoint = Some(format!("http://{}", free_address(1)));
        let node = Node::start_with(Config { endpoint, ..small(transport) }, &[]);
        let ended = overflow(node);
        assert_eq!(ended.counts.sent("traces"), 0);
        assert_eq!(ended.counts.dropped(Reason::QueueFull), RECORDS - ended.left);
    }
}

#[test]
fn a_collector_that_never_answers_costs_records_and_nothing_else() {
    against(Mode::BlackHole, |ended, _| {
        assert_eq!(ended.counts.sent("traces"), 0);
        assert_eq!(ended.counts.dropped(Reason::QueueFull), RECORDS - ended.left);
    });
}

#[test]
fn a_collector_that_asks_for_a_wait_gets_it() {
    against(Mode::Unavailable { retry_after: 100 }, |ended, collector| {
        assert_eq!(ended.counts.sent("traces"), 0);
        // The first attempt, and the last one when the node stops.
        assert!(collector.requests() <= 2, "{} requests", collector.requests());
    });
}

#[test]
fn a_collector_that_refuses_is_not_asked_again() {
    against(Mode::BadRequest, |ended, _| {
        let counts = &ended.counts;
        let rejected = counts.dropped(Reason::Rejected);
        assert!(rejected > 0);
        assert_eq!(rejected + counts.dropped(Reason::QueueFull), RECORDS);
        assert_eq!((counts.sent("traces"), ended.left), (0, 0));
    });
}

#[test]
fn an_answer_of_one_byte_per_second_is_not_waited_for() {
    against(Mode::OneBytePerSecond, |ended, _| assert_eq!(ended.counts.sent("traces"), 0));
}

#[test]
fn an_answer_that_breaks_off_is_no_answer() {
    against(Mode::CloseMidResponse, |ended, _| assert_eq!(ended.counts.sent("traces"), 0));
}

#[test]
fn an_answer_without_end_is_not_read() {
    against(Mode::HugeResponse, |ended, _| {
        let counts = &ended.counts;
        assert_eq!(counts.dropped(Reason::Rejected) + counts.dropped(Reason::QueueFull), RECORDS);
        assert_eq!((counts.sent("traces"), ended.left), (0, 0));
    });
}

#[test]
fn what_a_collector_rejects_of_a_batch_is_counted() {
    against(Mode::PartialSuccess { rejected: 3 }, |ended, collector| {
        let accepted = collector.accepted();
        let rejected: u64 = accepted.iter().map(|request| request.spans.len().min(3) as u64).sum();
        assert_eq!(ended.counts.dropped(Reason::Rejected), rejected);
        assert_eq!(ended.counts.sent("traces"), collector.spans().len() as u64 - rejected);
    });
}

#[test]
fn what_fits_the_queue_survives_an_outage() {
    for transport in TRANSPORTS {
        let collector = Collector::start_as(transport, Mode::BlackHole);
        let node = Node::start(&collector, hasty(transport));
        (0..100).for_each(|id| node.worker.send(Fed::plain(id)).unwrap());
        collector.wait_until("it was tried again", |collector| collector.requests() > 2);
        collector.behave(Mode::Unavailable { retry_after: 0 });
        let before = collector.requests();
        collector.wait_until("and again", |collector| collector.requests() > before + 2);
        collector.behave(Mode::Good);
        collector.wait_until("all have come", |collector| collector.spans().len() == 100);
        wait::until("all are counted", || node.counts.sent("traces") == 100);
        assert_eq!(node.counts.dropped_in_all(), 0);
    }
}

#[test]
fn a_batch_is_given_up_in_time_and_counted() {
    let collector = Collector::start_as(Transport::Http, Mode::Unavailable { retry_after: 0 });
    let config = Config { give_up_after: Duration::from_millis(300), ..small(Transport::Http) };
    let node = Node::start(&collector, config);
    (0..10).for_each(|id| node.worker.send(Fed::plain(id)).unwrap());
    wait::until("they are given up", || node.counts.dropped(Reason::RetriesExhausted) == 10);
    assert_eq!(node.handle.held().units, 0);
    collector.behave(Mode::Good);
    node.worker.send(Fed::plain(10)).unwrap();
    collector.wait_until("the next has come", |collector| collector.spans().len() == 1);
}

#[test]
fn stopping_sends_what_still_waits() {
    for transport in TRANSPORTS {
        let collector = Collector::start(transport);
        let delay = Duration::from_secs(3_600);
        let node = Node::start(&collector, Config { schedule_delay: delay, ..small(transport) });
        (0..10).for_each(|id| node.worker.send(Fed::plain(id)).unwrap());
        let left = node.handle.shutdown(Duration::from_secs(2));
        assert_eq!((left.units, left.ended), (0, true));
        assert_eq!(collector.spans().len(), 10);
    }
}
