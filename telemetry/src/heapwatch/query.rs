//! From tracks and tables to a [`Report`]: which stacks, with which names.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::budget;
use super::fold::{Ages, Sums};
use super::graph::Graph;
use super::hooks::TABLES;
use super::profile::State;
use super::report::{
    AppShare, Container, Frame, Mode, Owner, Report, Share, Stack, Suspects, Tables, Totals,
};
use super::stacks::SCALES;
use super::tag::{Subsystem, Tag};
use super::watch::{Seen, Watch, by_stack};
use crate::stack::{self, Module};
use crate::symbols::Names;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Blocks of these ages; `None`: all that count as old, which is those that may have leaked.
    pub ages: Option<Ages>,
    /// A part of a function's name that must be on the stack; of any case.
    pub function: Option<String>,
    pub subsystem: Option<Subsystem>,
    /// Stacks told, the largest.
    pub stacks_max: usize,
    /// Whether the allocator's history is told.
    pub totals: bool,
}

/// Apps told, the largest.
const APPS_TOLD: usize = 32;

// === impl Query ===

impl Default for Query {
    fn default() -> Self {
        Self { ages: None, function: None, subsystem: None, stacks_max: 200, totals: true }
    }
}

// === reports ===

/// What the caller knows beside the watch.
pub(super) struct Surroundings<'a> {
    pub(super) mode: Mode,
    pub(super) started_ms: u64,
    pub(super) limit_bytes: Option<u64>,
    pub(super) names: &'a mut Names,
    pub(super) snapshot: Option<&'a Path>,
}

impl Watch {
    pub(super) fn report(&mut self, query: &Query, around: Surroundings<'_>) -> Report {
        let Surroundings { mode, started_ms, limit_bytes, names, snapshot } = around;
        let now_ms = self.now_ms();
        let old = Ages { older_than: self.profile.scales()[0].age, younger_than: Duration::MAX };
        let seen = self.seen(mode, query.ages.unwrap_or(old));
        let subsystems = self.shares();
        let apps = self.apps();
        let owners = self.owners();
        let left = limit_bytes.map(|limit| limit.saturating_sub(self.memory.resident as u64));
        let mut stacks: Vec<Stack> = seen
            .into_iter()
            .filter(|seen| query.subsystem.is_none_or(|s| seen.sums.charge.subsystem() == s))
            .map(|seen| self.stack(&seen, left, names))
            .filter(|stack| query.accepts(&stack.frames))
            .collect();
        stacks.sort_unstable_by_key(|stack| std::cmp::Reverse(stack.bytes));
        stacks.truncate(query.stacks_max);
        let mut containers: Vec<Container> = self
            .growers
            .values()
            .filter(|grower| grower.doublings() > 0)
            .map(|grower| container(grower, now_ms, names))
            .filter(|found| query.subsystem.is_none_or(|s| found.subsystem == s))
            .filter(|found| query.accepts(&found.frames))
            .collect();
        containers.sort_unstable_by_key(|found| std::cmp::Reverse((found.state, found.bytes)));
        let [growing, probable, leak] = self.suspects();
        let totals = if query.totals {
            Totals { seconds: self.totals.seconds(), quarters: self.totals.quarters() }
        } else {
            Totals::default()
        };
        Report {
            mode,
            profile: self.profile,
            build_id: stack::build_id().to_owned(),
            // A clock before 1970 is no worse than what it says.
            at_unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
                as u64,
            uptime_ms: now_ms.saturating_sub(started_ms),
            interval_bytes: TABLES.interval(),
            requests: self.requests,
            old_after_ms: self.profile.ages_ms()[0],
            suspects: Suspects { growing, probable, leak },
            tables: Tables {
                samples: TABLES.samples.live() as u64,
                samples_dropped: TABLES.samples.dropped(),
                stacks: TABLES.stacks.used() as u64,
                stacks_dropped: TABLES.stacks.dropped(),
                containers_dropped: TABLES.containers.dropped(),
                bytes: self.fold.bytes,
            },
            subsystems,
            apps,
            owners,
            stacks,
            containers,
            names_pending: names.pending(),
            last_snapshot: snapshot.map(|path| path.display().to_string()),
            totals,
            app_names: BTreeMap::new(), // whoever counts apps knows them
        }
    }

    fn seen(&mut self, mode: Mode, ages: Ages) -> Vec<Seen> {
        if mode == Mode::Hooks {
            let slots = self.fold.stacks.len().saturating_sub(1);
            self.fold.run(&TABLES, slots, super::hooks::now_ms(), ages);
            return by_stack(&TABLES, &self.fold, |sums| sums.bytes > 0);
        }
        // A dump says nothing of ages; what is followed is all there is.
        let tracked = self.tracked.iter().map(|(hash, tracked)| Seen {
            hash: *hash,
            pcs: tracked.pcs.clone(),
            sums: Sums {
                samples: tracked.sums.old[0].samples,
                bytes: tracked.sums.old[0].bytes,
                ..tracked.sums
            },
            exits: [0; SCALES],
            filling: false,
        });
        tracked.collect()
    }

