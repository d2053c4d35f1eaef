//! What a slot of each area holds: how it is written, and beside it how it is read again.

use serde::Serialize;

use super::layout::FRAMES_MAX;
use super::map::Slot;
use super::read::Reader;

/// 10 ms of the process. Times are nanoseconds since 1970, sizes bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tick {
    pub time: u64,
    /// Pages of the allocator with at least one allocation.
    pub active: u64,
    pub resident: u64,
    /// What counts against `limit`.
    pub used: u64,
    pub limit: u64,
    pub in_flight: u64,
    /// In thousandths of the limit, see `sampler::Readings::pressure`.
    pub pressure: u64,
}

/// One second of the process: every gauge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    pub time: u64,
    pub allocated: u64,
    pub active: u64,
    pub allocator_resident: u64,
    pub mapped: u64,
    pub retained: u64,
    pub metadata: u64,
    pub resident: u64,
    pub used: u64,
    pub limit: u64,
    pub cgroup_usage: u64,
    pub cgroup_cache: u64,
    pub cgroup_peak: u64,
    pub descriptors: u64,
    pub threads: u64,
    pub sockets: u64,
    pub time_wait: u64,
    pub tcp_bytes: u64,
    pub connections: u64,
    pub in_flight: u64,
    pub pressure: u64,
}

/// A line of the log that warned or worse, or one that was written down on purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    pub time: u64,
    pub level: Level,
    pub text: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    #[default]
    Warn,
    Error,
}

/// An allocation while memory was short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spike {
    pub time: u64,
    /// Allocated by this thread since its last record, or since memory was far from short; what it
    /// gave back meanwhile is not taken off.
    pub bytes: u64,
    pub used: u64,
    pub limit: u64,
    /// The threshold that memory is above, in percent of the limit; 0 when it is above none and the
    /// block itself is what would take it there.
    pub percent: u64,
    pub tid: u64,
    pub thread: String,
    pub pcs: Vec<u64>,
}

/// A panic: where, not what it said, for a message may hold what a client sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Panic {
    pub time: u64,
    pub tid: u64,
    pub thread: String,
    pub file: String,
    pub line: u64,
    pub column: u64,
    pub pcs: Vec<u64>,
}

/// A stack with bytes that are old and alive, as the heap's watcher knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OldStack {
    pub bytes: u64,
    pub objects: u64,
    pub oldest_seconds: u64,
    pub pcs: Vec<u64>,
}

/// A request that holds much.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Request {
    /// At most 32 bytes are kept.
    pub id: String,
    /// At most 40 bytes are kept.
    pub app: String,
    /// What it waits for. At most 24 bytes are kept.
    pub state: String,
    pub bytes: u64,
    pub age_ms: u64,
}

/// A file of code in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Module {
    pub start: u64,
    pub end: u64,
    /// What is taken from an address in memory for one in the file.
    pub bias: u64,
    pub path: String,
    pub build_id: String,
}

const THREAD_WORDS: usize = 3; // a thread's name has 15 bytes in the kernel
const FILE_WORDS: usize = 12;
const LINE_WORDS: usize = 31;
const ID_WORDS: usize = 5;
const APP_WORDS: usize = 6;
const STATE_WORDS: usize = 4;
const PATH_WORDS: usize = 17;
const BUILD_WORDS: usize = 6;

/// Bytes of a kept line.
pub(super) const LINE_BYTES_MAX: usize = (LINE_WORDS - 1) * 8;

/// A record of one area.
pub(super) trait Record: Sized {
    fn read(words: &mut Reader<'_>) -> Self;
}

// === impl Tick, Second ===

impl Tick {
    pub(super) fn write(&self, slot: &mut Slot<'_>) {
        let Self { time, active, resident, used, limit, in_flight, pressure } = *self;
        slot.words([time, active, resident, used, limit, in_flight, pressure]);
    }
}

impl Record for Tick {
    fn read(words: &mut Reader<'_>) -> Self {
        let [time, active, resident, used, limit, in_flight, pressure] = words.words();
        Self { time, active, resident, used, limit, in_flight, pressure }
    }
}

impl Second {
    pub(super) fn write(&self, slot: &mut Slot<'_>) {
        let Self {
            time, allocated, active, allocator_resident, mapped, retained, metadata, ..
        } = *self;
        slot.words([time, allocated, active, allocator_resident, mapped, retained, metadata]);
        let Self { resident, used, limit, cgroup_usage, cgroup_cache, cgroup_peak, .. } = *self;
        slot.words([resident, used, limit, cgroup_usage, cgroup_cache, cgroup_peak]);
        let Self { descriptors, threads, sockets, time_wait, tcp_bytes, .. } = *self;
        slot.words([descriptors, threads, sockets, time_wait, tcp_bytes]);
        let Self { connections, in_flight, pressure, .. } = *self;
        slot.words([connections, in_flight, pressure]);
    }
}

impl Record for Second {
    fn read(words: &mut Reader<'_>) -> Self {
        let [time, allocated, active, allocator_resident, mapped, retained, metadata] =
            words.words();
        let [resident, used, limit, cgroup_usage, cgroup_cache, cgroup_peak] = words.words();
        let [descriptors, threads, sockets, time_wait, tcp_bytes] = words.words();
        let [connections, in_flight, pressure] = words.words();
        Self {
            time,
            allocated,
            active,
            allocator_resident,
            mapped,
            retained,
            metadata,
            resident,
            used,
            limit,
            cgroup_usage,
            cgroup_cache,
            cgroup_peak,
            descriptors,
            threads,
            sockets,
            time_wait,
            tcp_bytes,
            connections,
            in_flight,
            pressure,
        }
    }
}

// === impl Line ===

impl Line {
    pub(super) fn write(slot: &mut Slot<'_>, time: u64, level: Level, text: &str) {
        slot.word(time);
        slot.word(match level {
            Level::Warn => 1,
            Level::Error => 2,
            Level::Info => 3,
        });
        slot.text(text, LINE_WORDS);
    }
}

impl Record for Line {
    fn read(words: &mut Reader<'_>) -> Self {
        let [time, level] = words.words();
        let level = match level {
            2 => Level::Error,
            3 => Level::Info,
            _ => Level::Warn,
        };
        Self { time, level, text: words.text(LINE_WORDS) }
    }
}

// === impl Spike ===

/// A [`Spike`] as the allocator's hook has it, without a byte of the heap.
pub(super) struct RawSpike<'a> {
    pub(super) time: u64,
    pub(super) bytes: u64,
    pub(super) used: u64,
    pub(super) limit: u64,
    pub(super) percent: u64,
    pub(super) tid: u64,
    pub(super) thread: &'a str,
    pub(super) pcs: &'a [u64],
}

