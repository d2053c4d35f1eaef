//! Who holds memory, since when, and whether it will ever end.
//!
//! The allocator samples one allocation in 512 KiB and tells us of it, and of its end ([`hooks`]). A
//! sample keeps its birth, its stack and its charge ([`tag()`]) in fixed tables ([`samples`], [`stacks`]).
//! Once a second the control side adds them up by stack ([`fold`], [`watch`]), and [`verdict`] says which
//! stacks hold ever more old blocks. A single block that doubles for ever is followed by its lineage
//! ([`containers`], [`grower`]). What is found leaves as a [`Report`]: page, JSON, pprof, flame graph,
//! snapshot.
//!
//! Hooks are the allocator's experimental interface. When one is missing or does not do what it says,
//! profile dumps take their place ([`dump`]), and log and report say so.

pub mod profile;
pub mod tag;
mod allocator;
mod budget;
mod hooks;
mod stacks;
mod samples;
mod containers;
mod fold;
mod graph;
mod verdict;
mod grower;
mod dump;
mod watch;
mod query;
pub mod report;
pub mod legible;
pub mod folded;
pub mod flamegraph;
pub mod pprof;
pub mod diff;
pub mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

pub use allocator::Allocator;
pub use budget::Budget;
pub use fold::Ages;
pub use graph::{Graph, Total};
pub use profile::{Profile, Scale, State};
pub use query::Query;
pub use report::{Mode, Report};
pub use snapshot::{Reason, SnapshotError};
pub use stacks::PCS_MAX;
pub use tag::{Charge, Subsystem, Tagged, tag, tag_app, tagged};

use self::dump::Dumps;
use self::hooks::{HookError, TABLES};
use self::watch::{News, Watch};
use crate::error::chain;
use crate::ledger::{Ledger, scope::TELEMETRY};
use crate::lock::Mutex;
use crate::memory::HAS_JEMALLOC;
use crate::metrics::{Registry, catalogue};
use crate::stack;
use crate::symbols::{self, Names, child};

/// How memory is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whether it is watched at all. Default: true.
    pub enabled: bool,
    /// Default: production.
    pub profile: Profile,
    /// Where snapshots go, and dumps when there are no hooks. Default: the temporary folder.
    pub directory: PathBuf,
}

/// What heapwatch is told of the process around it.
pub struct Context<'a> {
    pub registry: &'a Registry,
    pub ledger: &'a Ledger,
    /// Requests served so far: what growth is measured against.
    pub requests: Box<dyn Fn() -> u64 + Send>,
    /// Where memory ends, if anywhere.
    pub limit: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    /// Names for numbers of apps.
    pub app_names: AppNames,
}

/// Names for numbers of apps, as far as they are known.
pub type AppNames = Box<dyn Fn(&BTreeSet<u32>) -> BTreeMap<u32, String> + Send + Sync>;

/// The watch over the heap. Cloning shares it.
#[derive(Clone)]
pub struct Heapwatch {
    inner: Arc<Inner>,
}

struct Inner {
    mode: Mode,
    profile: Profile,
    directory: PathBuf,
    limit: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    app_names: AppNames,
    /// A snapshot that was asked for, and why.
    wanted: AtomicU8,
    started_ms: u64,
    state: Mutex<Watching>,
    suspects: [AtomicU64; State::SUSPECT.len()],
    bytes: Arc<AtomicU64>,
}

/// What the control side changes; workers never come here.
struct Watching {
    watch: Watch,
    names: Names,
    /// Attempts in a row to look up names that came to nothing.
    refusals: u32,
    snapshot: Option<PathBuf>,
    requests: Box<dyn Fn() -> u64 + Send>,
}

/// Old blocks of one stack, for whoever keeps the largest few (the black box).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldStack {
    pub bytes: u64,
    pub samples: u64,
    pub oldest: Duration,
    pub state: State,
    pub pcs: Box<[usize]>,
}

/// Hooks are the process's, and so is the answer whether they work.
static HOOKS: OnceLock<Result<(), HookError>> = OnceLock::new();

/// Stacks of a snapshot, the largest.
const SNAPSHOT_STACKS_MAX: usize = 1_024;

/// Attempts to have names looked up before their addresses are given up.
const REFUSALS_MAX: u32 = 3;

/// No snapshot was asked for.
const NOTHING: u8 = u8::MAX;

/// Most that may be held: tables, tracks, growers, histories, names.
const BYTES_MAX: usize = hooks::TABLES_BYTES
    + watch::TRACKED_MAX * (verdict::TRACK_BYTES + graph::GRAPH_BYTES + 1_024)
    + watch::GROWERS_MAX * grower::GROWER_BYTES
    + fold::FOLD_BYTES
    + graph::TOTALS_BYTES
    + symbols::BYTES_MAX;

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, profile: Profile::default(), directory: std::env::temp_dir() }
    }
}

// === impl Heapwatch ===