    fn stack(&self, seen: &Seen, left: Option<u64>, names: &mut Names) -> Stack {
        let Seen { hash, pcs, sums, .. } = seen;
        let tracked = self.tracked.get(hash);
        let verdict = tracked.map(|tracked| *tracked.track.verdict()).unwrap_or_default();
        let charge = sums.charge;
        let empty = || Graph::new(self.profile.tick().as_millis() as u64);
        let grows = verdict.state >= State::Growing && verdict.bytes_per_hour > 0.0;
        Stack {
            id: format!("{hash:016x}"),
            state: verdict.state,
            state_for_ms: tracked.map_or(0, |_| self.now_ms().saturating_sub(verdict.since_ms)),
            samples: sums.samples,
            bytes: sums.bytes,
            old_bytes: sums.old[0].bytes,
            live_bytes: sums.live_bytes,
            subsystem: charge.subsystem(),
            app: charge.app(),
            owner: owner(charge),
            bytes_per_request: verdict.bytes_per_request,
            bytes_per_hour: verdict.bytes_per_hour,
            limit_in_ms: left
                .filter(|_| grows)
                .map(|left| (left as f64 / verdict.bytes_per_hour * 3_600_000.0) as u64),
            graph: tracked.map_or_else(empty, |tracked| tracked.graph.clone()),
            frames: frames(pcs, names),
        }
    }

    fn shares(&self) -> Vec<Share> {
        let shares = Subsystem::ALL.into_iter().zip(self.fold.subsystems);
        let mut shares: Vec<_> = shares
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(subsystem, bytes)| Share { subsystem, bytes })
            .collect();
        shares.sort_unstable_by_key(|share| std::cmp::Reverse(share.bytes));
        shares
    }

    fn apps(&self) -> Vec<AppShare> {
        let apps = self.fold.apps.iter();
        let mut apps: Vec<_> =
            apps.map(|(app, bytes)| AppShare { app: *app, bytes: *bytes }).collect();
        apps.sort_unstable_by_key(|share| std::cmp::Reverse(share.bytes));
        apps.truncate(APPS_TOLD);
        apps
    }

    fn owners(&self) -> Vec<Owner> {
        let owners = self.fold.owners.iter().enumerate().skip(1);
        owners
            .filter_map(|(number, bytes)| {
                let declared = budget::declared(u8::try_from(number).ok()?)?;
                Some(Owner { name: declared.name.to_owned(), bytes: *bytes, cap: declared.cap })
            })
            .collect()
    }
}

impl Query {
    fn accepts(&self, frames: &[Frame]) -> bool {
        let Some(function) = &self.function else { return true };
        let function = function.to_lowercase();
        frames
            .iter()
            .flat_map(|frame| &frame.calls)
            .any(|call| call.function.to_lowercase().contains(&function))
    }
}

fn container(grower: &super::grower::Grower, now_ms: u64, names: &mut Names) -> Container {
    let charge = Tag::from_word(grower.container.tag);
    Container {
        id: format!("c{}", grower.container.id),
        state: grower.state,
        state_for_ms: now_ms.saturating_sub(grower.since_ms),
        bytes: grower.container.bytes,
        doublings: grower.doublings(),
        age_ms: grower.age_ms(now_ms),
        exponent: grower.exponent,
        bytes_per_request: grower.bytes_per_request(),
        subsystem: charge.subsystem(),
        app: charge.app(),
        owner: owner(charge),
        graph: grower.graph.clone(),
        frames: frames(grower.container.pcs(), names),
    }
}

fn owner(charge: Tag) -> Option<String> {
    budget::declared(charge.owner()).map(|declared| declared.name.to_owned())
}

/// Every address with its place in a file, and its names where they are known.
fn frames(pcs: &[usize], names: &mut Names) -> Vec<Frame> {
    let modules = stack::modules();
    let frame = |pc: &usize| {
        let place = modules.iter().position(|module| module.code.contains(pc));
        match place {
            Some(0) => {
                let offset = pc - modules[0].base;
                let calls = names.calls(offset).map(<[_]>::to_vec).unwrap_or_default();
                Frame { offset: format!("{offset:#x}"), module: String::new(), calls }
            }
            Some(index) => {
                let Module { base, path, .. } = &modules[index];
                let file = path.rsplit('/').next().unwrap_or(path).to_owned();
                Frame { offset: format!("{:#x}", pc - base), module: file, calls: Vec::new() }
            }
            None => Frame { offset: format!("{pc:#x}"), module: "?".to_owned(), calls: Vec::new() },
        }
    };
    pcs.iter().map(frame).collect()
}
