//! The export thread: its start, its end, and who may speak to it.

use std::any::Any;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::config::Config;
use super::drops::{Drops, Reason};
use super::environment::Settings;
use super::exporters::Exporters;
use super::logs::LogRecord;
use super::metrics::Frame;
use super::pump::Pump;
use super::queue::{Accounts, Limits, Payload, Queue};
use super::reporter::Reporter;
use super::resource::Identity;
use super::ring::Ring;
use super::sender::Sender;
use super::shared::Shared;
use super::source::{Exportable, Kept, Source};
use super::tls::TlsError;
use crate::ledger::scope::TELEMETRY;
use crate::ledger::{Ledger, Unit};
use crate::lock::Mutex;
use crate::metrics::Registry;
use crate::record::model::{Finished, TraceId};

/// Starts the export thread.
pub struct Exporter;

/// Owns the export thread. When it is dropped without [`Self::shutdown`] the thread ends at once,
/// with whatever waits.
pub struct Handle {
    shared: Arc<Shared>,
    /// Where logs are not exported they are not kept.
    logs: bool,
    stop: watch::Sender<Option<Instant>>,
    ended: mpsc::Receiver<()>,
    thread: JoinHandle<()>,
}

/// A record of the ring.
pub struct Found(Arc<Kept>);

/// What waits in the queue, or is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Spans and logs.
    pub units: usize,
    pub bytes: usize,
}

/// How the exporter ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Spans and logs that were not delivered, counted as dropped.
    pub units: usize,
    /// Whether the thread had ended by then.
    pub ended: bool,
}

