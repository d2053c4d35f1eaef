//! How the last process ended: a pure function of what it left and of the machine today.

use serde::Serialize;

use super::read::Contents;

/// What the process itself said of its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ended {
    /// Nothing: it runs, or it was ended from outside.
    #[default]
    Unsaid,
    /// It was asked to stop and did.
    Clean,
    /// A panic unwound to the end of the program.
    Panicked,
}

/// The machine and the cgroup around a process. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    pub boot_id: String,
    /// Tells the cgroup from others until the next boot.
    pub cgroup: Option<u64>,
    /// Processes of the cgroup that were killed for memory.
    pub oom_kills: Option<u64>,
    /// Processes of the machine that were killed for memory.
    pub machine_kills: Option<u64>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No process ran here before.
    FirstStart,
    Clean,
    Panic,
    OutOfMemory,
    /// By SIGKILL, or another end that left nothing.
    Killed,
    /// The machine went down with it.
    Reboot,
    /// It has not ended: another process runs, as in an upgrade.
    Running,
    Unreadable,
}

/// A verdict and the sentence that supports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub why: String,
}

/// A counter of the whole machine convinces only if memory was this short, in percent.
const SHORT_PERCENT: u64 = 80;

/// Without any counter, memory must have been this short.
const EXHAUSTED_PERCENT: u64 = 90;

/// How long before the last sign of life something must have happened to have caused the end.
const JUST_BEFORE: u64 = 1_000_000_000;

/// Judges what `old` left, on a machine that is now as `now` says.
pub fn judge(old: &Contents, now: &Surroundings) -> Judgement {
    let (verdict, why) = decide(old, now);
    Judgement { verdict, why }
}

fn decide(old: &Contents, now: &Surroundings) -> (Verdict, String) {
    match old.ended {
        Ended::Clean => return (Verdict::Clean, "it was asked to stop and did".to_owned()),
        Ended::Panicked => return (Verdict::Panic, "a panic ended the program".to_owned()),
        Ended::Unsaid => {}
    }
    let last = &old.last_seen;
    if last.boot_id != now.boot_id {
        return (Verdict::Reboot, "the machine has started anew since".to_owned());
    }
    let same_cgroup = last.cgroup.is_some() && last.cgroup == now.cgroup;
    let percent = highest_percent(old);
    if same_cgroup && let Some(kills) = risen(last.oom_kills, now.oom_kills) {
        let why = format!(
            "the kernel counts {} in its cgroup since its last sign of life",
            killed(kills)
        );
        return (Verdict::OutOfMemory, why);
    }
    if panicked_at_the_end(old) {
        return (Verdict::Panic, "it panicked where it could not unwind, and aborted".to_owned());
    }
    if let Some(kills) = risen(last.machine_kills, now.machine_kills)
        && percent >= SHORT_PERCENT
    {
        let why = format!(
            "the kernel counts {} on the machine since, and memory was at {percent} % of the limit",
            killed(kills)
        );
        return (Verdict::OutOfMemory, why);
    }
    let counted = (same_cgroup && now.oom_kills.is_some()) || now.machine_kills.is_some();
    match (counted, percent >= EXHAUSTED_PERCENT) {
        (false, true) => {
            let why = format!(
                "memory was at {percent} % of the limit; no counter of the kernel outlived it"
            );
            (Verdict::OutOfMemory, why)
        }
        (true, true) => {
            let why = format!(
                "it left no word; memory was at {percent} % of the limit, but the kernel killed \
                 nobody for it"
            );
            (Verdict::Killed, why)
        }
        (_, false) => (Verdict::Killed, "it left no word: SIGKILL, or a crash".to_owned()),
    }
}

fn killed(kills: u64) -> String {
    if kills == 1 { "1 kill for memory".to_owned() } else { format!("{kills} kills for memory") }
}

fn risen(then: Option<u64>, now: Option<u64>) -> Option<u64> {
    now?.checked_sub(then?).filter(|risen| *risen > 0)
}

/// The highest share of the limit just before the end, in percent.
fn highest_percent(old: &Contents) -> u64 {
    let recent = |time: u64| time.saturating_add(JUST_BEFORE) >= old.heartbeat;
    let percent = |used: u64, limit: u64| used.saturating_mul(100).checked_div(limit).unwrap_or(0);
    let ticks = old.ticks.iter().filter(|tick| recent(tick.time));
    let spikes = old.spikes.iter().filter(|spike| recent(spike.time));
    let ticks = ticks.map(|tick| percent(tick.used, tick.limit));
    ticks.chain(spikes.map(|spike| percent(spike.used, spike.limit))).max().unwrap_or(0)
}

/// Where a panic is placed that cannot unwind, as one while another unwinds: the process aborts.
const CANNOT_UNWIND: &str = "core/src/panicking.rs";

fn panicked_at_the_end(old: &Contents) -> bool {
    let last = old.panics.last();
    last.is_some_and(|panic| {
        panic.file.ends_with(CANNOT_UNWIND)
            && panic.time.saturating_add(JUST_BEFORE) >= old.heartbeat
    })
}

// === impl Ended, Verdict ===

impl Ended {
    pub(super) fn word(self) -> u64 {
        match self {
            Self::Unsaid => 0,
            Self::Clean => 1,
            Self::Panicked => 2,
        }
    }

    pub(super) fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Clean,
            2 => Self::Panicked,
            _ => Self::Unsaid,
        }
    }
}

impl Verdict {
    /// Every verdict, so that the metric has a series for each.
    pub const ALL: [Self; 8] = [
        Self::FirstStart,
        Self::Clean,
        Self::Panic,
        Self::OutOfMemory,
        Self::Killed,
        Self::Reboot,
        Self::Running,
        Self::Unreadable,
    ];

    /// The label of the metric, and the word in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::FirstStart => "first_start",
            Self::Clean => "clean",
            Self::Panic => "panic",
            Self::OutOfMemory => "out_of_memory",
            Self::Killed => "killed",
            Self::Reboot => "reboot",
            Self::Running => "running",
            Self::Unreadable => "unreadable",
        }
    }

    /// For a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::FirstStart => "first start",
            Self::Clean => "clean",
            Self::Panic => "panic",
            Self::OutOfMemory => "out of memory",
            Self::Killed => "killed",
            Self::Reboot => "reboot",
            Self::Running => "still running",
            Self::Unreadable => "unreadable",
        }
    }
}

#[cfg(test)]
mod tests;
