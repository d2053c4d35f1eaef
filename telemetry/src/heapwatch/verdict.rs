//! Whether a stack leaks: statistics of old blocks, without a clock or a table.
//!
//! The memory of a proxy grows for good reasons: load rises, caches fill, connections live for hours.
//! So nothing here looks at how much there is. A block is *promoted* when it reaches an age `A`, and
//! *exits* when it ends after that. A stack leaks when, over a window `W`,
//!
//! 1. at least 30 samples were promoted,
//! 2. promotions exceed exits by five standard deviations (both are Poisson, so their difference is
//!    Skellam, with the sum as its variance),
//! 3. the excess is more than 1 MiB per hour,
//! 4. it grew in each sixth of the window,
//! 5. and at the exit rate that the window allows for (its upper bound at 95 %), the stack would level
//!    out at more than four times of what is there,
//! 6. and all of this held for an eighth of the window.
//!
//! By simulation of 24 to 48 hours with a load that swings by 60 % (the tests repeat the scenarios),
//! request-scoped memory, long connections, a crowd, a hash table that doubles and hourly reloads are
//! called neither probable nor leak; 64 B per request at 1,000 requests/s is found on every scale.

use std::collections::VecDeque;

use super::profile::{Profile, Scale, State};
use super::stacks::SCALES;

/// Points of one window: this many spans, and one point more.
const SPANS: usize = 24;
const SUB_WINDOWS: usize = 6;

const PROMOTED_MIN: f64 = 30.0;
const Z_MIN: f64 = 5.0;
const BYTES_PER_HOUR_MIN: f64 = (1 << 20) as f64;
const PLATEAU_MIN: f64 = 4.0;

/// What is known of a stack on one scale at one moment. Counters only rise.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Point {
    pub(super) at_ms: u64,
    /// Samples that are alive and older than the scale's age, and the bytes they stand for: as set
    /// aside by the allocator, and as asked for by the program.
    pub(super) old_samples: u64,
    pub(super) old_bytes: u64,
    pub(super) old_requested: u64,
    /// Counter: samples that ended at or above the age.
    pub(super) exits: u64,
    /// Counter: requests served until `age` ago, when what is now old was allocated.
    pub(super) requests: u64,
    /// Counter: old samples times milliseconds.
    pub(super) exposure: f64,
}

/// A stack on one scale, now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) old_samples: u64,
    pub(super) old_bytes: u64,
    pub(super) old_requested: u64,
    pub(super) exits: u64,
    pub(super) requests: u64,
}

/// What a window says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Judgement {
    pub(super) grows: bool,
    pub(super) bytes_per_hour: f64,
    pub(super) z: f64,
}

/// What is thought of a stack, and how fast it grows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) state: State,
    pub(super) bytes_per_hour: f64,
    /// Bytes asked for and never freed, per request.
    pub(super) bytes_per_request: Option<f64>,
    /// Since when the state is what it is.
    pub(super) since_ms: u64,
}

/// One stack through time, on every scale.
#[derive(Debug)]
pub(super) struct Track {
    scales: [Course; SCALES],
    verdict: Verdict,
}

#[derive(Debug)]
struct Course {
    points: VecDeque<Point>,
    last_ms: u64,
    exposure: f64,
    /// Since when the rule holds, or since when it no longer does.
    changed_ms: u64,
    holds: bool,
    /// Held, or not held, for long enough to be believed.
    believed: bool,
    judgement: Judgement,
}

/// Memory of one track.
pub(super) const TRACK_BYTES: usize =
    size_of::<Track>() + SCALES * (SPANS + 1).next_power_of_two() * size_of::<Point>();

/// Applies rules 1 to 5 to the points of a whole window.
pub(super) fn judge(points: &VecDeque<Point>) -> Judgement {
    let (Some(first), Some(last)) = (points.front(), points.back()) else {
        return Judgement::default();
    };
    let milliseconds = last.at_ms.saturating_sub(first.at_ms) as f64;
    if points.len() <= SPANS || milliseconds <= 0.0 {
        return Judgement::default();
    }
    let difference = |after: u64, before: u64| after as f64 - before as f64;
    let excess = difference(last.old_samples, first.old_samples);
    let exited = difference(last.exits, first.exits).max(0.0);
    let promoted = excess + exited;
    let z = excess / (promoted + exited).max(1.0).sqrt();
    let hours = milliseconds / 3_600_000.0;
    let bytes_per_hour = difference(last.old_bytes, first.old_bytes) / hours;
    let grew = |part: usize| {
        let at = |part: usize| points[part * SPANS / SUB_WINDOWS].old_samples;
        at(part + 1) > at(part)
    };
    // Events are few, so the bound is that of a Poisson count: 3 when none was seen.
    let exposure = (last.exposure - first.exposure).max(1.0);
    let hazard = (exited + 3.0 + 1.64 * exited.sqrt()) / exposure;
    let plateau = promoted / milliseconds / hazard;
    let grows = promoted >= PROMOTED_MIN
        && z > Z_MIN
        && bytes_per_hour > BYTES_PER_HOUR_MIN
        && (0..SUB_WINDOWS).all(grew)
        && plateau > PLATEAU_MIN * last.old_samples as f64;
    Judgement { grows, bytes_per_hour, z }
}

