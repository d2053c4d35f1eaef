//! Who reads what the workers write down: the exporter, and the writer of the access log.
//!
//! Both are threads of their own, started before the first request and ended after the last, so that
//! the drain itself is reported. Requests wait for neither.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use telemetry::access_log::AccessLog;
use telemetry::export::{self, Exporter, Handle, Identity, Settings};
use telemetry::record::{Finished, Outboxes, TraceId};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::edge::Edge;

/// The running threads. Control's only: nothing here is touched by a worker.
pub(super) struct Observers {
    /// Absent once they have ended.
    running: Mutex<Option<Running>>,
}

struct Running {
    exporter: Handle,
    access_log: Option<Writer>,
}

/// Why they cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Settings(Vec<export::Problem>),
    #[error("the exporter cannot start")]
    Exporter(#[source] export::StartError),
    #[error("the access log cannot be opened")]
    AccessLog(#[source] io::Error),
}

/// Longest that the end of the node waits for a collector.
const SHUTDOWN: Duration = Duration::from_secs(2);

// === impl Observers ===

impl Observers {
    /// Starts what the configuration and the environment ask for.
    ///
    /// # Errors
    ///
    /// When a value of either cannot be used, or a thread or file cannot be had. A collector that is
    /// away is no error.
    pub(super) fn start(edge: &Arc<Edge>) -> Result<Self, ObserveError> {
        let config = &edge.config;
        let environment = |name: &str| std::env::var_os(name);
        let settings = config.telemetry.otlp.resolve(&environment);
        let settings = settings.map_err(ObserveError::Settings)?;
        let exports = settings.as_ref().is_some_and(Settings::has_traces);
        let settings = settings.unwrap_or_else(|| Settings::local(&config.telemetry.otlp));
        let identity = Identity::here(
            config.node.id.as_str(),
            config.node.region.as_str(),
            env!("CARGO_PKG_VERSION"),
        );
        let records = Box::new(edge.records.outboxes());
        let exporter = Exporter::start(settings, &identity, records, &edge.ledger, &edge.registry);
        let exporter = exporter.map_err(ObserveError::Exporter)?;
        edge.records.want_exports(exports);
        let access_log = match &config.telemetry.access_log {
            None => None,
            Some(config) => {
                let log = AccessLog::open(config, &edge.registry, &edge.ledger)
                    .map_err(ObserveError::AccessLog)?;
                edge.records.want_access_log(true);
                Some(Writer::start(log, edge.records.ended()).map_err(ObserveError::AccessLog)?)
            }
        };
        Ok(Self { running: Mutex::new(Some(Running { exporter, access_log })) })
    }

    /// Calls `show` with the segments of a record that is still in the node's ring.
    pub(super) fn with_record<T>(
        &self,
        trace: TraceId,
        show: impl FnOnce(&[&Finished]) -> T,
    ) -> Option<T> {
        let found = self.running.lock().as_ref()?.exporter.find(trace);
        let segments: Vec<&Finished> = found.iter().filter_map(export::Found::finished).collect();
        (!segments.is_empty()).then(|| show(&segments))
    }

    /// Sends one log record to the collector.
    pub(super) fn log(&self, record: export::LogRecord) {
        if let Some(running) = &*self.running.lock() {
            running.exporter.log(record);
        }
    }

    /// Takes effect within [`FLUSH`]; without an access log there is nothing to do.
    fn reopen_access_log(&self) {
        let running = self.running.lock();
        if let Some(writer) = running.as_ref().and_then(|running| running.access_log.as_ref()) {
            writer.reopen.store(true, Relaxed);
        }
    }

    /// Writes and sends what there is, for at most 2 s.
    pub(super) fn end(&self) {
        let Some(Running { exporter, access_log }) = self.running.lock().take() else { return };
        drop(access_log);
        let left = exporter.shutdown(SHUTDOWN);
        if left.units > 0 || !left.ended {
            tracing::warn!(left = left.units, ended = left.ended, "telemetry is not delivered");
        }
    }
}

/// Opens the access log by its name again whenever the process is told that it was rotated, by
/// SIGHUP, until `stop`. Without this the signal would end the process.
pub(super) async fn follow_hangup(observers: Arc<Observers>, stop: CancellationToken) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        tracing::warn!(
            "SIGHUP cannot be followed; the access log is looked for every second anyway"
        );
        return stop.cancelled().await;
    };
    while stop.run_until_cancelled(hangup.recv()).await.flatten().is_some() {
        observers.reopen_access_log();
    }
    stop.cancelled().await;
}

/// The thread that writes the access log; dropping it writes what is left.
struct Writer {
    stop: Arc<AtomicBool>,
    reopen: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Longest that a line waits to be written.
const FLUSH: Duration = Duration::from_millis(200);

impl Writer {
    fn start(mut log: AccessLog, mut outboxes: Outboxes) -> io::Result<Self> {
        let (stop, reopen) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (ended, rotated) = (stop.clone(), reopen.clone());
        let run = move || {
            loop {
                // Looked at first: what was written down before the end is written.
                let last = ended.load(Relaxed);
                let now = Instant::now();
                while let Some(wide) = outboxes.pop_wide() {
                    log.write(&wide, now);
                }
                if rotated.swap(false, Relaxed) {
                    log.reopen(now);
                    tracing::info!("the access log is opened again");
                }
                log.flush(now);
                if last {
                    return;
                }
                outboxes.wait(FLUSH);
            }
        };
        let thread = thread::Builder::new().name("access-log".to_owned()).spawn(run)?;
        Ok(Self { stop, reopen, thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // a panic has been told by its hook
        }
    }
}
