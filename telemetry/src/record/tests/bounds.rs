//! What is held, and what becomes of what finds no room.

use super::*;
use crate::{event, site};

#[test]
fn what_finds_no_room_is_counted_in_the_record() {
    let mut bench = Bench::new(Config {
        buffer_bytes: 512,
        entries_max: 8,
        sample_percent: 0.0,
        ..Config::default()
    });
    let by_count = bench.begin();
    failed(&by_count);
    (0..10).for_each(|_| event!(by_count, "small"));
    drop(by_count);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!((finished.entries().len(), finished.entries_cut, finished.bytes_cut), (8, 2, 36));

    let by_bytes = bench.begin();
    failed(&by_bytes);
    let long = "x".repeat(1000);
    (0..3).for_each(|_| by_bytes.event(site!("large", text), &[Value::Catalogued(&long)]));
    drop(by_bytes);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!((finished.entries().len(), finished.entries_cut), (1, 2));
    assert_eq!(finished.bytes_cut, 2 * (18 + 3 + 256));
}

#[test]
fn without_anybody_who_wants_exports_nothing_is_held() {
    let mut bench = Bench::quiet();
    bench.shared.want_exports(false);
    let record = bench.begin();
    assert_eq!(record.verbosity(), Verbosity::Wide);
    failed(&record);
    event!(record, "unheard");
    drop(record);
    assert!(bench.outboxes.pop().is_none());
    assert_eq!(bench.line("record_buffers").high, 0);
    assert_eq!(bench.dropped("pool"), 0);

    // The control: a verbose request is wanted by whoever asked for it.
    let record = bench.begin();
    assert_eq!(record.raise(Verbosity::Verbose), Verbosity::Verbose);
    event!(record, "heard");
    drop(record);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!((finished.keep, finished.entries().len()), (Keep::Verbose, 1));
}

#[test]
fn an_exhausted_pool_leaves_the_wide_event() {
    let mut bench = Bench::new(Config {
        budget_bytes: 16 << 12,
        verbose_buffer_bytes: 4 << 10,
        retained_buffers: 2,
        sample_percent: 0.0,
        ..Config::default()
    });
    let held: Vec<_> = (0..12).map(|_| bench.begin()).collect();
    let normal = held.iter().filter(|record| record.verbosity() == Verbosity::Normal).count();
    assert_eq!(normal, 10, "five eighths of 64 KiB");
    assert_eq!(bench.dropped("pool"), 2);
    let line = bench.line("record_buffers");
    assert_eq!((line.current, line.cap, line.drops), (40 << 10, 40 << 10, 2));
    failed(&held[11]);
    event!(held[11], "unheard");
    drop(held);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!(finished.wide.verbosity, Verbosity::Wide);
    assert_eq!((finished.entries().len(), finished.entries_cut), (0, 1));
    assert_eq!(bench.line("record_buffers").current, 8 << 10, "two are retained");
    drop(bench.recorder);
    assert_eq!(bench.ledger.read().iter().map(|line| line.current).sum::<i64>(), 0);
}

#[test]
fn a_verbose_request_has_a_larger_buffer_from_a_pool_of_its_own() {
    let mut bench = Bench::quiet();
    let verbose: Vec<_> = (0..33)
        .map(|_| {
            let record = bench.begin();
            event!(record, "before");
            record.raise(Verbosity::Verbose);
            (0..1000).for_each(|_| event!(record, "chunk"));
            record
        })
        .collect();
    assert_eq!(verbose.iter().filter(|record| record.is_verbose()).count(), 32);
    assert_eq!(bench.dropped("verbose_pool"), 1);
    drop(verbose);
    let sizes: Vec<_> =
        std::iter::from_fn(|| bench.outboxes.pop()).map(|kept| kept.entries().len()).collect();
    assert_eq!(sizes.iter().filter(|size| **size == 1001).count(), 32);
    // What found no larger buffer is kept all the same, with what fits the usual one.
    assert_eq!(sizes.iter().filter(|size| (100..300).contains(*size)).count(), 1, "{sizes:?}");
    assert_eq!(bench.line("record_verbose_buffers").current, 4 * (64 << 10));
}

#[test]
fn a_released_buffer_serves_the_next_request() {
    let mut bench = Bench::quiet();
    let stream = bench.begin();
    event!(stream, "head");
    stream.release_buffer();
    assert_eq!(stream.verbosity(), Verbosity::Wide);
    let next = bench.begin();
    assert_eq!(next.verbosity(), Verbosity::Normal);
    assert_eq!(bench.line("record_buffers").current, 4 << 10, "one buffer for both");
    drop(next);
    failed(&stream);
    drop(stream);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!((finished.entries().len(), finished.entries_cut), (0, 1));

    let stream = bench.begin();
    failed(&stream);
    event!(stream, "head");
    stream.release_buffer();
    let head = bench.outboxes.pop().expect("what is worth keeping goes ahead");
    assert_eq!((head.segment, head.open, head.entries().len()), (0, true, 1));
    drop(stream);
    let end = bench.outboxes.pop().expect("the end");
    assert_eq!((end.segment, end.open, end.wide.trace), (1, false, head.wide.trace));
}

