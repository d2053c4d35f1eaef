mod bounds;
mod decision;
mod encoding;
mod life;
mod reading;
mod steps;

use std::sync::Arc;
use std::time::Duration;

use quanta::{Clock, Mock};

use super::*;
use crate::ledger::{Ledger, Line};
use crate::metrics::Registry;

/// One worker with a clock that stands still until it is moved.
struct Bench {
    registry: Registry,
    ledger: Ledger,
    clock: Arc<Mock>,
    shared: Arc<Shared>,
    outboxes: Outboxes,
    recorder: Recorder,
}

impl Bench {
    /// Everything is wanted and nothing is sampled, unless the configuration says so.
    fn new(config: Config) -> Self {
        let registry = Registry::new(1, 100);
        let ledger = Ledger::new(registry.clone());
        let (clock, mock) = Clock::mock();
        mock.increment(Duration::from_secs(1000));
        let shared = Shared::with_clock(config, 1, &registry, &ledger, clock).expect("valid");
        shared.want_exports(true);
        let outboxes = shared.outboxes();
        let recorder = Recorder::new(&shared, 0);
        Self { registry, ledger, clock: mock, shared, outboxes, recorder }
    }

    fn quiet() -> Self {
        Self::new(Config { sample_percent: 0.0, ..Config::default() })
    }

    fn begin(&self) -> Record {
        self.recorder.begin(self.head())
    }

    fn head(&self) -> Begin {
        head(self.recorder.now())
    }

    fn pass(&self, milliseconds: u64) {
        self.clock.increment(Duration::from_millis(milliseconds));
    }

    fn dropped(&self, reason: &str) -> u64 {
        let labels = [("reason", reason)];
        self.registry.counter("ferrule_telemetry_dropped_total", "", &labels).value()
    }

    fn line(&self, name: &str) -> Line {
        let lines = self.ledger.read();
        lines.into_iter().find(|line| line.name == name).expect("the account is open")
    }
}

fn head(now: Moment) -> Begin {
    Begin {
        request_id: ShortText::new("01JD5W5S8H3E4Q9GXK2TQZ7M3B-ams"),
        protocol: Protocol::Http1,
        tls: true,
        method: Method::Get,
        parent: None,
        link: None,
        now,
    }
}

fn failed(record: &Record) {
    record.wide(|wide| wide.error = Some("PU01"));
}

fn events<'a>(entries: &'a [Entry<'a>]) -> Vec<&'a Event<'a>> {
    let event = |entry: &'a Entry<'a>| match entry {
        Entry::Event(event) => Some(event),
        Entry::Span(_) => None,
    };
    entries.iter().filter_map(event).collect()
}

fn span<'a>(entries: &'a [Entry<'a>], name: &str) -> &'a Span<'a> {
    let span = |entry: &'a Entry<'a>| match entry {
        Entry::Span(span) if span.name == name => Some(span),
        _ => None,
    };
    entries.iter().find_map(span).expect("the span was written")
}
