//! Windows of work, readings between them, and what they say.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::histogram::Quantiles;
use crate::machine;
use crate::node::{Node, Scrape};
use crate::process::wait_until;
use crate::slope::{Slope, theil_sen};
use crate::suite::{Part, Plot};
use crate::verdict::Check;

/// Work of one kind.
pub(crate) trait Load {
    /// Does this much of it; nothing is in flight afterwards.
    fn window(&mut self, count: u64) -> Result<Window>;

    /// Closes what it keeps open.
    fn rest(&mut self);

    /// What was answered otherwise than it should have been, and how often.
    fn wrong(&self) -> Vec<(String, u64)>;
}

/// What one window was like.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    pub done: u64,
    pub seconds: f64,
    pub latency: Quantiles,
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub requests: u64,
    /// More of them, up to so many, while flatness is not shown: caches may fill for longer than was
    /// thought, and then the first fifth of more is more.
    pub requests_max: u64,
    /// For so long instead, and longer in the proportion of `requests_max` to `requests`.
    pub time: Option<Duration>,
    /// Whether growth ends a run: what is to be caught need not be waited for.
    pub grows_is_enough: bool,
    pub windows: u32,
    pub at_most: f64,
    /// Requests that are in flight from before the beginning to after the end: they are no work.
    pub standing: u64,
    /// How long resident memory may take to come back.
    pub recovery: Duration,
}

/// What a run says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It grows by no more than it may, with confidence.
    Flat,
    /// It grows by more, with confidence.
    Grows,
    /// The noise is larger than the difference.
    Open,
}

/// One reading, at a time when nothing was in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub requests: u64,
    pub seconds: f64,
    pub allocated: u64,
    pub resident: u64,
    pub ledger: f64,
    pub window: Window,
}

/// A run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub verdict: Verdict,
    pub allocated: Slope,
    pub ledger: Slope,
    pub ledger_verdict: Verdict,
    pub readings: Vec<Reading>,
    /// KiB resident while idle after the warm-up, and at the end, and how long that took.
    idle: u64,
    after: u64,
    recovered: Duration,
    left: Vec<String>,
    wrong: Vec<(String, u64)>,
    /// Series of the last scrape.
    series: usize,
    /// Owners of the ledger whose bytes grew most after the warm-up.
    grown: Vec<(String, f64)>,
    notes: Vec<Check>,
}

/// The part of a run at its beginning in which caches and queues fill to their bounds.
const WARM_UP: f64 = 0.2;

/// Of resident memory after the work, above the warm idle level: a tenth, and this many KiB.
const RECOVERY_KIB: u64 = 2 * 1024;

pub(crate) fn measure(node: &Node, load: &mut dyn Load, plan: &Plan) -> Result<Outcome> {
    let began = Instant::now();
    let each = (plan.requests / u64::from(plan.windows)).max(1);
    let warm = (f64::from(plan.windows) * WARM_UP).ceil() as usize;
    let mut readings: Vec<Reading> = Vec::new();
    let (mut sent, mut idle, mut owners) = (0, 0, Vec::new());
    let (allocated, ledger) = loop {
        let window = load.window(each)?;
        sent += window.done;
        readings.push(read(node, plan.standing, sent, began, window)?);
        if readings.len() == warm {
            load.rest();
            idle = stands_still(node)?;
            owners = node.ledger()?;
        }
        if !plan.is_done(sent, began, 1.0) {
            continue;
        }
        let slopes = (slope(&readings, |r| r.allocated as f64), slope(&readings, |r| r.ledger));
        let (Some(allocated), Some(ledger)) = slopes else { bail!("too few readings for a slope") };
        let flat = [allocated, ledger].iter().all(|slope| plan.verdict(*slope) == Verdict::Flat);
        let caught = plan.grows_is_enough && plan.verdict(allocated) == Verdict::Grows;
        if flat || caught || plan.is_done(sent, began, plan.patience()) {
            break (allocated, ledger);
        }
    };
    load.rest();
    let grown = grown(&owners, node.ledger()?);
    let (after, recovered) = recovers(node, idle, plan.recovery)?;
    let settled = node.settles_to(plan.standing, Duration::from_secs(10));
    let scrape = node.scrape()?;
    Ok(Outcome {
        verdict: plan.verdict(allocated),
        allocated,
        ledger,
        ledger_verdict: plan.verdict(ledger),
        readings,
        idle,
        after,
        recovered,
        left: if settled.is_ok() { Vec::new() } else { scrape.left(plan.standing) },
        wrong: load.wrong(),
        series: scrape.series(),
        grown,
        notes: Vec::new(),
    })
}