impl Heapwatch {
    /// Installs the hooks, tests them, and begins to watch; [`Heapwatch::run`] goes on with it.
    ///
    /// Never fails: what cannot be had is logged, and done without. A second one in the same process
    /// shares the tables of the first, and its sampling.
    pub fn start(config: &Config, context: Context<'_>) -> Self {
        let _working = TELEMETRY.enter();
        let Config { enabled, profile, directory } = config;
        let Context { registry, ledger, requests, limit, app_names } = context;
        let (mode, dumps) = if *enabled { begin(*profile, directory) } else { (Mode::Off, None) };
        let watching = Watching {
            watch: Watch::new(*profile, dumps),
            names: Names::default(),
            refusals: 0,
            snapshot: None,
            requests,
        };
        let bytes = Arc::<AtomicU64>::default();
        let heapwatch = Self {
            inner: Arc::new(Inner {
                mode,
                profile: *profile,
                directory: directory.clone(),
                limit,
                app_names,
                wanted: AtomicU8::new(NOTHING),
                started_ms: hooks::now_ms(),
                state: Mutex::new("heapwatch", watching),
                suspects: Default::default(),
                bytes: bytes.clone(),
            }),
        };
        // Most of it are tables of the program's image; the rest is in the scope of telemetry.
        ledger.watch_outside("heapwatch", BYTES_MAX as u64, move || bytes.load(Relaxed));
        heapwatch.export(registry);
        tracing::info!(
            mode = mode.name(),
            profile = profile.name(),
            interval_bytes = TABLES.interval(),
            build_id = stack::build_id(),
            "the heap is watched"
        );
        heapwatch
    }

    pub fn mode(&self) -> Mode {
        self.inner.mode
    }

    /// Ticks and looks up names until `stop`. One for each [`Heapwatch::start`], on the control thread.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        if self.inner.mode == Mode::Off {
            return stop.await;
        }
        let mut stop = std::pin::pin!(stop);
        let mut tick = tokio::time::interval(self.inner.profile.tick());
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut lookup: Option<tokio::task::JoinHandle<()>> = None;
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = tick.tick() => {}
            }
            self.tick();
            let wanted = self.inner.wanted.swap(NOTHING, Relaxed);
            if let Some(reason) = Reason::ALL.get(usize::from(wanted)) {
                self.write_down(*reason);
            }
            if lookup.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                lookup = self.batch().map(|batch| {
                    let heapwatch = self.clone();
                    tokio::task::spawn_blocking(move || heapwatch.look_up(&batch))
                });
            }
        }
        // A child ends by itself within its deadline; nobody waits for its answer any more.
        if let Some(lookup) = lookup {
            lookup.abort();
        }
    }

    /// One look at the tables. [`Heapwatch::run`] does this once a second.
    pub fn tick(&self) {
        let _working = TELEMETRY.enter();
        let mut state = self.inner.state.lock();
        let Watching { watch, requests, .. } = &mut *state;
        let news = watch.tick(hooks::now_ms(), requests());
        for (cell, n) in self.inner.suspects.iter().zip(state.watch.suspects()) {
            cell.store(n, Relaxed);
        }
        self.inner.bytes.store(state.bytes() as u64, Relaxed);
        drop(state);
        news.iter().for_each(tell);
    }

    /// What is known, as asked for.
    pub fn report(&self, query: &Query) -> Report {
        if self.inner.mode == Mode::Off {
            return Report::off();
        }
        let _charge = tag(Subsystem::Telemetry);
        let mut state = self.inner.state.lock();
        let Watching { watch, names, snapshot, .. } = &mut *state;
        let around = query::Surroundings {
            mode: self.inner.mode,
            started_ms: self.inner.started_ms,
            limit_bytes: (self.inner.limit)(),
            names,
            snapshot: snapshot.as_deref(),
        };
        let mut report = watch.report(query, around);
        drop(state);
        report.app_names = (self.inner.app_names)(&report.apps_named());
        report
    }

    /// The `n` stacks with the most old bytes.
    pub fn largest_old(&self, n: usize) -> Vec<OldStack> {
        let state = self.inner.state.lock();
        let mut stacks: Vec<_> = state
            .watch
            .tracked
            .values()
            .map(|tracked| OldStack {
                bytes: tracked.sums.old[0].bytes,
                samples: tracked.sums.old[0].samples,
                oldest: Duration::from_millis(tracked.sums.oldest_ms),
                state: tracked.track.verdict().state,
                pcs: tracked.pcs.clone(),
            })
            .collect();
        stacks.sort_unstable_by_key(|stack| std::cmp::Reverse(stack.bytes));
        stacks.truncate(n);
        stacks
    }

    /// Has a snapshot written with the next tick of [`Heapwatch::run`]; a store, for whoever must not
    /// wait.
    pub fn ask_for_snapshot(&self, reason: Reason) {
        self.inner.wanted.store(reason as u8, Relaxed);
    }

    /// Writes what is known of every live block to the folder of snapshots.
    ///
    /// Takes some milliseconds for a full table, so it may be called where a drain begins. Names are
    /// those that are known by then; addresses and build id are always there.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    pub fn snapshot(&self, reason: Reason) -> Result<PathBuf, SnapshotError> {
        let query =
            Query { ages: Some(Ages::ALL), stacks_max: SNAPSHOT_STACKS_MAX, ..Query::default() };
        let path = snapshot::write(&self.inner.directory, reason, self.report(&query))?;
        tracing::info!(path = %path.display(), "the heap was written down");
        self.inner.state.lock().snapshot = Some(path.clone());
        Ok(path)
    }

    /// Writes a snapshot, or says in the log why not: nothing else depends on it.
    pub fn write_down(&self, reason: Reason) {
        if let Err(error) = self.snapshot(reason) {
            tracing::warn!(error = %chain(&error), "the heap could not be written down");
        }
    }

    /// Addresses whose names are wanted.
    fn batch(&self) -> Option<Vec<usize>> {
        let batch = self.inner.state.lock().names.batch();
        (!batch.is_empty()).then_some(batch)
    }

    /// Blocks until a child has answered. What it does not know is not asked again.
    fn look_up(&self, batch: &[usize]) {
        let _working = TELEMETRY.enter();
        let found = child::ask(Path::new("/proc/self/exe"), &[child::COMMAND], batch);
        let mut state = self.inner.state.lock();
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                state.refusals += 1;
                tracing::warn!(error = %chain(&error), "addresses keep their numbers for now");
                // A busy machine may be less so later; a binary that cannot be read stays so.
                if state.refusals < REFUSALS_MAX {
                    return;
                }
                Default::default()
            }
        };
        state.refusals = 0;
        state.names.learn(batch, found);
    }

    fn export(&self, registry: &Registry) {
        for (index, state) in State::SUSPECT.into_iter().enumerate() {
            let inner = self.inner.clone();
            catalogue::LEAK_SUSPECTS.gauge_read_in(registry, &[state.name()], move || {
                inner.suspects[index].load(Relaxed) as f64
            });
        }
        catalogue::HEAP_SAMPLES.gauge_read_in(registry, &[], || TABLES.samples.live() as f64);
        type Dropped = fn() -> u64;
        let dropped: [(&str, Dropped); 3] = [
            ("samples", || TABLES.samples.dropped()),
            ("stacks", || TABLES.stacks.dropped()),
            ("containers", || TABLES.containers.dropped()),
        ];
        for (table, dropped) in dropped {
            catalogue::HEAP_DROPPED.gauge_read_in(registry, &[table], move || dropped() as f64);
        }
    }
}

