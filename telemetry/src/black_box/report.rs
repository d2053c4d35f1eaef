//! A file's contents and the verdict on it, as JSON and as the story are made from.

use serde::{Serialize, Serializer};

use super::file_name;
use super::modules;
use super::read::Contents;
use super::record::{Level, Module, Request};
use super::verdict::{Judgement, Verdict};
use crate::clock;
use crate::sampler::Source;

/// How one process ended, and what its last moments were. A few ten KiB at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    /// What the verdict rests on, in a sentence.
    pub why: String,
    /// Absent when there was nothing to read.
    #[serde(flatten)]
    pub life: Option<Life>,
}

/// What is known of the process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Life {
    pub node: String,
    pub version: String,
    pub build_id: String,
    pub pid: u64,
    /// In UTC, as in RFC 3339.
    pub started: String,
    /// The last sign of life.
    pub last_seen: String,
    pub uptime_seconds: f64,
    pub memory: Memory,
    /// The last ten seconds, oldest first; each point is the highest of its tenth of a second.
    pub last_seconds: Vec<Point>,
    /// Who allocated while memory was short, in the last ten seconds, most first.
    pub allocated_by: Vec<Stack>,
    /// Set when the process panicked, contained or not; the last one.
    pub panic: Option<Panicked>,
    pub panics: usize,
    /// What was logged last at warn or error, oldest first.
    pub warnings: Vec<Warning>,
    /// Stacks with the most old memory, largest first.
    pub old_stacks: Vec<Stack>,
    /// Requests that held the most, largest first.
    pub requests: Vec<Request>,
    pub open_descriptors: u64,
    pub threads: u64,
    pub sockets: u64,
    pub connections: u64,
    pub requests_in_flight: u64,
}

/// Memory at the end, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub limit: u64,
    pub limit_source: &'static str,
    /// What counted against the limit at the last sign of life.
    pub used: u64,
    /// The highest of that in the last ten seconds.
    pub used_max: u64,
    pub resident: u64,
    /// Since the start.
    pub resident_max: u64,
    pub active: u64,
    pub cgroup_peak: Option<u64>,
}

/// A tenth of a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Point {
    pub before_end_ms: u64,
    pub used: u64,
    pub resident: u64,
    pub in_flight: u64,
}

/// A stack and how much it is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stack {
    pub bytes: u64,
    /// Records or objects it was seen in.
    pub count: u64,
    /// The last thread with this stack; empty where many had it.
    pub thread: String,
    /// Highest share of the limit that was used meanwhile, in percent; 0 where that is not known.
    pub percent: u64,
    /// The last time, before the end; for old memory, the age of the oldest.
    pub milliseconds: u64,
    /// Innermost first.
    pub frames: Vec<Frame>,
}

