//! From begin to end: spans, segments, the current record.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::{event, site};

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_record_ends_with_its_last_clone() {
    let mut bench = Bench::quiet();
    let record = bench.begin();
    let other = record.clone();
    failed(&record);
    drop(record);
    assert!(bench.outboxes.pop().is_none());
    assert_eq!(bench.recorder.live(), 1);
    bench.pass(7);
    drop(other);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!(finished.keep, Keep::Error);
    assert_eq!(finished.wide.lasted, Duration::from_millis(7));
    assert_eq!((finished.segment, finished.open), (0, false));
    assert_eq!(bench.recorder.live(), 0);
}

#[test]
fn spans_nest_and_know_when_they_were_busy() {
    let mut bench = Bench::quiet();
    let record = bench.begin();
    let request = record.span_id();
    failed(&record);
    let mut again = false;
    {
        let (inner, clock) = (record.clone(), Arc::clone(&bench.clock));
        let work = record.spanned_with(site!("attempt", number), &[1u64.into()], async move {
            let mut connect = inner.enter_span(site!("connect"));
            clock.increment(Duration::from_millis(2));
            event!(inner, WARN, "refused", port = 8080u16, again = true);
            connect.fail();
            drop(connect);
            poll_fn(|_| {
                if std::mem::replace(&mut again, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            inner.field("instance", Value::Catalogued("hello-1"));
            clock.increment(Duration::from_millis(1));
        });
        let mut work = pin!(work);
        assert!(poll(work.as_mut()).is_pending());
        bench.pass(10);
        event!(record, "between");
        assert!(poll(work.as_mut()).is_ready());
    }
    assert_eq!(record.current_span_id(), request);
    drop(record);

    let finished = bench.outboxes.pop().expect("kept");
    let entries = finished.entries();
    let (attempt, connect) = (span(&entries, "attempt"), span(&entries, "connect"));
    assert_eq!(attempt.parent, None);
    assert_eq!(connect.parent, Some(attempt.id));
    assert_eq!((attempt.polls, attempt.failed), (2, false));
    assert_eq!((connect.polls, connect.failed), (1, true));
    assert_eq!(attempt.end, Some(Duration::from_millis(13)));
    assert_eq!(attempt.busy, Duration::from_millis(3));
    assert_eq!(attempt.idle, Duration::from_millis(10));
    assert_eq!(
        attempt.fields,
        [("number", Value::Unsigned(1)), ("instance", Value::Catalogued("hello-1"))]
    );
    let [refused, between] = events(&entries)[..] else { panic!("two events: {entries:?}") };
    assert_eq!((refused.name, refused.level), ("refused", Level::WARN));
    assert_eq!(refused.target, module_path!());
    assert_eq!(refused.span, Some(connect.id));
    assert_eq!(refused.at, Duration::from_millis(2));
    assert_eq!(refused.fields, [("port", Value::Unsigned(8080)), ("again", Value::Bool(true))]);
    assert_eq!((between.name, between.span), ("between", None));
}

#[test]
fn guards_that_end_in_the_wrong_order_leave_the_right_span_current() {
    let bench = Bench::quiet();
    let record = bench.begin();
    let outer = record.enter_span(site!("outer"));
    let outer_id = record.current_span_id();
    let inner = record.enter_span(site!("inner"));
    let inner_id = record.current_span_id();
    drop(outer);
    assert_eq!(record.current_span_id(), inner_id);
    drop(inner);
    assert_eq!(record.current_span_id(), record.span_id());
    assert_ne!(outer_id, inner_id);
}

#[test]
fn spans_deeper_than_the_stack_belong_to_the_deepest_in_it() {
    let mut bench = Bench::quiet();
    let record = bench.begin();
    failed(&record);
    let guards: Vec<_> = (0..40).map(|_| record.enter_span(site!("deeper"))).collect();
    drop(guards);
    assert_eq!(record.current_span_id(), record.span_id());
    drop(record);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!(finished.entries().len(), 40);
    assert_eq!(finished.entries_cut, 0);
}

#[test]
fn a_long_request_is_cut_into_segments_that_share_their_ids() {
    let mut bench = Bench::quiet();
    let record = bench.begin();
    failed(&record);
    let mut tunnel = record.open_span(site!("tunnel", kind), &["websocket".into()]);
    drop(tunnel.enter());
    bench.pass(299_999);
    bench.recorder.sweep(bench.recorder.now());
    assert!(bench.outboxes.pop().is_none());
    bench.pass(1);
    bench.recorder.sweep(bench.recorder.now());
    let first = bench.outboxes.pop().expect("a segment");
    assert_eq!((first.segment, first.open), (0, true));
    let first_entries = first.entries();
    let open = span(&first_entries, "tunnel");
    assert_eq!((open.end, open.polls), (None, 1));

    bench.pass(300_000);
    event!(record, "written after the second cut");
    let second = bench.outboxes.pop().expect("a segment");
    assert_eq!((second.segment, second.open, second.entries().len()), (1, true, 0));
    bench.pass(1000);
    drop(tunnel);
    drop(record);
    let last = bench.outboxes.pop().expect("the end");
    assert_eq!((last.segment, last.open), (2, false));
    let last_entries = last.entries();
    let closed = span(&last_entries, "tunnel");
    assert_eq!((closed.id, closed.start, closed.polls), (open.id, open.start, 1));
    assert_eq!(closed.end, Some(Duration::from_secs(601)));
    assert_eq!(events(&last_entries).len(), 1);
}

#[test]
fn a_cut_of_an_uninteresting_request_is_dropped_and_says_so() {
    let mut bench = Bench::quiet();
    let record = bench.begin();
    record.wide(|wide| wide.protocol = Protocol::WebSocket);
    (0..5).for_each(|_| event!(record, "frame"));
    bench.pass(300_000);
    bench.recorder.sweep(bench.recorder.now());
    assert!(bench.outboxes.pop().is_none());
    failed(&record);
    drop(record);
    let finished = bench.outboxes.pop().expect("kept");
    assert_eq!((finished.segment, finished.entries_cut, finished.bytes_cut), (0, 5, 90));
}

#[test]
fn a_sweep_does_bounded_work_and_goes_on_where_it_stopped() {
    let mut bench = Bench::new(Config {
        exports_per_second_max: 100_000,
        app_exports_per_second_max: 1,
        ..Config::default()
    });
    let records: Vec<_> = (0..1500).map(|_| bench.begin()).collect();
    records.iter().for_each(failed);
    bench.pass(300_000);
    let mut segments = [0; 3];
    for count in &mut segments {
        bench.recorder.sweep(bench.recorder.now());
        *count = std::iter::from_fn(|| bench.outboxes.pop()).count();
    }
    assert_eq!(segments, [1024, 476, 0]);
}

#[test]
fn the_current_record_is_found_while_its_work_is_polled() {
    let bench = Bench::quiet();
    let (outer, inner) = (bench.begin(), bench.begin());
    let here = || current(Record::trace);
    assert_eq!(here(), None);
    let entered = outer.enter();
    let scoped = inner.scope(async { here() });
    assert_eq!(here(), Some(outer.trace()));
    assert_eq!(poll(pin!(scoped)), Poll::Ready(Some(inner.trace())));
    assert_eq!(here(), Some(outer.trace()));
    // Looking inside of looking, and entering inside of it.
    let nested = current(|record| {
        let _inside = inner.enter();
        (record.trace(), here())
    });
    assert_eq!(nested, Some((outer.trace(), Some(inner.trace()))));
    drop(entered);
    assert_eq!(here(), None);
}

#[test]
fn a_panic_in_a_poll_leaves_nothing_current() {
    let bench = Bench::quiet();
    let record = bench.begin();
    let work = record.scope(record.spanned(site!("doomed"), async { panic!("on purpose") }));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ready: Poll<()> = poll(pin!(work));
    }));
    assert!(caught.is_err());
    assert!(current(|_| ()).is_none());
    assert_eq!(record.current_span_id(), record.span_id());
}