fn begin(profile: Profile, directory: &Path) -> (Mode, Option<Dumps>) {
    let hooks = HOOKS.get_or_init(|| {
        hooks::install(profile.lg_interval(), profile.ages_ms())?;
        hooks::self_test()
    });
    let Err(error) = hooks else { return (Mode::Hooks, None) };
    tracing::warn!(error = %chain(error), "blocks cannot be followed one by one");
    if !HAS_JEMALLOC {
        return (Mode::Off, None);
    }
    let dumps = Dumps::new(directory);
    // Half-installed hooks would only cost; without them the tables stay empty.
    hooks::remove();
    if dumps.test() {
        return (Mode::Dumps, Some(dumps));
    }
    tracing::warn!("the allocator gives no heap profile either");
    (Mode::Off, None)
}

/// One line per new verdict; names are for those who look at the page.
fn tell(news: &News) {
    let News { id, kind, state, bytes, bytes_per_hour, bytes_per_request, pcs } = news;
    let base = stack::image().map_or(0, |image| image.base);
    let addresses: Vec<String> =
        pcs.iter().map(|pc| format!("{:#x}", pc.wrapping_sub(base))).collect();
    tracing::warn!(
        id = %format_args!("{id:016x}"),
        kind,
        state = state.name(),
        bytes,
        bytes_per_hour = *bytes_per_hour as u64,
        bytes_per_request = bytes_per_request.unwrap_or_default(),
        addresses = addresses.join(" "),
        build_id = stack::build_id(),
        "memory seems to leak"
    );
}

// === impl Watching ===

impl Watching {
    /// What is held, near enough: the tables as far as they are in use, and what grows.
    fn bytes(&self) -> usize {
        let samples = TABLES.samples.live() * 64;
        let stacks = TABLES.stacks.used() * 400;
        let tracks = self.watch.tracked.len() * (verdict::TRACK_BYTES + graph::GRAPH_BYTES + 320);
        let growers = self.watch.growers.len() * grower::GROWER_BYTES;
        let fixed = fold::FOLD_BYTES + graph::TOTALS_BYTES;
        samples + stacks + tracks + growers + fixed + self.names.bytes()
    }
}