/// A return address in a file of code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The file; empty when no file was mapped there.
    pub path: String,
    pub build_id: String,
    /// In the file, as `addr2line` takes it; in memory when there is no file.
    pub address: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Panicked {
    pub at: String,
    pub thread: String,
    /// File, line and column.
    pub location: String,
    pub frames: Vec<Frame>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Warning {
    pub at: String,
    pub before_end_ms: u64,
    pub level: Level,
    pub text: String,
}

/// How far back stacks and points reach.
const LAST_SECONDS: u64 = 10_000_000_000;

const POINT: u64 = 100_000_000;

const STACKS_MAX: usize = 8;
const WARNINGS_MAX: usize = 64;

// === impl Report ===

impl Report {
    /// A report on nothing.
    pub(super) fn without(judgement: Judgement) -> Self {
        let Judgement { verdict, why } = judgement;
        Self { verdict, why, life: None }
    }

    pub fn new(contents: &Contents, judgement: Judgement) -> Self {
        let Judgement { verdict, why } = judgement;
        Self { verdict, why, life: Some(Life::new(contents)) }
    }

    /// Memory as one clause, for a line of the log.
    pub fn memory_line(&self) -> Option<String> {
        let Memory { limit, used_max, .. } = self.life.as_ref()?.memory;
        Some(format!("{} of {}", super::story::mebibytes(used_max), super::story::mebibytes(limit)))
    }

    /// Who allocated most while memory was short.
    pub fn culprit(&self) -> Option<&Stack> {
        self.life.as_ref()?.allocated_by.first()
    }
}

impl Life {
    fn new(contents: &Contents) -> Self {
        let end = contents.heartbeat;
        let last = contents.seconds.last().copied().unwrap_or_default();
        let last_tick = contents.ticks.last().copied().unwrap_or_default();
        let recent = |time: u64| time.saturating_add(LAST_SECONDS) >= end;
        let ticks = contents.ticks.iter().filter(|tick| recent(tick.time));
        let spikes = contents.spikes.iter().filter(|spike| recent(spike.time));
        let used = ticks.map(|tick| tick.used).chain(spikes.map(|spike| spike.used));
        let memory = Memory {
            limit: contents.limit,
            limit_source: contents.limit_source.label(),
            used: last_tick.used,
            used_max: used.max().unwrap_or(0),
            resident: last_tick.resident,
            resident_max: contents.resident_max,
            active: last_tick.active,
            // The kernel is asked once a second, and usage is looked at every 10 ms.
            cgroup_peak: contents.cgroup_peak.map(|peak| match contents.limit_source {
                Source::Cgroup => peak.max(last_tick.used),
                _ => peak,
            }),
        };
        let lines = contents.lines.iter();
        let warnings = lines.skip(contents.lines.len().saturating_sub(WARNINGS_MAX));
        Self {
            node: contents.node.clone(),
            version: contents.program.clone(),
            build_id: contents.build_id.clone(),
            pid: contents.pid,
            started: clock::rfc3339(contents.started),
            last_seen: clock::rfc3339(end),
            uptime_seconds: end.saturating_sub(contents.started) as f64 / 1e9,
            memory,
            last_seconds: points(contents, end),
            allocated_by: allocators(contents, end),
            panic: contents.panics.last().map(|panic| Panicked {
                at: clock::rfc3339(panic.time),
                thread: panic.thread.clone(),
                location: format!("{}:{}:{}", panic.file, panic.line, panic.column),
                frames: frames(&contents.modules, &panic.pcs),
            }),
            panics: contents.panics.len(),
            warnings: warnings
                .map(|line| Warning {
                    at: clock::rfc3339(line.time),
                    before_end_ms: end.saturating_sub(line.time) / 1_000_000,
                    level: line.level,
                    text: line.text.clone(),
                })
                .collect(),
            old_stacks: contents
                .stacks
                .iter()
                .map(|stack| Stack {
                    bytes: stack.bytes,
                    count: stack.objects,
                    thread: String::new(),
                    percent: 0,
                    milliseconds: stack.oldest_seconds.saturating_mul(1000),
                    frames: frames(&contents.modules, &stack.pcs),
                })
                .collect(),
            requests: contents.requests.clone(),
            open_descriptors: last.descriptors,
            threads: last.threads,
            sockets: last.sockets,
            connections: last.connections,
            requests_in_flight: last_tick.in_flight,
        }
    }
}

fn points(contents: &Contents, end: u64) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    for tick in &contents.ticks {
        let before_end = end.saturating_sub(tick.time);
        if before_end > LAST_SECONDS {
            continue;
        }
        let before_end_ms = before_end / POINT * POINT / 1_000_000;
        if points.last().is_none_or(|point| point.before_end_ms != before_end_ms) {
            points.push(Point { before_end_ms, ..Point::default() });
        }
        let Some(point) = points.last_mut() else { continue };
        point.used = point.used.max(tick.used);
        point.resident = point.resident.max(tick.resident);
        point.in_flight = point.in_flight.max(tick.in_flight);
    }
    points
}

/// Spikes of the last seconds by stack.
fn allocators(contents: &Contents, end: u64) -> Vec<Stack> {
    let mut stacks: Vec<(&[u64], Stack)> = Vec::new();
    for spike in &contents.spikes {
        let before_end = end.saturating_sub(spike.time);
        if before_end > LAST_SECONDS {
            continue;
        }
        let index = stacks.iter().position(|(pcs, _)| *pcs == spike.pcs).unwrap_or_else(|| {
            let frames = frames(&contents.modules, &spike.pcs);
            let thread = String::new();
            stacks.push((
                &spike.pcs,
                Stack { bytes: 0, count: 0, thread, percent: 0, milliseconds: 0, frames },
            ));
            stacks.len() - 1
        });
        let stack = &mut stacks[index].1;
        stack.bytes = stack.bytes.saturating_add(spike.bytes);
        stack.count += 1;
        stack.thread.clone_from(&spike.thread);
        let percent = spike.used.saturating_mul(100).checked_div(spike.limit).unwrap_or(0);
        stack.percent = stack.percent.max(percent);
        stack.milliseconds = before_end / 1_000_000;
    }
    let mut stacks: Vec<_> = stacks.into_iter().map(|(_, stack)| stack).collect();
    stacks.sort_by_key(|stack| std::cmp::Reverse(stack.bytes));
    stacks.truncate(STACKS_MAX);
    stacks
}

fn frames(modules: &[Module], pcs: &[u64]) -> Vec<Frame> {
    let frame = |pc: &u64| match modules::locate(modules, *pc) {
        Some((module, address)) => {
            let (path, build_id) = (module.path.clone(), module.build_id.clone());
            Frame { path, build_id, address }
        }
        None => Frame { path: String::new(), build_id: String::new(), address: *pc },
    };
    pcs.iter().map(frame).collect()
}

// === impl Stack, Frame ===

/// How many innermost frames a line of the log has room for.
const FRAMES_IN_LINE: usize = 12;

/// For a line of the log.
impl std::fmt::Display for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by {}:", super::story::mebibytes(self.bytes), self.thread)?;
        self.frames.iter().take(FRAMES_IN_LINE).try_for_each(|frame| write!(f, " {frame}"))
    }
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            write!(f, "{:#x}", self.address)
        } else {
            write!(f, "{}+{:#x}", file_name(&self.path), self.address)
        }
    }
}

impl Serialize for Frame {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
