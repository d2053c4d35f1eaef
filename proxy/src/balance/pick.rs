//! The choice itself: one service's candidates, their load, and a little chance. No I/O, no clock.
//!
//! In this order: an instance of this node under its soft limit; else one of this region, nearest
//! first; else one of this node or region under its hard limit; only when all of those are at hard
//! or out, one of another region under soft, then under hard. Among those equally near the cheaper
//! of two random ones is taken (power of two choices), see [`Load::cost`]. What is on a node that
//! drains comes after all of these.

use std::sync::Arc;

use super::Tried;
use super::load::{Level, Load, Millis};
use super::rng::Rng;
use crate::inventory::{Candidate, Place};

/// Candidates by where they are, each list in no particular order.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    /// On this node.
    pub local: &'a [Arc<Candidate>],
    /// On other nodes of this region.
    pub region: &'a [Arc<Candidate>],
    pub elsewhere: &'a [Arc<Candidate>],
}

/// What a choice may depend on besides the candidates.
#[derive(Clone, Copy)]
pub struct Circumstances<'a> {
    /// Index of the service.
    pub service: usize,
    /// Attempts of this request so far.
    pub tried: &'a Tried,
    pub now: Millis,
    pub rng: &'a Rng,
}

pub enum Choice<'a> {
    Chosen(&'a Arc<Candidate>),
    /// There are some that could take it, but all are at their hard limit.
    AtHard,
    /// There are none, or all are out.
    None,
}

/// What there is in one list.
#[derive(Clone, Copy)]
struct Survey {
    /// Round trip to the nearest one under soft, and between soft and hard, in microseconds.
    nearest: [Option<u64>; 2],
    at_hard: bool,
    ejected: bool,
    /// On a node that drains.
    draining: bool,
}

/// What to do with those that failed too often.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ejection {
    Honour,
    Ignore,
}

/// What to do with those on nodes that drain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drains {
    Avoid,
    Include,
}

/// Round trips that differ by less are equal: what a switch more or a busy millisecond makes.
const BAND_MICROSECONDS: u64 = 2_000;

/// The choice under `circumstances`. It takes no permit: the caller does, and asks again if
/// another was faster.
pub fn pick<'a>(field: Field<'a>, circumstances: &Circumstances<'_>) -> Choice<'a> {
    let mut chosen = choose(field, circumstances, Ejection::Honour, Drains::Avoid);
    if let (Choice::AtHard | Choice::None, Survey { draining: true, .. }) = chosen {
        // Nobody else can take it.
        chosen = choose(field, circumstances, Ejection::Honour, Drains::Include);
    }
    match chosen {
        (Choice::None, Survey { ejected: true, .. }) => {
            // All that are left have failed. More likely it is not them: an instance that may be
            // broken is better than certainly no answer.
            choose(field, circumstances, Ejection::Ignore, Drains::Include).0
        }
        (choice, _) => choice,
    }
}

fn choose<'a>(
    field: Field<'a>,
    circumstances: &Circumstances<'_>,
    ejection: Ejection,
    drains: Drains,
) -> (Choice<'a>, Survey) {
    use Level::{UnderHard, UnderSoft};

    let sample = |lists: [&'a [Arc<Candidate>]; 2], level, nearest| {
        circumstances.sample(lists, level, nearest, ejection, drains).map(Choice::Chosen)
    };
    let mut seen = Survey::NOTHING;
    let choice = 'choice: {
        if let Some(chosen) = circumstances.two_of(field.local, ejection) {
            break 'choice Some(Choice::Chosen(chosen));
        }
        let local = circumstances.survey(field.local, ejection, drains);
        seen = local;
        if let Some(nearest) = local.nearest[0] {
            break 'choice sample([field.local, &[]], UnderSoft, nearest);
        }
        let region = circumstances.survey(field.region, ejection, drains);
        seen = seen.and(region);
        if let Some(nearest) = region.nearest[0] {
            break 'choice sample([field.region, &[]], UnderSoft, nearest);
        }
        if let Some(nearest) = seen.nearest[1] {
            break 'choice sample([field.local, field.region], UnderHard, nearest);
        }
        let elsewhere = circumstances.survey(field.elsewhere, ejection, drains);
        seen = seen.and(elsewhere);
        match elsewhere.nearest {
            [Some(nearest), _] => sample([field.elsewhere, &[]], UnderSoft, nearest),
            [None, Some(nearest)] => sample([field.elsewhere, &[]], UnderHard, nearest),
            [None, None] if seen.at_hard => Some(Choice::AtHard),
            [None, None] => Some(Choice::None),
        }
    };
    // Nothing to sample where there was something to see: others were faster, all places went.
    (choice.unwrap_or(Choice::AtHard), seen)
}

// === impl Circumstances ===

