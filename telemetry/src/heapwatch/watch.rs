//! What the control side knows: tracks of stacks, growers, totals; one tick folds the tables into it.
//!
//! Nothing here is shared with workers but the tables, which are read without a lock.

use std::collections::HashMap;

use super::budget;
use super::containers::Container;
use super::dump::Dumps;
use super::fold::{Ages, Fold, Sums};
use super::graph::{Graph, Totals};
use super::grower::Grower;
use super::hooks::{TABLES, Tables};
use super::profile::{Profile, State};
use super::stacks::{SCALES, Stack};
use super::tag::Tag;
use super::verdict::{Level, Track, Verdict};
use crate::memory::{self, Memory};

/// Stacks with old blocks that are followed; beyond it those with the fewest bytes are not.
pub(super) const TRACKED_MAX: usize = 512;

/// Large blocks that are followed.
pub(super) const GROWERS_MAX: usize = 128;

/// Ticks for which a large block may be on its way from one place to another.
const ABSENT_TICKS_MAX: u64 = 8;

/// Slots of the table of stacks.
const STACKS: usize = 4_096;

pub(super) struct Watch {
    pub(super) profile: Profile,
    pub(super) tracked: HashMap<u64, Tracked>,
    pub(super) growers: HashMap<u64, Grower>,
    pub(super) totals: Totals,
    pub(super) memory: Memory,
    pub(super) fold: Fold,
    pub(super) requests: u64,
    /// When no hooks are to be had.
    dumps: Option<Dumps>,
    last_ms: u64,
    ticks: u64,
}

/// One stack with old blocks.
pub(super) struct Tracked {
    pub(super) pcs: Box<[usize]>,
    pub(super) track: Track,
    pub(super) graph: Graph,
    pub(super) sums: Sums,
    pub(super) seen: u64,
}

/// A state that is new and worth a line in the log.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct News {
    pub(super) id: u64,
    pub(super) kind: &'static str,
    pub(super) state: State,
    pub(super) bytes: u64,
    pub(super) bytes_per_hour: f64,
    pub(super) bytes_per_request: Option<f64>,
    pub(super) pcs: Box<[usize]>,
}

/// A stack as one tick sees it.
pub(super) struct Seen {
    pub(super) hash: u64,
    pub(super) pcs: Box<[usize]>,
    pub(super) sums: Sums,
    pub(super) exits: [u64; SCALES],
    pub(super) filling: bool,
}

// === impl Watch ===

impl Watch {
    pub(super) fn new(profile: Profile, dumps: Option<Dumps>) -> Self {
        Self {
            profile,
            tracked: HashMap::new(),
            growers: HashMap::new(),
            totals: Totals::new(),
            memory: Memory::default(),
            fold: Fold::new(),
            requests: 0,
            dumps,
            last_ms: 0,
            ticks: 0,
        }
    }

    /// Looks at everything once; returns what is worth saying.
    pub(super) fn tick(&mut self, now_ms: u64, requests: u64) -> Vec<News> {
        self.ticks += 1;
        self.last_ms = now_ms;
        self.requests = requests;
        self.memory = memory::read();
        self.totals.tick(now_ms, &self.memory, requests);
        let mut news = Vec::new();
        let seen = match &mut self.dumps {
            Some(dumps) => dumps.tick(now_ms, self.profile),
            None => {
                self.fold.run(&TABLES, STACKS, now_ms, Ages::ALL);
                Some(by_stack(&TABLES, &self.fold, |sums| sums.old[0].samples > 0))
            }
        };
        if let Some(seen) = seen {
            self.follow(seen, now_ms, &mut news);
        }
        self.follow_growers(now_ms, &mut news);
        TABLES.stacks.reclaim(|hash| self.tracked.contains_key(&hash));
        news
    }

