//! What survives the process: a memory-mapped file of rings, written by plain stores only.
//!
//! Whatever ends the process, SIGKILL included, what was stored is in the kernel's page cache and
//! reaches the file. So the last ten seconds in steps of 10 ms, the last ten minutes in seconds, the
//! last warnings, the stacks that allocated when memory was short and the last panics are there when
//! the next start asks how this one ended ([`judge`]). Only a machine that loses power takes them.
//!
//! Nothing here allocates, locks or makes a system call to write; a ring has one writer, or a slot
//! is claimed by one atomic add. What is written costs some 10 to 100 ns.
//!
//! The file is `<storage>/blackbox`; the four before it are `blackbox.1` to `blackbox.4`. Its
//! writer holds a lock on it as long as it lives.

mod layout;
mod map;
mod record;
mod read;
mod modules;
mod verdict;
mod open;
mod report;
mod story;
mod frames;
mod spikes;
mod lines;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::clock;
use frames::Frames;
use layout::{Area, header};
use map::Map;
use record::{RawPanic, RawSpike};

pub use layout::FRAMES_MAX;
pub use lines::Lines;
pub use open::{FILE, KEPT, OpenError, Opened, open, postmortem};
pub use read::{Contents, Found, ReadError, read};
pub use record::{Level, Line, Module, OldStack, Panic, Request, Second, Spike, Tick};
pub use report::{Frame, Life, Report, Stack};
pub use spikes::{HookError, watch_allocations};
pub use story::story;
pub use verdict::{Ended, Judgement, Surroundings, Verdict, judge};

/// The open black box of this process.
#[derive(Debug)]
pub struct BlackBox {
    map: Map,
    /// `/proc/self/mem`, for reading stacks.
    memory: Option<File>,
    directory: PathBuf,
    ticks: AtomicU64,
    seconds: AtomicU64,
    lines: AtomicU64,
    crossings: AtomicU64,
    spikes: AtomicU64,
    panics: AtomicU64,
    generation: AtomicU64,
}

/// The box that hooks without an owner write to: the log, the panic hook, the allocator.
static INSTALLED: OnceLock<Arc<BlackBox>> = OnceLock::new();

/// The box of the process, once one was installed.
pub fn installed() -> Option<&'static Arc<BlackBox>> {
    INSTALLED.get()
}

// === impl BlackBox ===

