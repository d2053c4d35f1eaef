//! What was given up, counted by reason.

use crate::metrics::{Counter, Metric, Registry, catalogue};

use super::queue::Signal;

/// Why something will never arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Newer records needed its room.
    QueueFull,
    /// The collector refused it for good, in part or whole.
    Rejected,
    /// It was sent again and again for [`super::Config::give_up_after`].
    RetriesExhausted,
    /// The process stopped before it could be sent.
    Shutdown,
}

/// The counters of the exporter. Units are spans and log records; metrics are not counted as
/// dropped, because the next report of a cumulative value says all that a lost one said.
#[derive(Clone)]
pub(super) struct Drops {
    dropped: [Counter; 4],
    sent: [Counter; 3],
    failed: [Counter; 3],
}

// === impl Reason ===

impl Reason {
    pub const ALL: [Self; 4] =
        [Self::QueueFull, Self::Rejected, Self::RetriesExhausted, Self::Shutdown];

    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Rejected => "rejected",
            Self::RetriesExhausted => "retries_exhausted",
            Self::Shutdown => "shutdown",
        }
    }
}

// === impl Drops ===

impl Drops {
    pub(super) fn new(registry: &Registry) -> Self {
        let signal = |metric: &'static Metric| {
            Signal::ALL.map(|signal| metric.counter_in(registry, &[signal.name()]))
        };
        Self {
            dropped: Reason::ALL
                .map(|reason| catalogue::TELEMETRY_DROPPED.counter_in(registry, &[reason.name()])),
            sent: signal(&catalogue::TELEMETRY_SENT),
            failed: signal(&catalogue::TELEMETRY_FAILURES),
        }
    }

    pub(super) fn count(&self, reason: Reason, units: usize) {
        self.dropped[reason as usize].add(units as u64);
    }

    pub(super) fn sent(&self, signal: Signal, units: usize) {
        self.sent[signal as usize].add(units as u64);
    }

    pub(super) fn failed(&self, signal: Signal) {
        self.failed[signal as usize].increment();
    }
}
