//! Whatever is done with a record, in whatever order.

use proptest::prelude::*;

use super::*;
use crate::{event, site};

/// Anything that can be done with a record, in any order.
#[derive(Debug, Clone)]
enum Step {
    Event,
    Field,
    Fail,
    Enter,
    Open,
    Poll(usize),
    Close(usize),
    Raise(bool),
    Release,
    Pass(u64),
    Sweep,
    Failed,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Event),
        1 => Just(Step::Field),
        1 => Just(Step::Fail),
        3 => Just(Step::Enter),
        2 => Just(Step::Open),
        1 => (0usize..8).prop_map(Step::Poll),
        3 => (0usize..8).prop_map(Step::Close),
        1 => any::<bool>().prop_map(Step::Raise),
        1 => Just(Step::Release),
        1 => (0u64..200_000).prop_map(Step::Pass),
        1 => Just(Step::Sweep),
        1 => Just(Step::Failed),
    ]
}

enum Guard<'a> {
    Entered(#[expect(dead_code, reason = "held for its drop")] SpanGuard<'a>),
    Open(OpenSpan),
}

proptest! {
    #[test]
    fn no_order_of_steps_loses_a_buffer_or_a_span(steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new(Config {
            buffer_bytes: 512,
            sample_percent: 0.0,
            retained_buffers: 0,
            ..Config::default()
        });
        let record = bench.begin();
        let mut guards: Vec<Guard<'_>> = Vec::new();
        for step in steps {
            let len = guards.len().max(1);
            match step {
                Step::Event => event!(record, "event", number = 1u64),
                Step::Field => record.field("field", Value::Catalogued("text")),
                Step::Fail => record.fail_span(),
                Step::Enter => guards.push(Guard::Entered(record.enter_span(site!("entered")))),
                Step::Open => guards.push(Guard::Open(record.open_span(site!("open"), &[]))),
                Step::Poll(at) => {
                    if let Some(Guard::Open(span)) = guards.get_mut(at % len) {
                        drop(span.enter());
                    }
                }
                Step::Close(at) => {
                    if at < guards.len() {
                        guards.swap_remove(at);
                    }
                }
                Step::Raise(verbose) => {
                    let level = if verbose { Verbosity::Verbose } else { Verbosity::Normal };
                    prop_assert_eq!(record.raise(level).max(level), record.verbosity());
                }
                Step::Release => record.release_buffer(),
                Step::Pass(milliseconds) => bench.pass(milliseconds),
                Step::Sweep => bench.recorder.sweep(bench.recorder.now()),
                Step::Failed => failed(&record),
            }
        }
        drop(guards);
        prop_assert_eq!(record.current_span_id(), record.span_id());
        let verbose = record.is_verbose();
        drop(record);
        let segments: Vec<_> = std::iter::from_fn(|| bench.outboxes.pop()).collect();
        for (number, segment) in segments.iter().enumerate() {
            prop_assert_eq!(usize::from(segment.segment), number);
            prop_assert_eq!(segment.open, number + 1 < segments.len());
            for entry in segment.entries() {
                if let Entry::Span(span) = entry {
                    prop_assert!(segment.open || span.end.is_some());
                    prop_assert!(span.end.is_none_or(|end| end >= span.start + span.busy));
                }
            }
        }
        prop_assert!(!verbose || !segments.is_empty());
        timeline::render(&segments);
        drop(bench.recorder);
        for line in bench.ledger.read() {
            prop_assert_eq!(line.current, 0, "{}", line.name);
        }
    }
}