/// Memory after `requests`: the least of a few readings, since a batch that is just being exported is
/// no growth.
fn read(
    node: &Node,
    standing: u64,
    requests: u64,
    began: Instant,
    window: Window,
) -> Result<Reading> {
    const READINGS: usize = 5;
    const APART: Duration = Duration::from_millis(12);
    // What the client has read to its end, the node may still be putting away.
    let busy = || {
        let scrape = node.scrape()?;
        let names = ["ferrule_requests_in_flight", "ferrule_permits_in_use"];
        anyhow::Ok(names.iter().any(|name| scrape.value(name) > standing as f64))
    };
    wait_until(Duration::from_secs(5), || matches!(busy(), Ok(false)));
    let mut least: Option<Reading> = None;
    for _ in 0..READINGS {
        thread::sleep(APART);
        let scrape = node.scrape()?;
        let allocated = scrape.memory("allocated")?;
        if least.is_none_or(|least| allocated < least.allocated) {
            let resident = scrape.memory("resident")?;
            let ledger = ledger(&scrape);
            let seconds = began.elapsed().as_secs_f64();
            least = Some(Reading { requests, seconds, allocated, resident, ledger, window });
        }
    }
    Ok(least.expect("there are readings"))
}

/// What the ledger says, without what the allocator itself keeps for the next allocation: that is
/// bounded, and goes up and down by hundreds of KiB between two looks.
fn ledger(scrape: &Scrape) -> f64 {
    scrape.sum("ferrule_ledger_bytes")
        - scrape.value("ferrule_ledger_bytes{owner=\"allocator_caches\"}")
}

/// The three whose bytes grew most.
fn grown(before: &[(String, f64)], after: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let was = |owner: &str| {
        let mut all = before.iter();
        all.find_map(|(name, bytes)| (name == owner).then_some(*bytes)).unwrap_or_default()
    };
    let mut grown: Vec<_> =
        after.into_iter().map(|(owner, bytes)| (owner.clone(), bytes - was(&owner))).collect();
    grown.retain(|(owner, bytes)| *bytes > 4096.0 && owner != "allocator_caches");
    grown.sort_by(|one, other| other.1.total_cmp(&one.1));
    grown.truncate(3);
    grown
}

/// KiB resident once it changes by less than 1 % within a second, or after ten.
fn stands_still(node: &Node) -> Result<u64> {
    const STEPS_MAX: u32 = 10;
    let pid = node.pid()?;
    let mut last = machine::resident_of(pid)?;
    for _ in 0..STEPS_MAX {
        thread::sleep(Duration::from_secs(1));
        let now = machine::resident_of(pid)?;
        let still = now.abs_diff(last) * 100 < last;
        last = now;
        if still {
            break;
        }
    }
    Ok(last)
}

/// Until resident memory is back at the warm idle level, or patience ends.
fn recovers(node: &Node, idle: u64, patience: Duration) -> Result<(u64, Duration)> {
    let pid = node.pid()?;
    let began = Instant::now();
    let mut after = machine::resident_of(pid)?;
    wait_until(patience, || {
        after = machine::resident_of(pid).unwrap_or(u64::MAX);
        after <= recovered(idle)
    });
    Ok((after, began.elapsed()))
}

fn recovered(idle: u64) -> u64 {
    idle + idle / 10 + RECOVERY_KIB
}

/// Of what comes after the warm-up.
fn slope(readings: &[Reading], of: impl Fn(&Reading) -> f64) -> Option<Slope> {
    let warm = (readings.len() as f64 * WARM_UP).ceil() as usize;
    let point = |reading: &Reading| (reading.requests as f64, of(reading));
    theil_sen(&readings[warm..].iter().map(point).collect::<Vec<_>>())
}

impl Plan {
    fn is_done(&self, sent: u64, began: Instant, share: f64) -> bool {
        match self.time {
            Some(time) => began.elapsed() >= time.mul_f64(share),
            None => sent as f64 >= self.requests as f64 * share,
        }
    }