impl RawSpike<'_> {
    pub(super) fn write(&self, slot: &mut Slot<'_>) {
        let Self { time, bytes, used, limit, percent, tid, thread, pcs } = *self;
        slot.words([time, bytes, used, limit, percent, tid]);
        slot.text(thread, THREAD_WORDS);
        slot.stack(pcs);
    }
}

impl Record for Spike {
    fn read(words: &mut Reader<'_>) -> Self {
        let [time, bytes, used, limit, percent, tid] = words.words();
        let thread = words.text(THREAD_WORDS);
        let pcs = words.stack(FRAMES_MAX);
        Self { time, bytes, used, limit, percent, tid, thread, pcs }
    }
}

// === impl Panic ===

/// A [`Panic`] as the hook has it.
pub(super) struct RawPanic<'a> {
    pub(super) time: u64,
    pub(super) tid: u64,
    pub(super) thread: &'a str,
    pub(super) file: &'a str,
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) pcs: &'a [u64],
}

impl RawPanic<'_> {
    pub(super) fn write(&self, slot: &mut Slot<'_>) {
        let Self { time, tid, thread, file, line, column, pcs } = *self;
        slot.word(time);
        slot.word(tid);
        slot.text(thread, THREAD_WORDS);
        // The end of a path says more than its beginning.
        let excess = file.len().saturating_sub((FILE_WORDS - 1) * 8);
        slot.text(&file[file.ceil_char_boundary(excess)..], FILE_WORDS);
        slot.word(line.into());
        slot.word(column.into());
        slot.stack(pcs);
    }
}

impl Record for Panic {
    fn read(words: &mut Reader<'_>) -> Self {
        let [time, tid] = words.words();
        let (thread, file) = (words.text(THREAD_WORDS), words.text(FILE_WORDS));
        let [line, column] = words.words();
        Self { time, tid, thread, file, line, column, pcs: words.stack(FRAMES_MAX) }
    }
}

// === impl OldStack, Request, Module ===

impl OldStack {
    pub(super) fn write(&self, slot: &mut Slot<'_>) {
        let Self { bytes, objects, oldest_seconds, pcs } = self;
        slot.words([*bytes, *objects, *oldest_seconds]);
        slot.stack(&pcs[..pcs.len().min(FRAMES_MAX)]);
    }
}

impl Record for OldStack {
    fn read(words: &mut Reader<'_>) -> Self {
        let [bytes, objects, oldest_seconds] = words.words();
        Self { bytes, objects, oldest_seconds, pcs: words.stack(FRAMES_MAX) }
    }
}

impl Request {
    pub(super) fn write(&self, slot: &mut Slot<'_>) {
        let Self { id, app, state, bytes, age_ms } = self;
        slot.text(id, ID_WORDS);
        slot.text(app, APP_WORDS);
        slot.text(state, STATE_WORDS);
        slot.words([*bytes, *age_ms]);
    }
}

impl Record for Request {
    fn read(words: &mut Reader<'_>) -> Self {
        let (id, app) = (words.text(ID_WORDS), words.text(APP_WORDS));
        let state = words.text(STATE_WORDS);
        let [bytes, age_ms] = words.words();
        Self { id, app, state, bytes, age_ms }
    }
}

impl Module {
    pub(super) fn write(&self, slot: &mut Slot<'_>) {
        let Self { start, end, bias, path, build_id } = self;
        slot.words([*start, *end, *bias]);
        slot.text(path, PATH_WORDS);
        slot.text(build_id, BUILD_WORDS);
    }
}

impl Record for Module {
    fn read(words: &mut Reader<'_>) -> Self {
        let [start, end, bias] = words.words();
        let (path, build_id) = (words.text(PATH_WORDS), words.text(BUILD_WORDS));
        Self { start, end, bias, path, build_id }
    }
}
