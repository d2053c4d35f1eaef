use proptest::prelude::*;

use super::*;
use crate::export::logs::Severity;
use crate::export::source::Exportable;
use crate::ledger::{Ledger, Line, Unit};
use crate::metrics::Registry;
use crate::record::model::{Entry, Keep, Protocol, SpanId, TraceId, Wide};

/// A record that holds so many bytes, and has so many inner spans.
struct Heavy {
    wide: Wide,
    bytes: usize,
    spans: usize,
}

impl Exportable for Heavy {
    fn wide(&self) -> &Wide {
        &self.wide
    }

    fn keep(&self) -> Keep {
        Keep::Sampled
    }

    fn segment(&self) -> u16 {
        0
    }

    fn open(&self) -> bool {
        false
    }

    fn cut(&self) -> (u32, u32) {
        (0, 0)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn visit(&self, each: &mut dyn FnMut(Entry<'_>)) {
        for id in 0..self.spans {
            each(Entry::Span(crate::record::model::Span {
                id: SpanId(id as u64 + 1),
                parent: None,
                name: "inner",
                target: "test",
                start: Duration::ZERO,
                end: Some(Duration::ZERO),
                busy: Duration::ZERO,
                idle: Duration::ZERO,
                polls: 0,
                failed: false,
                fields: Vec::new(),
            }));
        }
    }
}

fn record(id: u64, bytes: usize, spans: usize) -> Payload {
    let mut wide = Wide::new(TraceId(id.into()), SpanId(id));
    wide.protocol = Protocol::Http1;
    Payload::Record(Kept::new(Box::new(Heavy { wide, bytes, spans })))
}

fn log() -> Payload {
    let (at, body) = (Duration::ZERO, "log".to_owned());
    Payload::Log(Arc::new(LogRecord { severity: Severity::Info, at, body, attributes: vec![] }))
}

struct Bench {
    queue: Queue,
    ring: crate::export::ring::Ring,
    ledger: Ledger,
    registry: Registry,
}

impl Bench {
    fn new(bytes: usize, units: Option<usize>) -> Self {
        let registry = Registry::new(1, 100);
        let ledger = Ledger::new(registry.clone());
        let drops = Drops::new(&registry);
        let accounts = Accounts {
            queue: ledger.open("queue", Unit::Bytes, bytes as u64),
            ring: ledger.open("ring", Unit::Bytes, 4096),
        };
        let ring = crate::export::ring::Ring::new(4096, accounts.ring.clone());
        let queue = Queue::new(Limits { bytes, units }, drops, accounts);
        Self { queue, ring, ledger, registry }
    }

    fn push(&mut self, payload: Payload) {
        self.queue.push(payload, Instant::now());
    }

    fn dropped(&self, reason: Reason) -> usize {
        let labels = [("reason", reason.name())];
        let counter = self.registry.counter("ferrule_telemetry_dropped_total", "", &labels);
        usize::try_from(counter.value()).expect("a small number")
    }

    fn line(&self, owner: &str) -> Line {
        self.ledger.read().into_iter().find(|line| line.name == owner).expect("an account")
    }
}

fn ids(batch: &[Payload]) -> Vec<u64> {
    let id = |payload: &Payload| match payload {
        Payload::Record(kept) => kept.record.wide().span.0,
        Payload::Log(_) => 0,
    };
    batch.iter().map(id).collect()
}

#[test]
fn the_oldest_that_is_not_being_sent_goes_first() {
    let mut bench = Bench::new(5 * 1300, None);
    (1..=5).for_each(|id| bench.push(record(id, 1000, 0)));
    let (_, batch) = bench.queue.claim(2, 10_000).expect("a batch");
    assert_eq!(ids(&batch), [1, 2]);
    (6..=7).for_each(|id| bench.push(record(id, 1000, 0)));
    assert_eq!(bench.dropped(Reason::QueueFull), 2);
    bench.queue.settle(2);
    assert_eq!(bench.queue.release(), 0);
    let (_, batch) = bench.queue.claim(512, 10_000).expect("a batch");
    assert_eq!(ids(&batch), [5, 6, 7]);
    assert_eq!(bench.line("queue").drops, 2);
}

#[test]
fn what_is_too_large_for_what_is_left_is_dropped_itself() {
    let mut bench = Bench::new(3000, None);
    bench.push(record(1, 2000, 0));
    bench.queue.claim(1, 10_000).expect("a batch");
    bench.push(record(2, 2000, 2));
    assert_eq!(bench.dropped(Reason::QueueFull), 3, "a record counts by its spans");
    assert_eq!(bench.queue.held(), 1);
}

#[test]
fn a_batch_is_of_one_signal_and_at_least_one_item() {
    let mut bench = Bench::new(100_000, None);
    [record(1, 100, 9), record(2, 100, 0), log(), log(), record(3, 100, 0)]
        .into_iter()
        .for_each(|payload| bench.push(payload));
    let mut batches = Vec::new();
    while let Some((signal, batch)) = bench.queue.claim(5, 10_000) {
        batches.push((signal, batch.len()));
        bench.queue.release();
    }
    let (traces, logs) = (Signal::Traces, Signal::Logs);
    assert_eq!(batches, [(traces, 1), (traces, 1), (logs, 2), (traces, 1)]);
}

#[test]
fn a_batch_is_bounded_in_bytes_too() {
    let mut bench = Bench::new(100_000, None);
    (1..=3).for_each(|id| bench.push(record(id, 4_000, 0)));
    let (_, batch) = bench.queue.claim(512, 10_000).expect("a batch");
    assert_eq!(ids(&batch), [1, 2]);
    bench.queue.release();
    assert_eq!(bench.queue.claim(512, 1_000).expect("a batch").1.len(), 1);
}

#[test]
fn a_bound_on_the_number_is_kept_too() {
    let mut bench = Bench::new(1_000_000, Some(10));
    (0..10).for_each(|id| bench.push(record(id, 100, 2)));
    assert_eq!((bench.queue.held(), bench.dropped(Reason::QueueFull)), (9, 21));
}

#[test]
fn bytes_are_booked_once_though_two_hold_them() {
    let mut bench = Bench::new(100_000, None);
    let payload = record(1, 1000, 0);
    let Payload::Record(kept) = payload.clone() else { panic!("a record") };
    bench.push(payload);
    let alone = bench.line("queue").current;
    bench.ring.push(&kept);
    let slot = bench.line("ring").current;
    assert!(slot < 100, "the ring books its slot only, not {slot}");
    bench.queue.claim(1, 10_000).expect("a batch");
    bench.queue.release();
    assert_eq!(bench.line("queue").current, 0);
    assert!(bench.line("ring").current > 1000, "the record is the ring's now");
    // It falls out of the ring.
    for id in 2..10 {
        let Payload::Record(kept) = record(id, 1000, 0) else { panic!("a record") };
        bench.ring.push(&kept);
    }
    assert!(bench.line("ring").current <= 4096);
    drop(bench.ring);
    let ring =
        bench.ledger.read().into_iter().find(|line| line.name == "ring").expect("an account");
    assert_eq!(ring.current, 0);
    assert!(alone >= 1000);
}

#[derive(Debug, Clone)]
enum Step {
    Push { bytes: usize, spans: usize },
    Log,
    Claim(usize),
    Settle,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3000_usize, 0..20_usize).prop_map(|(bytes, spans)| Step::Push { bytes, spans }),
        1 => Just(Step::Log),
        1 => (1..40_usize).prop_map(Step::Claim),
        1 => Just(Step::Settle),
        1 => Just(Step::Release),
    ]
}