    fn follow(&mut self, mut seen: Vec<Seen>, now_ms: u64, news: &mut Vec<News>) {
        let ages_ms = self.profile.ages_ms();
        let served = ages_ms.map(|age_ms| self.totals.requests_before(now_ms, age_ms));
        seen.sort_unstable_by_key(|stack| std::cmp::Reverse(stack.sums.old[0].bytes));
        for Seen { hash, pcs, sums, exits, filling } in seen {
            if !self.tracked.contains_key(&hash) && self.tracked.len() >= TRACKED_MAX {
                continue;
            }
            let tracked = self.tracked.entry(hash).or_insert_with(|| Tracked {
                pcs,
                track: Track::new(now_ms),
                graph: Graph::new(self.profile.tick().as_millis() as u64),
                sums,
                seen: 0,
            });
            (tracked.sums, tracked.seen) = (sums, self.ticks);
            tracked.graph.tick(now_ms, sums.old[0].bytes);
            let levels = std::array::from_fn(|scale| Level {
                old_samples: sums.old[scale].samples,
                old_bytes: sums.old[scale].bytes,
                old_requested: sums.old[scale].requested,
                exits: exits[scale],
                requests: served[scale],
            });
            let before = tracked.track.verdict().state;
            let verdict = *tracked.track.tick(now_ms, self.profile, &levels, filling);
            if verdict.state > before && verdict.state >= State::Growing {
                news.push(tracked.news(hash, &verdict));
            }
        }
        // Whatever has no old block any more has nothing to be suspected of.
        let ticks = self.ticks;
        self.tracked.retain(|_, tracked| tracked.seen == ticks);
    }

    fn follow_growers(&mut self, now_ms: u64, news: &mut Vec<News>) {
        let mut present: Vec<Container> = Vec::new();
        TABLES.containers.each(|container| present.push(*container));
        present.sort_unstable_by_key(|container| std::cmp::Reverse(container.bytes));
        present.truncate(GROWERS_MAX);
        let (ticks, step_ms) = (self.ticks, self.profile.tick().as_millis() as u64);
        for container in present {
            let filling = self.is_filling(&container);
            let new = || Grower::new(&container, now_ms, self.requests, step_ms);
            let grower = self.growers.entry(container.id).or_insert_with(new);
            grower.seen = ticks;
            let before = grower.state;
            grower.tick(&container, now_ms, self.requests, self.profile, filling);
            if grower.state > before && grower.state >= State::Growing {
                news.push(News {
                    id: container.id,
                    kind: "container",
                    state: grower.state,
                    bytes: container.bytes,
                    bytes_per_hour: 0.0,
                    bytes_per_request: grower.bytes_per_request(),
                    pcs: container.pcs().into(),
                });
            }
        }
        // While a block is being moved it is nowhere, and the larger it is the longer that takes.
        self.growers.retain(|_, grower| ticks - grower.seen <= ABSENT_TICKS_MAX);
    }

    fn is_filling(&self, container: &Container) -> bool {
        budget::declared(Tag::from_word(container.tag).owner())
            .is_some_and(|declared| container.bytes <= declared.cap)
    }

    /// How many stacks and containers are in each suspect state.
    pub(super) fn suspects(&self) -> [u64; State::SUSPECT.len()] {
        State::SUSPECT.map(|state| {
            let stacks = self.tracked.values().filter(|t| t.track.verdict().state == state).count();
            let growers = self.growers.values().filter(|g| g.state == state).count();
            (stacks + growers) as u64
        })
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.last_ms
    }
}

// === impl Tracked ===

impl Tracked {
    fn news(&self, id: u64, verdict: &Verdict) -> News {
        News {
            id,
            kind: "stack",
            state: verdict.state,
            bytes: self.sums.old[0].bytes,
            bytes_per_hour: verdict.bytes_per_hour,
            bytes_per_request: verdict.bytes_per_request,
            pcs: self.pcs.clone(),
        }
    }
}

/// Every stack that `wanted` wants, two slots of one stack added up.
pub(super) fn by_stack(tables: &Tables, fold: &Fold, wanted: impl Fn(&Sums) -> bool) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut places: HashMap<u64, usize> = HashMap::new();
    let slots = fold.stacks.len() - 1;
    for (index, sums) in fold.stacks.iter().enumerate().filter(|(_, sums)| wanted(sums)) {
        // The last one is no stack: its blocks came when the table was full.
        let stack: Option<Stack> = (index < slots).then(|| tables.stacks.read(index)).flatten();
        let hash = stack.map_or(0, |stack| stack.hash);
        let exits = stack.map_or([0; SCALES], |stack| stack.exits);
        if let Some(place) = places.get(&hash) {
            let other = &mut seen[*place];
            other.sums.merge(sums);
            other.exits.iter_mut().zip(exits).for_each(|(sum, more)| *sum += more);
            continue;
        }
        places.insert(hash, seen.len());
        let pcs = stack.map_or_else(Box::default, |stack| stack.pcs().into());
        seen.push(Seen { hash, pcs, sums: *sums, exits, filling: fold.is_filling(sums) });
    }
    seen
}