#[test]
fn an_outbox_loses_its_oldest_and_counts_them() {
    let mut bench = Bench::new(Config {
        budget_bytes: 1 << 20,
        exports_per_second_max: 100_000,
        sample_percent: 100.0,
        ..Config::default()
    });
    let id = |number: u64| ShortText::new(&number.to_string());
    for number in 0..5000 {
        drop(bench.recorder.begin(Begin { request_id: id(number), ..bench.head() }));
    }
    let line = bench.line("record_outboxes");
    assert!(line.high <= 256 << 10, "{line:?}");
    let held: Vec<_> = std::iter::from_fn(|| bench.outboxes.pop()).collect();
    assert_eq!(held.len() as u64 + bench.dropped("outbox"), 5000);
    assert_eq!(held.last().expect("some").wide.request_id, id(4999));
    assert_eq!(bench.line("record_outboxes").current, 0);
}

#[test]
fn every_ended_request_reaches_the_access_log_when_it_is_wanted() {
    let mut bench =
        Bench::new(Config { access_log_waiting_max: 4, sample_percent: 0.0, ..Config::default() });
    drop(bench.begin());
    assert!(bench.outboxes.pop_wide().is_none());
    bench.shared.want_access_log(true);
    let app: Arc<str> = "hello".into();
    for status in 200..206 {
        let record = bench.begin();
        record.wide(|wide| (wide.status, wide.app) = (Some(status), Some(Arc::clone(&app))));
    }
    let seen: Vec<_> = std::iter::from_fn(|| bench.outboxes.pop_wide()).collect();
    let statuses: Vec<_> = seen.iter().filter_map(|wide| wide.status).collect();
    assert_eq!(statuses, [202, 203, 204, 205]);
    assert_eq!(bench.dropped("access_log"), 2);
    drop(seen);
    assert_eq!(Arc::strong_count(&app), 1, "a free slot holds on to no app");
}

#[test]
fn the_reader_is_woken_before_its_tick_when_an_outbox_fills() {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let config = Config {
        exports_per_second_max: 1_000_000,
        sample_percent: 100.0,
        budget_bytes: 1 << 20,
        ..Config::default()
    };
    let shared = Shared::new(config, 1, &registry, &ledger).expect("valid");
    shared.want_exports(true);
    let mut outboxes = shared.outboxes();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let began = std::time::Instant::now();
            outboxes.wait(Duration::from_secs(60));
            (began.elapsed(), outboxes.pop().is_some())
        });
        let recorder = Recorder::new(&shared, 0);
        while !reader.is_finished() {
            drop(recorder.begin(head(recorder.now())));
        }
        let (waited, found) = reader.join().expect("the reader ends");
        assert!(waited < Duration::from_secs(60) && found, "{waited:?}");
    });
}

#[test]
fn one_reader_does_not_take_the_wake_up_of_the_other() {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let shared = Shared::new(Config::default(), 1, &registry, &ledger).expect("valid");
    shared.want_access_log(true);
    let (kept, mut ended) = (shared.outboxes(), shared.ended());
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let began = std::time::Instant::now();
            ended.wait(Duration::from_secs(60));
            (began.elapsed(), ended.pop_wide().is_some())
        });
        let recorder = Recorder::new(&shared, 0);
        while !reader.is_finished() {
            // What the other reader does at its tick.
            kept.arm();
            kept.disarm();
            drop(recorder.begin(head(recorder.now())));
        }
        let (waited, found) = reader.join().expect("the reader ends");
        assert!(waited < Duration::from_secs(60) && found, "{waited:?}");
    });
}

#[test]
fn after_a_burst_slots_and_buffers_are_given_back() {
    let bench = Bench::quiet();
    let burst: Vec<_> = (0..2000).map(|_| bench.begin()).collect();
    assert_eq!(bench.line("record_buffers").current, 2000 * 4096);
    drop(burst);
    bench.recorder.sweep(bench.recorder.now());
    assert_eq!(bench.line("record_buffers").current, 64 * 4096);
    let slots = bench.line("record_slots");
    assert!(slots.current > 0 && slots.current * 7 < slots.high, "{slots:?}");
}

#[test]
fn workers_and_reader_agree_on_what_was_kept_and_lost() {
    const EACH: u64 = 20_000;
    let registry = Registry::new(3, 100);
    let ledger = Ledger::new(registry.clone());
    let config = Config {
        exports_per_second_max: u32::MAX,
        sample_percent: 100.0,
        budget_bytes: 1 << 20,
        ..Config::default()
    };
    let shared = Shared::new(config, 3, &registry, &ledger).expect("valid");
    shared.want_exports(true);
    let mut outboxes = shared.outboxes();
    let seen = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let shared = &shared;
                scope.spawn(move || {
                    crate::shard::claim(worker);
                    let recorder = Recorder::new(shared, worker);
                    for _ in 0..EACH {
                        drop(recorder.begin(head(recorder.now())));
                    }
                })
            })
            .collect();
        let mut seen = 0;
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            outboxes.wait(Duration::from_millis(10));
            seen += std::iter::from_fn(|| outboxes.pop()).count() as u64;
        }
        seen
    });
    let rest = std::iter::from_fn(|| outboxes.pop()).count() as u64;
    let labels = [("reason", "outbox")];
    let lost = registry.counter("ferrule_telemetry_dropped_total", "", &labels).value();
    assert_eq!(seen + rest + lost, 3 * EACH);
    assert!(seen > 0);
    let outbox = ledger.read().into_iter().find(|line| line.name == "record_outboxes");
    assert_eq!(outbox.expect("open").current, 0);
}
