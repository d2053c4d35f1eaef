//! What only a process of its own can show: that a request allocates nothing, and what the log and
//! the bridge enable together.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use parking_lot::Mutex;
use telemetry::ledger::Ledger;
use telemetry::log::{self, Format};
use telemetry::metrics::Registry;
use telemetry::record::{
    Begin, Config, Entry, Method, Outboxes, Protocol, Record, Recorder, Shared, ShortText, Value,
    Verbosity,
};
use telemetry::{bridge, event, record, site};
use tracing::Level;
use tracing::level_filters::LevelFilter;

/// The system's allocator, which counts for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// The only way to count allocations is to be the allocator.
#[allow(unsafe_code, reason = "a global allocator is an unsafe trait")]
// SAFETY: every call goes to the system's allocator as it came; the counters are plain cells without
// destructors, so that counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(block, layout) }
    }
}

fn count(allocations: usize, bytes: isize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + allocations);
    LIVE_BYTES.set(LIVE_BYTES.get() + bytes);
}

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn recorder(sample_percent: f64) -> (Recorder, Outboxes) {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let config = Config { sample_percent, ..Config::default() };
    let shared = Shared::new(config, 1, &registry, &ledger).expect("valid");
    shared.want_exports(true);
    shared.want_access_log(true);
    (Recorder::new(&shared, 0), shared.outboxes())
}

fn begin(recorder: &Recorder) -> Record {
    recorder.begin(Begin {
        request_id: ShortText::new("01JD5W5S8H3E4Q9GXK2TQZ7M3B-ams"),
        protocol: Protocol::Http1,
        tls: true,
        method: Method::Get,
        parent: None,
        link: None,
        now: recorder.now(),
    })
}

fn request(recorder: &Recorder) {
    let record = begin(recorder);
    let _entered = record.enter();
    for number in 0..4u64 {
        let _span = record.enter_span_with(site!("attempt", number), &[number.into()]);
        event!(record, "picked", candidates = 3u64, how = "local");
        record.field("instance", Value::Catalogued("hello-1"));
        record::current(|record| event!(record, WARN, "found"));
    }
    record.wide(|wide| wide.status = Some(200));
    let _header = record.traceparent();
}

#[test]
fn a_request_allocates_nothing_once_its_slot_and_buffer_exist() {
    let (recorder, mut outboxes) = recorder(0.0);
    // The first ones make the slot, the buffer and the queue of the access log.
    (0..10).for_each(|_| request(&recorder));
    let allocated = allocations(|| {
        for _ in 0..10_000 {
            request(&recorder);
            outboxes.pop_wide().expect("every request is seen");
        }
    });
    assert_eq!(allocated, 0);
}

#[test]
fn the_count_of_allocations_can_fail() {
    let (recorder, mut outboxes) = recorder(100.0);
    (0..10).for_each(|_| request(&recorder));
    while outboxes.pop().is_some() {}
    // A kept record is copied out: its entries, and the box it travels in.
    assert_eq!(allocations(|| request(&recorder)), 2);
    assert_eq!(allocations(|| drop(std::hint::black_box(format!("{}", 7)))), 1);
}

/// The log and the armed callsites are the process's; a test has them to itself.
static PROCESS: Mutex<()> = Mutex::new(());

fn with_log<T>(test: impl FnOnce() -> T) -> T {
    let _alone = PROCESS.lock();
    // The second test finds it open.
    let _opened = log::open("error", Format::Text);
    test()
}

fn library_speaks() {
    tracing::trace!(target: "h2::codec", stream = 7, secret = %"token", "frame of {}", "a client");
    tracing::trace!(target: "somebody_else", "unheard");
}

fn heard(raise: bool) -> Vec<(String, usize)> {
    let (recorder, mut outboxes) = recorder(0.0);
    let record = begin(&recorder);
    record.wide(|wide| wide.error = Some("PU01"));
    if raise {
        assert_eq!(record.raise(Verbosity::Verbose), Verbosity::Verbose);
    }
    {
        let _entered = record.enter();
        library_speaks();
    }
    library_speaks();
    drop(record);
    let finished = outboxes.pop().expect("kept");
    let event = |entry: &Entry<'_>| match entry {
        Entry::Event(event) => (format!("{} {:?}", event.target, event.fields), event.fields.len()),
        Entry::Span(span) => panic!("no span was opened: {span:?}"),
    };
    finished.entries().iter().map(event).collect()
}

#[test]
fn libraries_are_heard_only_by_verbose_records_while_armed() {
    with_log(|| {
        assert_eq!(heard(true), []);
        bridge::arm();
        assert_eq!(heard(false), []);
        let verbose = heard(true);
        bridge::disarm();
        assert_eq!(verbose, [("h2::codec [(\"stream\", Signed(7))]".to_owned(), 1)]);
        assert_eq!(heard(true), []);
    });
}

#[test]
fn texts_of_libraries_are_recorded_only_when_exposed() {
    with_log(|| {
        bridge::arm();
        bridge::expose_text(true);
        let exposed = heard(true);
        bridge::expose_text(false);
        let hidden = heard(true);
        bridge::disarm();
        let [(text, 3)] = &exposed[..] else { panic!("one event of three fields: {exposed:?}") };
        assert!(
            text.contains("Exposed(\"token\")") && text.contains("frame of a client"),
            "{text}"
        );
        assert!(!hidden[0].0.contains("token") && !hidden[0].0.contains("client"), "{hidden:?}");
    });
}

#[test]
fn no_span_is_ever_enabled() {
    with_log(|| {
        let (recorder, _outboxes) = recorder(0.0);
        let check = || {
            let span = tracing::error_span!(target: "h2", "connection");
            assert!(span.is_disabled());
            assert!(tracing::error_span!("ours").is_disabled());
        };
        check();
        bridge::arm();
        let record = begin(&recorder);
        record.raise(Verbosity::Verbose);
        let _entered = record.enter();
        check();
        // The control: an event at the same place is enabled.
        assert!(tracing::event_enabled!(target: "h2", Level::TRACE));
        bridge::disarm();
    });
}

#[test]
fn while_disarmed_libraries_stop_at_the_level() {
    with_log(|| {
        assert_eq!(LevelFilter::current(), LevelFilter::ERROR);
        bridge::arm();
        bridge::arm();
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        bridge::disarm();
        assert_eq!(LevelFilter::current(), LevelFilter::TRACE);
        bridge::disarm();
        assert_eq!(LevelFilter::current(), LevelFilter::ERROR);
    });
}

#[test]
fn a_million_toggles_leave_memory_flat() {
    with_log(|| {
        library_speaks();
        let toggle = || {
            bridge::arm();
            bridge::disarm();
        };
        toggle();
        let before = LIVE_BYTES.get();
        (0..1_000_000).for_each(|_| toggle());
        assert_eq!(LIVE_BYTES.get() - before, 0);
    });
}