#[test]
fn records_may_outlive_their_recorder() {
    let Bench { recorder, mut outboxes, ledger, .. } = Bench::quiet();
    let record = recorder.begin(head(recorder.now()));
    failed(&record);
    drop(recorder);
    drop(record);
    assert!(outboxes.pop().is_some());
    drop(outboxes);
    assert_eq!(ledger.read().iter().map(|line| line.current).sum::<i64>(), 0);
}

#[test]
fn the_next_node_is_told_trace_span_and_flag() {
    let bench = Bench::quiet();
    let record = bench.begin();
    let guard = record.enter_span(site!("attempt"));
    let (remote, sampled) = parse_traceparent(&record.traceparent()).expect("valid");
    assert_eq!(remote, Remote { trace: record.trace(), span: record.current_span_id() });
    assert!(!sampled);
    assert_ne!(record.current_span_id(), record.span_id());
    drop(guard);
    record.raise(Verbosity::Verbose);
    assert!(parse_traceparent(&record.traceparent()).expect("valid").1);

    let parent = Some((remote, true));
    let next = bench.recorder.begin(Begin { parent, ..bench.head() });
    assert_eq!(next.trace(), record.trace());
    assert!(next.sampled());
    let linked = bench.recorder.begin(Begin { link: Some(remote), ..bench.head() });
    assert_ne!(linked.trace(), record.trace());
    assert!(!linked.sampled());
}

#[test]
fn a_verbose_record_has_an_event_for_every_poll() {
    let mut bench = Bench::quiet();
    let record = bench.begin();
    record.raise(Verbosity::Verbose);
    let mut again = false;
    let clock = Arc::clone(&bench.clock);
    let work = record.spanned(
        site!("attempt"),
        poll_fn(move |_| {
            clock.increment(Duration::from_millis(3));
            if std::mem::replace(&mut again, true) { Poll::Ready(()) } else { Poll::Pending }
        }),
    );
    {
        let mut work = pin!(work);
        assert!(poll(work.as_mut()).is_pending());
        assert!(poll(work.as_mut()).is_ready());
    }
    drop(record);
    let finished = bench.outboxes.pop().expect("kept");
    let entries = finished.entries();
    let attempt = span(&entries, "attempt");
    assert_eq!((attempt.polls, attempt.busy), (2, Duration::from_millis(6)));
    let polled = |last| [("busy_ns", Value::Unsigned(3_000_000)), ("last", Value::Bool(last))];
    let [first, second] = events(&entries)[..] else { panic!("two polls: {entries:?}") };
    assert_eq!((first.span, &first.fields[..]), (Some(attempt.id), &polled(false)[..]));
    assert_eq!((second.span, &second.fields[..]), (Some(attempt.id), &polled(true)[..]));
}
