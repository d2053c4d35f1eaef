//! What a request pays for its record. `cargo bench -p telemetry --bench record`.
//!
//! The bar: at most 250 ns and no allocation for a request of 4 spans and 4 events.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use divan::{AllocProfiler, Bencher, black_box};
use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use telemetry::record::{
    Begin, Config, Method, Protocol, Record, Recorder, ShortText, Value, parse_traceparent,
};
use telemetry::{event, record, site};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    telemetry::shard::claim(0);
    divan::main();
}

fn recorder(wanted: bool, sample_percent: f64) -> (Recorder, record::Outboxes) {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let config = Config { sample_percent, exports_per_second_max: u32::MAX, ..Config::default() };
    let shared = record::Shared::new(config, 1, &registry, &ledger).expect("valid");
    shared.want_exports(wanted);
    let recorder = Recorder::new(&shared, 0);
    // Makes the slot and the buffer, once.
    request(&recorder);
    (recorder, shared.outboxes())
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

/// 4 spans inside each other and 4 events, with the fields such events have.
fn request(recorder: &Recorder) {
    let record = begin(recorder);
    let _identify = record.enter_span(site!("identify"));
    event!(record, "identified", dedicated = true);
    let _route = record.enter_span(site!("route"));
    event!(record, "picked", candidates = 3u64, how = "local");
    let _attempt = record.enter_span_with(site!("attempt", number), &[1u64.into()]);
    record.event(site!("connection", instance), &[Value::Catalogued("hello-1")]);
    let _respond = record.enter_span(site!("respond"));
    event!(record, "head", status = 200u16, reused = true);
    record.wide(|wide| wide.status = Some(200));
}

/// The same with spans around futures, each polled once, and the record the thread's current one.
fn request_of_futures(recorder: &Recorder) {
    let record = begin(recorder);
    let work = record.spanned(site!("identify"), async {
        event!(record, "identified", dedicated = true);
        let route = record.spanned(site!("route"), async {
            event!(record, "picked", candidates = 3u64, how = "local");
            let attempt = record.spanned_with(site!("attempt", number), &[1u64.into()], async {
                record.event(site!("connection", instance), &[Value::Catalogued("hello-1")]);
                record
                    .spanned(site!("respond"), async {
                        event!(record, "head", status = 200u16, reused = true);
                    })
                    .await;
            });
            attempt.await;
        });
        route.await;
    });
    let done = pin!(record.scope(work)).poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(done, Poll::Ready(()));
    record.wide(|wide| wide.status = Some(200));
}

#[divan::bench(args = [0.0, 1.0, 100.0], sample_size = 1000)]
fn record_4_spans_4_events(bencher: Bencher<'_, '_>, sample_percent: f64) {
    let (recorder, mut outboxes) = recorder(true, sample_percent);
    bencher.bench_local(|| request(&recorder));
    while outboxes.pop().is_some() {}
}

#[divan::bench(sample_size = 1000)]
fn record_4_futures_4_events(bencher: Bencher<'_, '_>) {
    let (recorder, _outboxes) = recorder(true, 0.0);
    bencher.bench_local(|| request_of_futures(&recorder));
}

#[divan::bench(sample_size = 1000)]
fn record_while_nobody_wants_exports(bencher: Bencher<'_, '_>) {
    let (recorder, _outboxes) = recorder(false, 0.0);
    bencher.bench_local(|| request(&recorder));
}

#[divan::bench(sample_size = 1000)]
fn begin_and_end(bencher: Bencher<'_, '_>) {
    let (recorder, _outboxes) = recorder(true, 0.0);
    bencher.bench_local(|| drop(begin(&recorder)));
}

#[divan::bench(sample_size = 1000)]
fn one_event(bencher: Bencher<'_, '_>) {
    let (recorder, _outboxes) = recorder(true, 0.0);
    bencher.with_inputs(|| begin(&recorder)).bench_local_refs(|record| {
        event!(record, "picked", candidates = 3u64, how = "local");
    });
}

#[divan::bench(sample_size = 1000)]
fn find_current(bencher: Bencher<'_, '_>) {
    let (recorder, _outboxes) = recorder(true, 0.0);
    let record = begin(&recorder);
    let _entered = record.enter();
    bencher.bench_local(|| record::current(Record::trace));
}

#[divan::bench(sample_size = 1000)]
fn traceparent(bencher: Bencher<'_, '_>) {
    let (recorder, _outboxes) = recorder(true, 0.0);
    let record = begin(&recorder);
    bencher.bench_local(|| parse_traceparent(&black_box(record.traceparent())));
}

/// The control: a formatted line per event, which is what the recorder is there to avoid.
#[divan::bench(sample_size = 1000)]
fn control_formats_and_allocates(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| {
        (0..4).map(|number| format!("attempt number={}", black_box(number))).collect::<Vec<_>>()
    });
}

#[divan::bench(sample_size = 1000)]
fn clock_time_stamp_counter(bencher: Bencher<'_, '_>) {
    let clock = quanta::Clock::new();
    let start = clock.raw();
    bencher.bench_local(|| clock.delta_as_nanos(start, clock.raw()));
}

#[divan::bench(sample_size = 1000)]
fn clock_instant(bencher: Bencher<'_, '_>) {
    let start = Instant::now();
    bencher.bench_local(|| start.elapsed());
}
