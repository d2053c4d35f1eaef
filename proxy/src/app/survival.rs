//! What a node leaves behind, however it ends: begun before anything else, closed after everything.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use telemetry::black_box::{self, BlackBox, Ending, Opened, Report, Verdict};
use telemetry::error::chain;
use telemetry::export::{LogRecord, Severity};
use telemetry::metrics::Registry;
use telemetry::sampler::{self, Readings, Sampler, Traffic};

use crate::config::{Config, Memory};
use crate::edge::Edge;
use crate::metrics::catalogue;

/// The sampler and the black box of a process. A node does without what cannot be had.
pub(super) struct Survival {
    ending: Option<Ending>,
    sampler: Option<Sampler>,
    last: Option<Arc<Report>>,
}

// === impl Survival ===

impl Survival {
    /// For a process that is one node: judges the last one and begins to write.
    pub(super) fn begin(config: &Config) -> Self {
        let storage = &config.storage.directory;
        let version = env!("CARGO_PKG_VERSION");
        match black_box::open(storage, &config.node.id.to_string(), version) {
            Ok(Opened { black_box, last }) => {
                say(&last);
                let black_box = Arc::new(black_box);
                black_box.install();
                let sampler = sample(&config.memory, Some(black_box.clone()));
                if let Some(sampler) = &sampler {
                    let readings = sampler.readings().clone();
                    if let Err(error) = black_box::watch_allocations(black_box.clone(), readings) {
                        let error = chain(&error);
                        tracing::warn!(
                            error,
                            "who allocates while memory is short is not recorded"
                        );
                    }
                }
                Self { ending: Some(Ending::new(black_box)), sampler, last: Some(Arc::new(last)) }
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "this process keeps no black box");
                Self { ending: None, sampler: sample(&config.memory, None), last: None }
            }
        }
    }

    /// For a node that shares its process: nothing is kept on disk.
    pub(super) fn without_black_box(config: &Config) -> Self {
        Self { ending: None, sampler: sample(&config.memory, None), last: None }
    }

    /// How the last process ended, where that is known.
    pub(super) fn last(&self) -> Option<Arc<Report>> {
        self.last.clone()
    }

    /// How full memory is; absent when nothing looks.
    pub(super) fn readings(&self) -> Option<&Arc<Readings>> {
        self.sampler.as_ref().map(Sampler::readings)
    }

    /// The verdict on the last exit as a log record, for who collects them.
    pub(super) fn last_exit(&self) -> Option<LogRecord> {
        let last = self.last.as_ref()?;
        let severity = match last.verdict {
            Verdict::FirstStart | Verdict::Clean | Verdict::Running | Verdict::Reboot => {
                Severity::Info
            }
            Verdict::Killed | Verdict::Unreadable => Severity::Warn,
            Verdict::OutOfMemory | Verdict::Panic => Severity::Error,
        };
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut attributes = vec![("ferrule.last_exit", last.verdict.label().to_owned())];
        attributes.extend(last.memory_line().map(|memory| ("ferrule.memory", memory)));
        attributes.extend(last.culprit().map(|stack| ("ferrule.stack", stack.to_string())));
        let body = format!("last exit: {}: {}", last.verdict.words(), last.why);
        Some(LogRecord { severity, at, body, attributes })
    }

    /// Lets the sampler see what the node does, and everybody what the sampler sees.
    pub(super) fn attach(&self, edge: &Edge) {
        if let Some(sampler) = &self.sampler {
            let (connections, requests) = (edge.connections.clone(), edge.requests.clone());
            sampler.readings().watch_traffic(move || Traffic {
                connections: u64::from(connections.open()),
                requests: u64::from(requests.in_flight()),
            });
            sampler.readings().export(&edge.registry);
        }
        if let Some(last) = &self.last {
            export(last.verdict, &edge.registry);
        }
    }

    /// The process has done what it was asked to: the last thing it says.
    pub(super) fn end(mut self) {
        self.sampler = None;
        if let Some(ending) = self.ending {
            ending.clean();
        }
    }

    /// The node could not start: as if it had not tried.
    pub(super) fn withdraw(mut self) {
        self.sampler = None;
        if let Some(ending) = self.ending {
            ending.withdraw();
        }
    }
}

fn sample(memory: &Memory, black_box: Option<Arc<BlackBox>>) -> Option<Sampler> {
    Sampler::start(&sampler::Config { limit: memory.limit }, black_box)
        .inspect_err(|error| tracing::warn!(%error, "memory is not watched"))
        .ok()
}

/// One line: an end that somebody should look at is a warning.
fn say(last: &Report) {
    let verdict = last.verdict.words();
    let why = &last.why;
    let memory = last.memory_line().unwrap_or_default();
    let last_seen = last.life.as_ref().map(|life| life.last_seen.as_str()).unwrap_or_default();
    match last.verdict {
        Verdict::FirstStart => tracing::info!(verdict, "last exit"),
        Verdict::Clean | Verdict::Running | Verdict::Reboot => {
            tracing::info!(verdict, why, last_seen, "last exit");
        }
        Verdict::Killed | Verdict::Unreadable => {
            tracing::warn!(verdict, why, last_seen, memory, "last exit");
        }
        Verdict::OutOfMemory => {
            let culprit = last.culprit().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(verdict, why, last_seen, memory, culprit, "last exit");
        }
        Verdict::Panic => {
            let panic = last.life.as_ref().and_then(|life| life.panic.as_ref());
            let location = panic.map(|panic| panic.location.as_str()).unwrap_or_default();
            tracing::warn!(verdict, why, last_seen, location, "last exit");
        }
    }
}

/// `ferrule_last_exit{verdict}`: 1 for what it was, 0 for what it was not.
fn export(last: Verdict, registry: &Registry) {
    for verdict in Verdict::ALL {
        let value = if verdict == last { 1.0 } else { 0.0 };
        catalogue::LAST_EXIT.gauge_read_in(registry, &[verdict.label()], move || value);
    }
}
