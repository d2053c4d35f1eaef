//! The queue in front of the exporter: bounded in bytes, drops its oldest, counts every drop.
//!
//! What is being sent or waits to be sent again stays in it, at the front, so there is one bound
//! for everything that has not been delivered. It holds records as the workers wrote them, not
//! spans: the encoding exists only while it is being sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::drops::{Drops, Reason};
use super::logs::LogRecord;
use super::source::Kept;
use crate::ledger::Account;

/// The queue. Its owner puts it behind a lock that no worker takes.
pub(super) struct Queue {
    items: VecDeque<Item>,
    /// So many items at the front are being sent.
    claimed: usize,
    /// So many units of them have been delivered, or refused by the collector.
    settled: usize,
    bytes: usize,
    units: usize,
    limits: Limits,
    drops: Drops,
    accounts: Accounts,
}

/// What bounds a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: usize,
    /// Spans and log records; no bound of its own when absent.
    pub(super) units: Option<usize>,
}

/// Where a queue books its bytes, and where those of a record go that the ring still has.
#[derive(Clone)]
pub(super) struct Accounts {
    pub(super) queue: Account,
    pub(super) ring: Account,
}

/// Something to be sent.
#[derive(Clone)]
pub(super) enum Payload {
    Record(Arc<Kept>),
    Log(Arc<LogRecord>),
}

/// The signal of the protocol a payload belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    Traces,
    Logs,
    Metrics,
}

struct Item {
    payload: Payload,
    bytes: usize,
    units: usize,
    since: Instant,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(limits: Limits, drops: Drops, accounts: Accounts) -> Self {
        Self {
            items: VecDeque::new(),
            claimed: 0,
            settled: 0,
            bytes: 0,
            units: 0,
            limits,
            drops,
            accounts,
        }
    }

    /// Appends `payload` and drops the oldest that are not being sent until everything fits.
    pub(super) fn push(&mut self, payload: Payload, now: Instant) {
        let (bytes, units) = (payload.bytes() + size_of::<Item>(), payload.units());
        while !self.has_room(bytes, units) {
            if self.items.len() == self.claimed {
                // It is larger than what the batch on its way leaves free.
                self.turned_away(units);
                return;
            }
            if let Some(oldest) = self.items.remove(self.claimed) {
                self.forget(&oldest);
                self.turned_away(oldest.units);
            }
        }
        self.bytes += bytes;
        self.units += units;
        match &payload {
            Payload::Record(kept) => {
                kept.enter_queue(&self.accounts.queue);
                self.accounts.queue.take(size_of::<Item>());
            }
            Payload::Log(_) => self.accounts.queue.take(bytes),
        }
        self.items.push_back(Item { payload, bytes, units, since: now });
    }

    /// Marks a batch at the front as being sent: items of one signal with at most so many `units`
    /// and `bytes` together, but at least one item. The previous batch has to be released.
    pub(super) fn claim(&mut self, units: usize, bytes: usize) -> Option<(Signal, Vec<Payload>)> {
        debug_assert_eq!(self.claimed, 0, "one batch at a time");
        let signal = self.items.front()?.payload.signal();
        let (mut first, mut units, mut bytes) = (true, Some(units), Some(bytes));
        let batch: Vec<_> = (self.items.iter())
            .take_while(|item| {
                units = units.and_then(|room| room.checked_sub(item.units));
                bytes = bytes.and_then(|room| room.checked_sub(item.bytes));
                let fits = units.is_some() && bytes.is_some();
                let first = std::mem::take(&mut first);
                item.payload.signal() == signal && (fits || first)
            })
            .map(|item| item.payload.clone())
            .collect();
        self.claimed = batch.len();
        Some((signal, batch))
    }

    /// `units` of the claimed batch need not be held any more, whatever became of them.
    pub(super) fn settle(&mut self, units: usize) {
        self.settled += units;
    }

    /// Removes the claimed batch; returns how many of its units were never settled.
    pub(super) fn release(&mut self) -> usize {
        let mut units = 0;
        for _ in 0..std::mem::take(&mut self.claimed) {
            if let Some(item) = self.items.pop_front() {
                self.forget(&item);
                units += item.units;
            }
        }
        if self.items.is_empty() {
            // A burst must not leave its slots behind.
            self.items.shrink_to(64);
        }
        units - std::mem::take(&mut self.settled).min(units)
    }

    /// Removes everything; returns how many units that were, and counts them as dropped.
    pub(super) fn clear(&mut self, reason: Reason) -> usize {
        self.claimed = self.items.len();
        let left = self.release();
        self.drops.count(reason, left);
        left
    }

    /// Units that are neither delivered nor dropped.
    pub(super) fn held(&self) -> usize {
        self.units.saturating_sub(self.settled)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long the first item that is not being sent has waited.
    pub(super) fn waited(&self, now: Instant) -> Option<Duration> {
        self.items.get(self.claimed).map(|item| now.saturating_duration_since(item.since))
    }

    fn has_room(&self, bytes: usize, units: usize) -> bool {
        let units_max = self.limits.units.unwrap_or(usize::MAX);
        self.bytes + bytes <= self.limits.bytes && self.units + units <= units_max
    }

    fn turned_away(&self, units: usize) {
        self.drops.count(Reason::QueueFull, units);
        self.accounts.queue.drop_one();
    }

    fn forget(&mut self, item: &Item) {
        self.bytes -= item.bytes;
        self.units -= item.units;
        match &item.payload {
            Payload::Record(kept) => {
                kept.leave_queue(&self.accounts.queue, &self.accounts.ring);
                self.accounts.queue.give_back(size_of::<Item>());
            }
            Payload::Log(_) => self.accounts.queue.give_back(item.bytes),
        }
    }
}

// === impl Payload, Signal ===

impl Payload {
    fn bytes(&self) -> usize {
        match self {
            Self::Record(kept) => kept.bytes,
            Self::Log(log) => log.bytes(),
        }
    }

    pub(super) fn units(&self) -> usize {
        match self {
            Self::Record(kept) => kept.spans,
            Self::Log(_) => 1,
        }
    }

    fn signal(&self) -> Signal {
        match self {
            Self::Record(_) => Signal::Traces,
            Self::Log(_) => Signal::Logs,
        }
    }
}

impl Signal {
    pub const ALL: [Self; 3] = [Self::Traces, Self::Logs, Self::Metrics];

    pub fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
        }
    }
}

#[cfg(test)]
mod tests;