impl BlackBox {
    fn new(map: Map, memory: Option<File>, directory: PathBuf) -> Self {
        Self {
            map,
            memory,
            directory,
            ticks: AtomicU64::new(0),
            seconds: AtomicU64::new(0),
            lines: AtomicU64::new(0),
            crossings: AtomicU64::new(0),
            spikes: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// Makes this the box that log, panics and allocations are written to. The first stays.
    pub fn install(self: &Arc<Self>) {
        drop(INSTALLED.set(self.clone()));
    }

    /// One tick of the sampler, its only writer, which also says that the process lives.
    pub fn tick(&self, tick: &Tick) {
        self.map.record(layout::TICKS, next(&self.ticks), |slot| tick.write(slot));
        self.map.raise(header::RESIDENT_MAX, tick.resident);
        self.map.store(header::HEARTBEAT, tick.time);
    }

    /// One second of the sampler, its only writer.
    pub fn second(&self, second: &Second) {
        self.map.record(layout::SECONDS, next(&self.seconds), |slot| second.write(slot));
        if second.cgroup_peak > 0 {
            self.map.store(header::PEAK, second.cgroup_peak);
        }
    }

    /// What the kernel counted so far, so that later kills can be told from earlier ones.
    pub fn kills(&self, cgroup: Option<u64>, machine: Option<u64>) {
        self.map.store(header::OOM_KILLS, cgroup.unwrap_or(layout::UNKNOWN));
        self.map.store(header::MACHINE_KILLS, machine.unwrap_or(layout::UNKNOWN));
    }

    /// The limit that memory is held against.
    pub fn limit(&self, bytes: u64, source: crate::sampler::Source) {
        self.map.store(header::LIMIT, bytes);
        self.map.store(header::LIMIT_SOURCE, source.word());
    }

    /// A line of the log; what is longer than 240 bytes is cut.
    pub fn line(&self, time: u64, level: Level, text: &str) {
        let sequence = next(&self.lines);
        self.map.record(layout::LINES, sequence, |slot| Line::write(slot, time, level, text));
    }

    /// A line that no part of the log is, written down for whoever asks how the process ended.
    pub fn note(&self, text: &str) {
        self.line(clock::now(), Level::Info, text);
    }

    /// The stacks with the most old bytes, largest first; what is there is replaced. At most 32 are
    /// kept. One thread writes them.
    pub fn old_stacks(&self, stacks: &[OldStack]) {
        let generation = next(&self.generation);
        self.replace(layout::STACKS, generation, stacks, |stack, slot| stack.write(slot));
    }

    /// The requests that hold the most, largest first; what is there is replaced. At most 32 are
    /// kept. One thread writes them.
    pub fn largest_requests(&self, requests: &[Request]) {
        let generation = next(&self.generation);
        self.replace(layout::REQUESTS, generation, requests, |request, slot| request.write(slot));
    }

    /// How the process ends, said by itself, last of all. A contained panic is no end.
    pub fn end(&self, ended: Ended) {
        self.map.seal();
        self.map.store(header::ENDED, ended.word());
    }

    /// Undoes the opening, because the process could not start: what the one before left is not
    /// pushed out by starts that fail again and again, and a process that lives keeps its file.
    pub fn withdraw(&self) {
        // What cannot be undone is judged as an end that left no word.
        open::rotate_back(&self.directory).ok();
    }

    /// Takes its place again, where a process that was meant to take over had put its own box and died.
    pub fn reclaim(&self) {
        if let Err(error) = open::reclaim(&self.directory, &self.map) {
            tracing::warn!(%error, "the black box of a process that died stays in the place of ours");
        }
    }

    /// The panic that is under way on this thread. Allocates nothing.
    pub(crate) fn panic(&self, time: u64, place: (&str, u32, u32)) -> PanicFrames {
        let frames = self.frames();
        let (file, line, column) = place;
        let mut name = [0; spikes::NAME_BYTES];
        let thread = spikes::thread_name(&mut name);
        let pcs = frames.pcs();
        let record = RawPanic { time, tid: spikes::thread_id(), thread, file, line, column, pcs };
        let sequence = next(&self.panics);
        self.map.record(layout::PANICS, sequence, |slot| record.write(slot));
        PanicFrames(frames)
    }

    /// The stack of the caller.
    #[inline(always)] // so that it begins there
    fn frames(&self) -> Frames {
        self.memory.as_ref().map(Frames::walk).unwrap_or_default()
    }

    /// An allocation while memory was short; `crossed` when it took memory over a threshold.
    fn spike(&self, crossed: bool, spike: &RawSpike<'_>) {
        let (area, counter) = if crossed {
            (layout::CROSSINGS, &self.crossings)
        } else {
            (layout::SPIKES, &self.spikes)
        };
        self.map.record(area, next(counter), |slot| spike.write(slot));
    }

    /// Writes `records` to the first slots of `area` and says that the others hold nothing.
    fn replace<T>(
        &self,
        area: Area,
        generation: u64,
        records: &[T],
        write: impl Fn(&T, &mut map::Slot<'_>),
    ) {
        let slots = area.slots as u64;
        // The sequence of slot n is a multiple of their number plus n, so it goes to slot n.
        for (slot, record) in (0..slots).zip(records) {
            self.map.record(area, generation * slots + slot, |words| write(record, words));
        }
        for slot in records.len()..area.slots {
            self.map.clear(area, slot);
        }
    }
}

/// Held by whoever runs the program to its end: a panic that unwinds through it is the program's.
#[derive(Debug)]
pub struct Ending(Arc<BlackBox>);

impl Ending {
    pub fn new(black_box: Arc<BlackBox>) -> Self {
        Self(black_box)
    }

    /// The process was asked to stop and did; the last thing it says.
    pub fn clean(self) {
        self.0.end(Ended::Clean);
    }

    /// See [`BlackBox::withdraw`].
    pub fn withdraw(self) {
        self.0.withdraw();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Ended::Panicked);
        }
    }
}

/// The stack of a panic, for its line in the log.
pub(crate) struct PanicFrames(Frames);

impl PanicFrames {
    pub(crate) fn pcs(&self) -> &[u64] {
        self.0.pcs()
    }
}

fn next(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Relaxed)
}

/// The build id of the running program, and where its file is mapped.
pub(crate) fn program() -> (String, Option<Module>) {
    let path = std::env::current_exe().unwrap_or_default();
    let is_program = |module: &Module| Path::new(&module.path) == path;
    (crate::stack::build_id().to_owned(), modules::mapped().into_iter().find(is_program))
}

/// The last component of a path, for people.
fn file_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

#[cfg(test)]
mod tests;
