//! A program that leaks on purpose, beside much that only looks like it.
//!
//! One process, one allocator, one watch: so one test, in the scales of the test profile.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use telemetry::heapwatch::{
    self, Config, Context, Heapwatch, Mode, Profile, Query, State, Subsystem,
};
use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;

#[global_allocator]
static ALLOCATOR: heapwatch::Allocator = heapwatch::Allocator;

static REQUESTS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// What is never freed, per request.
const LEAKED_BYTES: usize = 200;

#[inline(never)]
fn leak_on_purpose() -> Box<[u8]> {
    black_box(vec![1; black_box(LEAKED_BYTES)].into_boxed_slice())
}

#[inline(never)]
fn churn() {
    black_box(vec![1_u8; black_box(8 << 10)]);
}

#[inline(never)]
fn fill_the_bounded_cache(cache: &mut VecDeque<Box<[u8]>>) {
    let _owner = telemetry::budget!("the test's cache", 16 << 20);
    cache.push_back(black_box(vec![1; black_box(1_000)].into_boxed_slice()));
    if cache.len() > 4_000 {
        cache.pop_front();
    }
}

#[inline(never)]
fn append_without_bound(log: &mut Vec<u64>) {
    log.extend_from_slice(&[1; 16]);
}

/// About 4,000 requests a second until it is stopped.
fn serve() {
    let _charge = (heapwatch::tag(Subsystem::Http2), heapwatch::tag_app(7));
    let (mut leaked, mut cache, mut log) = (VecDeque::new(), VecDeque::new(), Vec::new());
    let mut sent = [const { None }; 64];
    let begun = Instant::now();
    while !STOP.load(Relaxed) {
        let request = REQUESTS.fetch_add(1, Relaxed);
        leaked.push_back(leak_on_purpose());
        churn();
        fill_the_bounded_cache(&mut cache);
        append_without_bound(&mut log);
        sent[request as usize % 64] = Some(vec![0_u8; 3_000]);
        let due = Duration::from_micros(250) * u32::try_from(request).expect("a short test");
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    black_box((leaked, cache, log, sent));
}

#[test]
fn a_leak_is_named_with_its_bytes_per_request_and_nothing_else_is() {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let config = Config { profile: Profile::Test, ..Config::default() };
    let requests = Box::new(|| REQUESTS.load(Relaxed));
    let context = Context {
        registry: &registry,
        ledger: &ledger,
        requests,
        app_names: Box::new(|_| Default::default()),
        limit: Box::new(|| Some(1 << 30)),
    };
    let heapwatch = Heapwatch::start(&config, context);
    assert_eq!(heapwatch.mode(), Mode::Hooks);

    let server = std::thread::spawn(serve);
    let begun = Instant::now();
    let found = loop {
        std::thread::sleep(Profile::Test.tick());
        heapwatch.tick();
        let report = heapwatch.report(&Query::default());
        let vectors = report.containers.iter().filter(|found| found.state == State::Leak);
        if report.stacks.iter().any(|stack| stack.state == State::Leak) && vectors.count() == 2 {
            break report;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was found: {report:#?}");
    };
    STOP.store(true, Relaxed);
    let suspects: Vec<_> = found.stacks.iter().filter(|s| s.state >= State::Growing).collect();
    let [leak] = suspects[..] else { panic!("{suspects:#?}") };
    let bytes = leak.bytes_per_request.expect("it grows with the requests");
    assert!((bytes / LEAKED_BYTES as f64 - 1.0).abs() < 0.15, "{bytes} B per request");
    assert_eq!((leak.subsystem, leak.app, &leak.owner), (Subsystem::Http2, 7, &None));
    assert!(leak.frames.len() > 5 && leak.graph.bytes.is_sorted(), "{leak:#?}");

    // The two vectors, one of which holds the leak, are single blocks that double.
    let bytes = found.containers.iter().filter_map(|found| found.bytes_per_request);
    let mut bytes: Vec<_> = bytes.collect();
    bytes.sort_unstable_by(f64::total_cmp);
    let [boxes, log] = bytes[..] else { panic!("{:#?}", found.containers) };
    // A vector is between just doubled and about to double.
    assert!((8.0..40.0).contains(&boxes) && (64.0..300.0).contains(&log), "{boxes}, {log}");

    let text = registry.render();
    assert!(text.contains("ferrule_leak_suspects{state=\"leak\"} 3\n"), "{text}");
    server.join().expect("it served");
}
