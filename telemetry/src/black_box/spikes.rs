//! Who allocates while memory is short: the allocator tells us after every MiB of a thread.
//!
//! A spike can fill the limit within a few ticks of the sampler, and only the allocating thread knows
//! its stack. jemalloc's `experimental.hooks.thread_event` calls [`on_allocated`] there. Far from the
//! limit that is two loads and an add per MiB; near it, two reads from the kernel; above 70, 80 and
//! 90 % of it, and then at most every 100, 50 and 10 ms, the stack goes into the black box.

use std::cell::Cell;
use std::hint;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::read;

use super::BlackBox;
use super::record::RawSpike;
use crate::clock;
use crate::memory::HAS_JEMALLOC;
use crate::sampler::Readings;

/// Why allocations are not watched. The sampler still sees that memory goes, but not who takes it.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("the allocator does not know the hook")]
    Refused(#[source] tikv_jemalloc_ctl::Error),
    #[error("the C library allocates, and calls nobody")]
    NoJemalloc,
    #[error("the allocator took the hook but does not call it")]
    Silent,
    #[error("allocations are watched already")]
    Taken,
}

/// How often a thread is looked at, in bytes it allocated.
const INTERVAL_BYTES: u64 = 1 << 20;

/// Percent of the limit, highest first, and the least nanoseconds between two records above it.
const THRESHOLDS: [(u64, u64); 3] = [(90, 10_000_000), (80, 50_000_000), (70, 100_000_000)];

/// How far memory falls below a threshold, in percent, before it can cross it again.
const HYSTERESIS_PERCENT: u64 = 5;

/// A single block of this share of the limit is worth a record before a byte of it is touched.
const LARGE_DIVISOR: u64 = 10;

struct Watch {
    black_box: Arc<BlackBox>,
    readings: Arc<Readings>,
    gate: Gate,
    calls: AtomicU64,
}

static WATCH: OnceLock<Watch> = OnceLock::new();

thread_local! {
    /// What this thread had allocated at its last look. Neither its first use nor its end allocates.
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// What it has allocated since its last record, or since memory was far from short.
    static PENDING: Cell<u64> = const { Cell::new(0) };
}

/// jemalloc's `user_hook_object_t`.
#[repr(C)]
struct Hook {
    callback: extern "C" fn(bool, u64, u64),
    interval: u64,
    is_alloc_only: bool,
}

/// Begins to watch every thread that allocates. Once per process; there is no end to it.
///
/// # Errors
///
/// When jemalloc is not the allocator, or not one that has the hook. Found out by trying.
pub fn watch_allocations(
    black_box: Arc<BlackBox>,
    readings: Arc<Readings>,
) -> Result<(), HookError> {
    let watch = Watch { black_box, readings, gate: Gate::default(), calls: AtomicU64::new(0) };
    WATCH.set(watch).map_err(|_| HookError::Taken)?;
    if !HAS_JEMALLOC {
        return Err(HookError::NoJemalloc);
    }
    let hook = Hook { callback: on_allocated, interval: INTERVAL_BYTES, is_alloc_only: true };
    #[allow(unsafe_code, reason = "the allocator's hooks are set by untyped writes")]
    // SAFETY: the name ends with a zero and takes a `user_hook_object_t`, which `Hook` is, field by
    // field (jemalloc 5.3.1, thread_event_registry.h). It is copied. The callback lives as long as
    // the program, is called on the allocating thread with re-entrancy guarded, and never unwinds.
    unsafe { tikv_jemalloc_ctl::raw::write(b"experimental.hooks.thread_event\0", hook) }
        .map_err(HookError::Refused)?;
    // A block of several intervals must be noticed at once, or the hook is there and does nothing.
    drop(hint::black_box(Vec::<u8>::with_capacity(4 * INTERVAL_BYTES as usize)));
    drop(hint::black_box(Vec::<u8>::with_capacity(4 * INTERVAL_BYTES as usize)));
    let called = WATCH.get().is_some_and(|watch| watch.calls.load(Relaxed) > 0);
    if called { Ok(()) } else { Err(HookError::Silent) }
}

/// Called by the allocator on the thread that has just allocated. Neither allocates, locks nor
/// unwinds.
extern "C" fn on_allocated(_: bool, allocated: u64, _: u64) {
    let Some(watch) = WATCH.get() else { return };
    let bytes = LAST.try_with(|last| allocated.saturating_sub(last.replace(allocated)));
    watch.calls.fetch_add(1, Relaxed);
    watch.look(bytes.unwrap_or_default());
}

// === impl Watch ===

