//! Takes batches from the queue and sends them, one at a time, until they are delivered or lost.

use std::sync::Arc;

use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{LogExporter, SpanExporter};
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff;
use super::config::Config;
use super::convert;
use super::drops::{Drops, Reason};
use super::health::Health;
use super::logs::Maker;
use super::outcome::Outcome;
use super::queue::{Payload, Signal};
use super::shared::Shared;
use super::source::Kept;
use super::transport::Transport;

/// Sends spans and logs.
pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) config: Config,
    pub(super) drops: Drops,
    pub(super) scope: InstrumentationScope,
    pub(super) traces: Option<(SpanExporter, Arc<Transport>)>,
    pub(super) logs: Option<(LogExporter, Arc<Transport>)>,
    /// True when nothing more will come: send what there is and do not wait.
    pub(super) flush: watch::Receiver<bool>,
}

/// The collector fails, and there is no time left to try again.
struct Stopped;

// === impl Sender ===

impl Sender {
    /// Until there is nothing left to flush, or no point in trying.
    pub(super) async fn run(mut self) {
        let mut health = Health::default();
        let maker = Maker::new(self.scope.clone());
        while let Some((signal, batch)) = self.next_batch().await {
            let sent = match signal {
                Signal::Traces => self.deliver(signal, &Spans(&batch), &mut health).await,
                _ => {
                    self.deliver(signal, &Logs { batch: &batch, maker: &maker }, &mut health).await
                }
            };
            if sent.is_err() {
                return;
            }
            self.shared.queue.lock().release();
        }
    }

    /// A batch as soon as it is full, or its first item has waited long enough.
    async fn next_batch(&mut self) -> Option<(Signal, Vec<Payload>)> {
        loop {
            let flush = *self.flush.borrow();
            let wait = {
                let mut queue = self.shared.queue.lock();
                let waited = queue.waited(Instant::now());
                let ready = |waited| {
                    flush
                        || waited >= self.config.schedule_delay
                        || queue.held() >= self.config.batch_spans
                };
                match waited {
                    Some(waited) if ready(waited) => {
                        let Config { batch_spans, batch_bytes, .. } = self.config;
                        return queue.claim(batch_spans, batch_bytes);
                    }
                    None if flush => return None,
                    Some(waited) => self.config.schedule_delay.saturating_sub(waited),
                    // It is woken when something comes.
                    None => IDLE,
                }
            };
            tokio::select! {
                () = self.shared.arrived.notified() => (),
                () = tokio::time::sleep(wait) => (),
                _ = self.flush.changed(), if !flush => (),
            }
        }
    }

    /// Sends the whole batch, in as many requests as its size needs, each as often as it takes.
    async fn deliver(
        &mut self,
        signal: Signal,
        batch: &impl Batch,
        health: &mut Health,
    ) -> Result<(), Stopped> {
        let total = batch.units();
        let began = Instant::now();
        let (mut done, mut failures) = (0, 0);
        while done < total {
            let (units, outcome) = batch.send(self, done).await;
            let asked = match outcome {
                Outcome::Delivered { rejected } => {
                    let rejected = usize::try_from(rejected).unwrap_or(units).min(units);
                    self.drops.sent(signal, units - rejected);
                    self.settle(Reason::Rejected, units, rejected);
                    health.succeeded(signal, rejected);
                    (done, failures) = (done + units, 0);
                    continue;
                }
                Outcome::Never { failure } => {
                    self.drops.failed(signal);
                    self.settle(Reason::Rejected, units, units);
                    health.lost(signal, failure, units);
                    (done, failures) = (done + units, 0);
                    continue;
                }
                Outcome::Again { failure, after } => {
                    self.drops.failed(signal);
                    health.failed(signal, failure);
                    after
                }
            };
            if *self.flush.borrow() {
                return Err(Stopped);
            }
            let wait = backoff::wait(&self.config, failures, asked, backoff::random());
            if began.elapsed() + wait > self.config.give_up_after {
                self.settle(Reason::RetriesExhausted, total - done, total - done);
                return Ok(());
            }
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(wait) => (),
                _ = self.flush.wait_for(|flush| *flush) => (),
            }
        }
        Ok(())
    }

    fn settle(&self, reason: Reason, units: usize, dropped: usize) {
        self.drops.count(reason, dropped);
        self.shared.queue.lock().settle(units);
    }
}

const IDLE: std::time::Duration = std::time::Duration::from_secs(3600);

/// Something that is sent in requests, each encoded anew for each attempt: between attempts there
/// is nothing but the records in the queue.
trait Batch {
    fn units(&self) -> usize;
    /// Sends one request with what comes after the first `done` units; says how many it held.
    async fn send(&self, sender: &Sender, done: usize) -> (usize, Outcome);
}

struct Spans<'a>(&'a [Payload]);

struct Logs<'a> {
    batch: &'a [Payload],
    maker: &'a Maker,
}

impl Batch for Spans<'_> {
    fn units(&self) -> usize {
        self.0.iter().map(Payload::units).sum()
    }

    async fn send(&self, sender: &Sender, done: usize) -> (usize, Outcome) {
        let Some((exporter, transport)) = &sender.traces else { return never(self.units() - done) };
        let spans = self.spans(sender, done);
        let units = spans.len();
        let bytes = spans.iter().map(convert::memory_len).sum();
        (units, transport.observe(bytes, exporter.export(spans)).await)
    }
}

impl Spans<'_> {
    /// The next spans that fit one request; at least one.
    fn spans(&self, sender: &Sender, done: usize) -> Vec<SpanData> {
        // Room for the resource and the scope.
        const AROUND: usize = 4 * 1024;
        let Config { batch_spans, batch_bytes, .. } = sender.config;
        let mut room = batch_bytes.saturating_sub(AROUND);
        let mut request: Vec<SpanData> = Vec::new();
        let mut skip = done;
        for kept in self.0.iter().filter_map(Payload::record) {
            if skip >= kept.spans {
                skip -= kept.spans;
                continue;
            }
            let spans = convert::spans(&*kept.record, &sender.scope, batch_bytes / 2);
            for span in spans.into_iter().skip(std::mem::take(&mut skip)) {
                let len = convert::wire_len(&span);
                if !request.is_empty() && (len > room || request.len() == batch_spans) {
                    return request;
                }
                room = room.saturating_sub(len);
                request.push(span);
            }
        }
        request
    }
}

impl Batch for Logs<'_> {
    fn units(&self) -> usize {
        self.batch.len()
    }

    async fn send(&self, sender: &Sender, done: usize) -> (usize, Outcome) {
        let units = self.units() - done;
        let Some((exporter, transport)) = &sender.logs else { return never(units) };
        let logs = self.batch.iter().skip(done).filter_map(Payload::log);
        let records: Vec<_> = logs.map(|log| self.maker.make(log)).collect();
        let borrowed: Vec<_> = records.iter().map(|record| (record, self.maker.scope())).collect();
        let bytes = size_of_val(records.as_slice());
        (units, transport.observe(bytes, exporter.export(LogBatch::new(&borrowed))).await)
    }
}

/// What of a signal that is not exported came into the queue.
fn never(units: usize) -> (usize, Outcome) {
    (units, Outcome::Never { failure: super::outcome::Failure::Encoding })
}

impl Payload {
    fn record(&self) -> Option<&Arc<Kept>> {
        match self {
            Self::Record(kept) => Some(kept),
            Self::Log(_) => None,
        }
    }

    fn log(&self) -> Option<&super::logs::LogRecord> {
        match self {
            Self::Log(log) => Some(log),
            Self::Record(_) => None,
        }
    }
}