impl Circumstances<'_> {
    fn survey(&self, candidates: &[Arc<Candidate>], ejection: Ejection, drains: Drains) -> Survey {
        let mut survey = Survey::NOTHING;
        for candidate in candidates {
            let Some(load) = self.eligible(candidate) else { continue };
            if drains == Drains::Avoid && is_draining(candidate) {
                survey.draining = true;
                continue;
            }
            if ejection == Ejection::Honour && load.is_ejected(self.now) {
                survey.ejected = true;
                continue;
            }
            let nearest = match load.level(self.now) {
                Level::UnderSoft => &mut survey.nearest[0],
                Level::UnderHard => &mut survey.nearest[1],
                Level::AtHard => {
                    survey.at_hard = true;
                    continue;
                }
            };
            *nearest = least(*nearest, Some(rtt(candidate)));
        }
        survey
    }

    /// The cheaper of two random ones of `level` that are about as near as the nearest.
    fn sample<'a>(
        &self,
        lists: [&'a [Arc<Candidate>]; 2],
        level: Level,
        nearest: u64,
        ejection: Ejection,
        drains: Drains,
    ) -> Option<&'a Arc<Candidate>> {
        let farthest = nearest + (nearest / 10).max(BAND_MICROSECONDS);
        // Reservoir sampling of two: one pass, nothing allocated.
        let mut two = [None; 2];
        let mut seen = 0;
        for candidate in lists.into_iter().flatten() {
            let fits = rtt(candidate) <= farthest
                && (drains == Drains::Include || !is_draining(candidate))
                && self.eligible(candidate).is_some_and(|load| {
                    load.level(self.now) == level
                        && (ejection == Ejection::Ignore || !load.is_ejected(self.now))
                });
            if !fits {
                continue;
            }
            let index = if seen < 2 { seen } else { self.rng.below(seen + 1) };
            if let Some(place) = two.get_mut(index) {
                *place = Some(candidate);
            }
            seen += 1;
        }
        match two {
            [Some(one), Some(other)] => Some(self.cheaper(one, other)),
            [one, _] => one,
        }
    }

    /// The same for many local instances of which most are fit, without looking at all of them:
    /// two random ones are a fair sample of the fit ones if both are fit.
    fn two_of<'a>(
        &self,
        local: &'a [Arc<Candidate>],
        ejection: Ejection,
    ) -> Option<&'a Arc<Candidate>> {
        let first = self.rng.below(local.len());
        let second =
            (first + 1 + self.rng.below(local.len().saturating_sub(1))) % local.len().max(1);
        let (one, other) = (local.get(first)?, local.get(second)?);
        let fits = |candidate| {
            self.eligible(candidate).is_some_and(|load| {
                load.level(self.now) == Level::UnderSoft
                    && (ejection == Ejection::Ignore || !load.is_ejected(self.now))
            })
        };
        (fits(one) && fits(other)).then(|| self.cheaper(one, other))
    }

    fn cheaper<'a>(
        &self,
        one: &'a Arc<Candidate>,
        other: &'a Arc<Candidate>,
    ) -> &'a Arc<Candidate> {
        let cost = |candidate: &Candidate| {
            candidate.load(self.service).map_or(f64::INFINITY, |load| load.cost(self.now))
        };
        let (first, second) = (cost(one), cost(other));
        // Equal, as all are in an idle app: the order in the file must not decide.
        let other_wins = if first == second { self.rng.below(2) == 0 } else { second < first };
        if other_wins { other } else { one }
    }

    /// The candidate's load, if it may take this request now or later.
    fn eligible<'a>(&self, candidate: &'a Candidate) -> Option<&'a Arc<Load>> {
        let reachable = match &candidate.place {
            Place::Local => true,
            Place::Remote(node) => node.is_reachable(),
            Place::Unknown => false,
        };
        let load = candidate.load(self.service)?;
        (reachable && load.is_routable(self.now) && !self.tried.contains(load)).then_some(load)
    }
}

// === impl Survey ===

impl Survey {
    const NOTHING: Self =
        Self { nearest: [None; 2], at_hard: false, ejected: false, draining: false };

    fn and(self, other: Self) -> Self {
        Self {
            nearest: [
                least(self.nearest[0], other.nearest[0]),
                least(self.nearest[1], other.nearest[1]),
            ],
            at_hard: self.at_hard || other.at_hard,
            ejected: self.ejected || other.ejected,
            draining: self.draining || other.draining,
        }
    }
}

fn is_draining(candidate: &Candidate) -> bool {
    match &candidate.place {
        Place::Remote(node) => node.is_draining(),
        Place::Local | Place::Unknown => false,
    }
}

fn rtt(candidate: &Candidate) -> u64 {
    match &candidate.place {
        Place::Remote(node) => u64::try_from(node.rtt().as_micros()).unwrap_or(u64::MAX / 2),
        Place::Local | Place::Unknown => 0,
    }
}

fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
