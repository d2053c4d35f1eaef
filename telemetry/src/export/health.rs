//! Says when a collector begins to fail and when it is back, once each.

use super::outcome::Failure;
use super::queue::Signal;

/// Of the collectors of one sender.
#[derive(Default)]
pub(super) struct Health {
    failing: [bool; 3],
    losing: [bool; 3],
}

// === impl Health ===

impl Health {
    pub(super) fn succeeded(&mut self, signal: Signal, rejected: usize) {
        let name = signal.name();
        if std::mem::take(&mut self.failing[signal as usize]) {
            tracing::info!(signal = name, "the collector accepts again");
        }
        if rejected > 0 && !std::mem::replace(&mut self.losing[signal as usize], true) {
            tracing::warn!(signal = name, rejected, "the collector rejects a part");
        }
        if rejected == 0 {
            self.losing[signal as usize] = false;
        }
    }

    pub(super) fn failed(&mut self, signal: Signal, failure: Failure) {
        if !std::mem::replace(&mut self.failing[signal as usize], true) {
            tracing::warn!(signal = signal.name(), %failure, "the collector fails, trying again");
        }
    }

    pub(super) fn lost(&mut self, signal: Signal, failure: Failure, units: usize) {
        if !std::mem::replace(&mut self.losing[signal as usize], true) {
            tracing::warn!(signal = signal.name(), %failure, units, "the collector rejects");
        }
    }
}