/// The median slope over all pairs of points (Theil–Sen): one outlier in four does not move it.
pub(super) fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let mut slopes: Vec<f64> = points
        .clone()
        .enumerate()
        .flat_map(|(index, (x, y))| {
            points.clone().skip(index + 1).map(move |(x2, y2)| (x2 - x, y2 - y))
        })
        .filter(|(run, _)| *run > 0.0)
        .map(|(run, rise)| rise / run)
        .collect();
    if slopes.is_empty() {
        return None;
    }
    let middle = slopes.len() / 2;
    let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    Some(*median)
}

// === impl Track ===

impl Track {
    pub(super) fn new(now_ms: u64) -> Self {
        let verdict = Verdict { since_ms: now_ms, ..Verdict::default() };
        Self { scales: std::array::from_fn(|_| Course::new(now_ms)), verdict }
    }

    /// Takes what is there now into account. `filling`: an owner that is under its cap holds it.
    pub(super) fn tick(
        &mut self,
        now_ms: u64,
        profile: Profile,
        levels: &[Level; SCALES],
        filling: bool,
    ) -> &Verdict {
        let scales = profile.scales();
        for ((course, level), scale) in self.scales.iter_mut().zip(levels).zip(&scales) {
            course.tick(now_ms, scale, level);
        }
        let mut state = State::default();
        let mut loudest = 0;
        for (index, (course, scale)) in self.scales.iter().zip(&scales).enumerate() {
            if course.believed && scale.state >= state {
                (state, loudest) = (scale.state, index);
            }
        }
        if filling && state > State::Filling {
            state = State::Filling;
        }
        if state != self.verdict.state {
            self.verdict.state = state;
            self.verdict.since_ms = now_ms;
        }
        let course = &self.scales[loudest];
        self.verdict.bytes_per_hour = course.judgement.bytes_per_hour;
        self.verdict.bytes_per_request = if state == State::Steady {
            None
        } else {
            slope(
                course
                    .points
                    .iter()
                    .map(|point| (point.requests as f64, point.old_requested as f64)),
            )
            .filter(|slope| *slope > 0.0)
        };
        &self.verdict
    }

    pub(super) fn verdict(&self) -> &Verdict {
        &self.verdict
    }
}

// === impl Course ===

impl Course {
    fn new(now_ms: u64) -> Self {
        Self {
            points: VecDeque::with_capacity(SPANS + 1),
            last_ms: now_ms,
            exposure: 0.0,
            changed_ms: now_ms,
            holds: false,
            believed: false,
            judgement: Judgement::default(),
        }
    }

    fn tick(&mut self, now_ms: u64, scale: &Scale, level: &Level) {
        let Level { old_samples, old_bytes, old_requested, exits, requests } = *level;
        self.exposure += old_samples as f64 * now_ms.saturating_sub(self.last_ms) as f64;
        self.last_ms = now_ms;
        let window_ms = scale.window.as_millis() as u64;
        let due = self
            .points
            .back()
            .is_none_or(|last| now_ms.saturating_sub(last.at_ms) * SPANS as u64 >= window_ms);
        if !due {
            return;
        }
        if self.points.len() > SPANS {
            self.points.pop_front();
        }
        let exposure = self.exposure;
        let point = Point {
            at_ms: now_ms,
            old_samples,
            old_bytes,
            old_requested,
            exits,
            requests,
            exposure,
        };
        self.points.push_back(point);
        self.judgement = judge(&self.points);
        if self.judgement.grows != self.holds {
            self.holds = self.judgement.grows;
            self.changed_ms = now_ms;
        }
        // Rule 6, in both directions.
        if now_ms - self.changed_ms >= window_ms / 8 {
            self.believed = self.holds;
        }
    }
}

#[cfg(test)]
mod tests;