impl Watch {
    fn look(&self, bytes: u64) {
        let readings = &self.readings;
        let limit = readings.limit();
        // What all threads allocated since the tick, as if nothing had been freed: the most that
        // memory can be by now, and cheap to know.
        let most = readings.used().saturating_add(readings.allocated_since_tick(bytes));
        if !reaches(most, limit, THRESHOLDS[2].0) {
            set_pending(0);
            return;
        }
        let pending = PENDING.try_with(Cell::get).unwrap_or_default().saturating_add(bytes);
        set_pending(pending);
        let Some(sample) = readings.look_now() else { return };
        let percent = sample.used.saturating_mul(100).checked_div(sample.limit).unwrap_or(0);
        let is_large = bytes >= sample.limit / LARGE_DIVISOR
            && reaches(sample.used.saturating_add(bytes), sample.limit, THRESHOLDS[2].0);
        let time = clock::now();
        let Some(pass) = self.gate.pass(percent, is_large, time) else { return };
        set_pending(0);
        let frames = self.black_box.frames();
        let mut name = [0; NAME_BYTES];
        let spike = RawSpike {
            time,
            bytes: pending,
            used: sample.used,
            limit: sample.limit,
            percent: pass.percent,
            tid: thread_id(),
            thread: thread_name(&mut name),
            pcs: frames.pcs(),
        };
        self.black_box.spike(pass.crossed, &spike);
    }
}

fn set_pending(bytes: u64) {
    // A thread that is ending has nobody left to add up for.
    PENDING.try_with(|pending| pending.set(bytes)).ok();
}

fn reaches(used: u64, limit: u64, percent: u64) -> bool {
    limit > 0 && used.saturating_mul(100) >= limit.saturating_mul(percent)
}

/// Decides which looks become records.
#[derive(Default)]
struct Gate {
    /// The highest threshold that memory is above, in percent.
    level: AtomicU64,
    last: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
struct Pass {
    percent: u64,
    crossed: bool,
}

impl Gate {
    fn pass(&self, percent: u64, is_large: bool, time: u64) -> Option<Pass> {
        let reached = THRESHOLDS.iter().find(|(threshold, _)| percent >= *threshold);
        let level = self.level.load(Relaxed);
        let (reached, pause) = reached.copied().unwrap_or((0, THRESHOLDS[2].1));
        if reached > level {
            // One thread of several that see it at the same time has crossed it.
            let crossed = self.level.compare_exchange(level, reached, Relaxed, Relaxed).is_ok();
            if crossed {
                self.last.store(time, Relaxed);
                return Some(Pass { percent: reached, crossed });
            }
        } else if reached < level && percent + HYSTERESIS_PERCENT < level {
            self.level.store(reached, Relaxed);
        }
        if reached == 0 && !is_large {
            return None;
        }
        let last = self.last.load(Relaxed);
        let is_due = time.saturating_sub(last) >= pause;
        let is_ours = || self.last.compare_exchange(last, time, Relaxed, Relaxed).is_ok();
        (is_due && is_ours()).then_some(Pass { percent: reached, crossed: false })
    }
}

pub(super) const NAME_BYTES: usize = 16;

pub(super) fn thread_id() -> u64 {
    u64::from(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())
}

/// What the kernel calls this thread. Asked for this way because the standard library may allocate
/// to answer, and a thread of the allocator's has no name there.
pub(super) fn thread_name(buffer: &mut [u8; NAME_BYTES]) -> &str {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(file) = open(c"/proc/thread-self/comm", flags, Mode::empty()) else { return "" };
    let length = read(file, &mut buffer[..]).unwrap_or(0);
    str::from_utf8(&buffer[..length]).unwrap_or("").trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn each_threshold_is_crossed_once_until_memory_has_fallen() {
        let gate = Gate::default();
        let pass = |percent, time| gate.pass(percent, false, time * MS);
        let crossed = |percent| Some(Pass { percent, crossed: true });
        let after = |percent| Some(Pass { percent, crossed: false });
        assert_eq!(pass(69, 1_000), None);
        assert_eq!(pass(70, 1_001), crossed(70));
        assert_eq!(pass(75, 1_050), None, "too soon");
        assert_eq!(pass(75, 1_102), after(70));
        assert_eq!(pass(91, 1_103), crossed(90), "a jump over 80");
        assert_eq!(pass(95, 1_108), None, "too soon");
        assert_eq!(pass(95, 1_113), after(90));
        assert_eq!(pass(86, 1_114), None, "not low enough");
        assert_eq!(pass(91, 1_124), after(90));
        assert_eq!(pass(60, 1_125), None);
        assert_eq!(pass(90, 1_126), crossed(90), "again");
    }

    #[test]
    fn a_large_block_is_recorded_below_every_threshold_but_not_without_end() {
        let gate = Gate::default();
        let pass = |time| gate.pass(10, true, time * MS);
        assert_eq!(pass(1_000), Some(Pass { percent: 0, crossed: false }));
        assert_eq!(pass(1_050), None);
        assert!(pass(1_100).is_some());
    }

    #[test]
    fn a_thread_has_the_name_it_was_given() {
        let name = std::thread::Builder::new().name("worker-7".to_owned()).spawn(|| {
            let mut name = [0; NAME_BYTES];
            thread_name(&mut name).to_owned()
        });
        assert_eq!(name.unwrap().join().unwrap(), "worker-7");
    }
}