    /// How many times as much may be done while flatness is not shown.
    fn patience(&self) -> f64 {
        self.requests_max as f64 / self.requests as f64
    }

    pub(crate) fn verdict(&self, slope: Slope) -> Verdict {
        if slope.high <= self.at_most {
            Verdict::Flat
        } else if slope.low > self.at_most {
            Verdict::Grows
        } else {
            Verdict::Open
        }
    }
}

impl Outcome {
    pub(crate) fn note(&mut self, check: Check) {
        self.notes.push(check);
    }

    pub(crate) fn show(self, part: &mut Part, plan: &Plan) {
        const KIB: f64 = 1024.0;
        let bar = format!("≤ {} B per request at 99 %", plan.at_most);
        let requests = self.readings.last().map_or(0, |reading| reading.requests);
        let why =
            format!("{requests} requests, {} windows, {}", self.readings.len(), said(self.verdict));
        part.check(
            Check::that("slope of allocated", &bar, self.allocated, self.verdict == Verdict::Flat)
                .because(why),
        );
        let flat = self.ledger_verdict == Verdict::Flat;
        let grown: Vec<String> = self
            .grown
            .iter()
            .map(|(owner, bytes)| format!("{owner} +{:.0} KiB", bytes / KIB))
            .collect();
        let why =
            format!("{}; grown after the warm-up: {}", said(self.ledger_verdict), grown.join(", "));
        part.check(Check::that("slope of the ledger", &bar, self.ledger, flat).because(why));
        let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / KIB);
        let holds = self.after <= recovered(self.idle);
        let bar = format!("≤ {} within {} s", mib(recovered(self.idle)), plan.recovery.as_secs());
        let why = format!("{} idle after the warm-up", mib(self.idle));
        let measured = format!("{} after {:.1} s", mib(self.after), self.recovered.as_secs_f64());
        part.check(Check::that("resident comes back", bar, measured, holds).because(why));
        let left = if self.left.is_empty() { "nothing".to_owned() } else { self.left.join(", ") };
        part.check(Check::that("left in flight", "nothing", left, self.left.is_empty()));
        let wrong: u64 = self.wrong.iter().map(|(_, count)| count).sum();
        let what: Vec<String> =
            self.wrong.iter().map(|(what, count)| format!("{count} × {what}")).collect();
        part.check(Check::that("wrong answers", "0", wrong, wrong == 0).because(what.join("; ")));
        part.check(Check::told("time series of a scrape", self.series));
        part.checks.extend(self.notes.iter().cloned());
        self.draw(part);
    }

    fn draw(&self, part: &mut Part) {
        const MIB: f64 = (1 << 20) as f64;
        let over_requests = |of: &dyn Fn(&Reading) -> f64| -> Vec<(f64, f64)> {
            self.readings.iter().map(|reading| (reading.requests as f64, of(reading))).collect()
        };
        let over_time = |of: &dyn Fn(&Reading) -> f64| -> Vec<(f64, f64)> {
            self.readings.iter().map(|reading| (reading.seconds, of(reading))).collect()
        };
        let warm = (self.readings.len() as f64 * WARM_UP).ceil() as usize;
        let end = self.readings.get(warm.saturating_sub(1)).map_or(0.0, |r| r.requests as f64);
        part.plots.push(
            Plot::new("Memory between windows", "requests", "MiB")
                .line("resident", over_requests(&|r| r.resident as f64 / MIB))
                .line("allocated", over_requests(&|r| r.allocated as f64 / MIB))
                .line("ledger", over_requests(&|r| r.ledger / MIB))
                .mark(end, "end of the warm-up"),
        );
        part.plots.push(
            Plot::new("Latency", "s", "ms")
                .line("p50", over_time(&|r| r.window.latency.p50))
                .line("p99", over_time(&|r| r.window.latency.p99)),
        );
        let rate = |r: &Reading| r.window.done as f64 / r.window.seconds.max(1e-9);
        part.plots.push(Plot::new("Throughput", "s", "requests/s").line("done", over_time(&rate)));
    }
}

fn said(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Flat => "flat",
        Verdict::Grows => "it grows",
        Verdict::Open => "open: the noise is larger than the difference",
    }
}