/// The exporter cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the exporter's certificates")]
    Tls(#[source] TlsError),
    #[error("the exporter's settings")]
    Build(#[source] ExporterBuildError),
    #[error("the exporter's thread")]
    Thread(#[source] std::io::Error),
}

// === impl Exporter ===

impl Exporter {
    /// Starts a thread that sends what `records` gives, and the metrics of `registry`, until its
    /// handle is shut down.
    ///
    /// # Errors
    /// When a certificate cannot be used or the thread cannot be started. A collector that cannot
    /// be reached is no error.
    pub fn start(
        settings: Settings,
        identity: &Identity,
        records: Box<dyn Source>,
        ledger: &Ledger,
        registry: &Registry,
    ) -> Result<Handle, StartError> {
        let Settings { traces, logs, metrics, resource, config } = settings;
        let resource = identity.resource(&resource);
        let scope = InstrumentationScope::builder("ferrule").with_version(identity.version).build();
        let drops = Drops::new(registry);
        let shared = share(&config, &drops, ledger);
        let mut exporters = Exporters::new(config.batch_bytes, ledger);
        let traces = traces.map(|target| exporters.spans(target, &resource)).transpose()?;
        let logs = logs.map(|target| exporters.logs(target, &resource)).transpose()?;
        let metrics = metrics.map(|target| exporters.transport(target)).transpose()?;

        let (stop, stopping) = watch::channel(None);
        let (flush, flushing) = watch::channel(false);
        let exports_logs = logs.is_some();
        let pump = Pump {
            source: records,
            shared: shared.clone(),
            exports: traces.is_some(),
            poll: config.poll,
            stop: stopping.clone(),
            flush,
        };
        let reporter = metrics.map(|transport| Reporter {
            registry: registry.clone(),
            transport,
            frame: frame(&resource, &scope),
            config: config.clone(),
            drops: drops.clone(),
            flush: flushing.clone(),
        });
        let sender =
            Sender { shared: shared.clone(), config, drops, scope, traces, logs, flush: flushing };
        let (end, ended) = mpsc::channel();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // They resolve names, and one that hangs must not bring a thread with each attempt.
        runtime.enable_all().max_blocking_threads(2);
        // Everything on its threads is for telemetry, also what libraries spawn there: a connection
        // frees the message that it was given.
        runtime.on_thread_park(|| TELEMETRY.take_what_is_there());
        runtime.on_thread_stop(|| TELEMETRY.take_what_is_there());
        let runtime = runtime.build().map_err(StartError::Thread)?;
        let thread = std::thread::Builder::new().name("ferrule-telemetry".to_owned());
        let thread = thread.spawn(move || {
            let _working = TELEMETRY.enter();
            runtime.block_on(run(pump, sender, reporter, stopping));
            // It must not wait for a name that is being resolved.
            runtime.shutdown_background();
            drop(end);
        });
        let thread = thread.map_err(StartError::Thread)?;
        Ok(Handle { shared, logs: exports_logs, stop, ended, thread })
    }
}

/// Everything at once, until it is done or the deadline has come.
async fn run(
    pump: Pump,
    sender: Sender,
    reporter: Option<Reporter>,
    mut stop: watch::Receiver<Option<Instant>>,
) {
    let report = async {
        if let Some(reporter) = reporter {
            reporter.run().await;
        }
    };
    let work = async { tokio::join!(pump.run(), sender.run(), report) };
    let deadline = async {
        let deadline = stop.wait_for(Option::is_some).await.map(|deadline| *deadline);
        // Without one the handle was dropped: nobody waits for anything.
        if let Ok(Some(deadline)) = deadline {
            tokio::time::sleep_until(deadline).await;
        }
    };
    tokio::select! {
        _ = work => (),
        () = deadline => (),
    }
}

// === impl Handle ===

impl Handle {
    /// Sends one log record; it waits in the same queue as everything else.
    pub fn log(&self, record: LogRecord) {
        if self.logs {
            self.shared.queue.lock().push(Payload::Log(Arc::new(record)), Instant::now());
            self.shared.arrived.notify_one();
        }
    }

    /// The records of a trace that are still in the ring, oldest first.
    pub fn find(&self, trace: TraceId) -> Vec<Found> {
        self.shared.ring.lock().find(trace).into_iter().map(Found).collect()
    }

    /// What has been neither delivered nor dropped.
    pub fn held(&self) -> Held {
        let queue = self.shared.queue.lock();
        Held { units: queue.held(), bytes: queue.bytes() }
    }

    /// Takes the last records, sends what can be sent `within` that time, and ends the thread.
    ///
    /// Blocks for no longer than `within`, whatever the collector does.
    pub fn shutdown(self, within: Duration) -> Left {
        // A tenth is left for the thread to end in.
        let deadline = Instant::now() + within.mul_f64(0.9);
        self.stop.send_replace(Some(deadline));
        let waited = self.ended.recv_timeout(within);
        let ended = matches!(waited, Err(mpsc::RecvTimeoutError::Disconnected));
        if ended && self.thread.join().is_err() {
            tracing::error!("the export thread panicked");
        }
        let units = self.shared.queue.lock().clear(Reason::Shutdown);
        Left { units, ended }
    }
}

impl Found {
    pub fn record(&self) -> &dyn Exportable {
        &*self.0.record
    }

    /// As the recorder left it; absent when it came from another source.
    pub fn finished(&self) -> Option<&Finished> {
        let record: &dyn Any = &*self.0.record;
        record.downcast_ref()
    }
}

fn share(config: &Config, drops: &Drops, ledger: &Ledger) -> Arc<Shared> {
    let accounts = Accounts {
        queue: ledger.open("telemetry_queue", Unit::Bytes, config.queue_bytes as u64),
        ring: ledger.open("telemetry_ring", Unit::Bytes, config.ring_bytes as u64),
    };
    let ring = Ring::new(config.ring_bytes, accounts.ring.clone());
    let limits = Limits { bytes: config.queue_bytes, units: config.queue_units };
    let queue = Queue::new(limits, drops.clone(), accounts);
    let (queue, ring) = (Mutex::new("export queue", queue), Mutex::new("record ring", ring));
    Arc::new(Shared { queue, ring, arrived: Notify::new() })
}

fn frame(resource: &Resource, scope: &InstrumentationScope) -> Frame {
    let ResourceAttributesWithSchema { attributes, schema_url } = resource.into();
    Frame {
        resource: ProtoResource { attributes: attributes.0, ..Default::default() },
        schema_url: schema_url.unwrap_or_default(),
        scope: (scope, None).into(),
    }
}
