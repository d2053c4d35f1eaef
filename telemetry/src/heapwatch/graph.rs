//! Bounded histories: one of a stack, with ever coarser steps, and the allocator's totals.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::memory::Memory;

/// How something grew since it was first seen, in at most [`POINTS`] equal steps.
///
/// When it is full every other point goes and the step doubles, so the whole life is always there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    pub step_ms: u64,
    pub bytes: Vec<u64>,
    #[serde(skip)]
    next_ms: u64,
}

/// Points of a graph.
pub(super) const POINTS: usize = 64;

pub(super) const GRAPH_BYTES: usize = size_of::<Graph>() + POINTS * size_of::<u64>();

/// The allocator's totals at one moment, with what was served until then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    pub at_ms: u64,
    pub allocated: u64,
    pub active: u64,
    pub resident: u64,
    pub retained: u64,
    pub requests: u64,
}

/// The last 10 minutes by the second, and the last day by 15 seconds.
pub(super) struct Totals {
    seconds: VecDeque<Total>,
    quarters: VecDeque<Total>,
}

const SECONDS: usize = 600;
const QUARTERS: usize = 5_760;
const QUARTER_MS: u64 = 15_000;

pub(super) const TOTALS_BYTES: usize = (SECONDS + QUARTERS) * size_of::<Total>();

// === impl Graph ===

impl Graph {
    pub(super) fn new(step_ms: u64) -> Self {
        Self { step_ms, bytes: Vec::with_capacity(POINTS), next_ms: 0 }
    }

    pub(super) fn tick(&mut self, now_ms: u64, bytes: u64) {
        if now_ms < self.next_ms {
            return;
        }
        if self.bytes.len() == POINTS {
            let mut index = 0;
            self.bytes.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.step_ms *= 2;
        }
        self.bytes.push(bytes);
        self.next_ms = now_ms + self.step_ms;
    }
}

// === impl Totals ===

impl Totals {
    pub(super) fn new() -> Self {
        Self {
            seconds: VecDeque::with_capacity(SECONDS),
            quarters: VecDeque::with_capacity(QUARTERS),
        }
    }

    pub(super) fn tick(&mut self, at_ms: u64, memory: &Memory, requests: u64) {
        let Memory { allocated, active, resident, retained, .. } = *memory;
        let total = Total {
            at_ms,
            allocated: allocated as u64,
            active: active as u64,
            resident: resident as u64,
            retained: retained as u64,
            requests,
        };
        let due = |ring: &VecDeque<Total>, step| {
            ring.back().is_none_or(|last| at_ms.saturating_sub(last.at_ms) >= step)
        };
        if due(&self.seconds, 990) {
            push(&mut self.seconds, SECONDS, total);
        }
        if due(&self.quarters, QUARTER_MS) {
            push(&mut self.quarters, QUARTERS, total);
        }
    }

    /// Requests that had been served `ago_ms` before `now_ms`, as well as is known.
    pub(super) fn requests_before(&self, now_ms: u64, ago_ms: u64) -> u64 {
        let at_ms = now_ms.saturating_sub(ago_ms);
        let within = |ring: &VecDeque<Total>| {
            let index = ring.partition_point(|total| total.at_ms <= at_ms);
            index.checked_sub(1).map(|index| {
                // Between two readings the rate is taken to be constant.
                let (before, after) = (ring[index], ring.get(index + 1));
                let Some(after) = after else { return before.requests };
                let share = (at_ms - before.at_ms) as f64 / (after.at_ms - before.at_ms) as f64;
                let more = after.requests.saturating_sub(before.requests) as f64;
                before.requests + (more * share) as u64
            })
        };
        within(&self.seconds)
            .or_else(|| within(&self.quarters))
            .or_else(|| self.quarters.front().map(|total| total.requests))
            .unwrap_or_default()
    }

    pub(super) fn seconds(&self) -> Vec<Total> {
        self.seconds.iter().copied().collect()
    }

    pub(super) fn quarters(&self) -> Vec<Total> {
        self.quarters.iter().copied().collect()
    }
}

fn push(ring: &mut VecDeque<Total>, max: usize, total: Total) {
    if ring.len() == max {
        ring.pop_front();
    }
    ring.push_back(total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_keeps_a_whole_life_in_its_points() {
        let mut graph = Graph::new(1_000);
        (0..1_000).for_each(|second| graph.tick(second * 1_000, second));
        assert!(graph.bytes.len() <= POINTS && graph.bytes.len() > POINTS / 2);
        assert_eq!((graph.step_ms, graph.bytes[0], graph.bytes[1]), (16_000, 0, 16));
        assert!(graph.bytes.is_sorted());
    }

    #[test]
    fn totals_forget_what_is_older_than_a_day_and_know_what_was_served() {
        let mut totals = Totals::new();
        for second in 0..100_000_u64 {
            totals.tick(second * 1_000, &Memory::default(), second * 10);
        }
        assert_eq!((totals.seconds.len(), totals.quarters.len()), (SECONDS, QUARTERS));
        let now = 99_999_000;
        assert_eq!(totals.requests_before(now, 0), 999_990);
        assert_eq!(totals.requests_before(now, 60_500), 999_385);
        assert_eq!(totals.requests_before(now, 3_600_000), 963_990);
        // Older than everything: the oldest.
        assert_eq!(totals.requests_before(now, u64::MAX), totals.quarters[0].requests);
        assert_eq!(Totals::new().requests_before(now, 1), 0);
    }
}