proptest! {
    #[test]
    fn everything_is_held_settled_or_dropped_and_the_bound_holds(
        steps in prop::collection::vec(step(), 0..200),
    ) {
        const BYTES: usize = 20_000;
        let mut bench = Bench::new(BYTES, Some(200));
        let (mut produced, mut settled, mut lost) = (0, 0, 0);
        // Of the claimed batch.
        let mut claimed: Option<(usize, usize)> = None;
        for step in steps {
            match step {
                Step::Push { bytes, spans } => {
                    produced += spans + 1;
                    bench.push(record(1, bytes, spans));
                }
                Step::Log => {
                    produced += 1;
                    bench.push(log());
                }
                Step::Claim(units) if claimed.is_none() => {
                    let batch = bench.queue.claim(units, 5_000);
                    claimed = batch.map(|(_, batch)| (batch.iter().map(Payload::units).sum(), 0));
                }
                Step::Settle => if let Some((units, done)) = &mut claimed && done < units {
                    *done += 1;
                    settled += 1;
                    bench.queue.settle(1);
                },
                Step::Release => if let Some((units, done)) = claimed.take() {
                    prop_assert_eq!(bench.queue.release(), units - done);
                    lost += units - done;
                },
                Step::Claim(_) => (),
            }
            let dropped = bench.dropped(Reason::QueueFull);
            prop_assert_eq!(produced, bench.queue.held() + settled + dropped + lost);
            prop_assert!(bench.queue.bytes() <= BYTES);
            let booked = usize::try_from(bench.line("queue").current).expect("not negative");
            prop_assert_eq!(booked, bench.queue.bytes());
        }
        let held = bench.queue.held();
        prop_assert_eq!(bench.queue.clear(Reason::Shutdown), held);
        prop_assert_eq!(bench.dropped(Reason::Shutdown), held);
        prop_assert_eq!((bench.queue.bytes(), bench.line("queue").current), (0, 0));
    }
}
