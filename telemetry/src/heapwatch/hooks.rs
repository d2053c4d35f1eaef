//! What the allocator calls for the blocks it samples, and the tables that are written there.
//!
//! The hooks run inside the allocator, on whatever thread allocates or frees. They do not allocate,
//! lock, log or wait. They are jemalloc's *experimental* interface, so nothing is believed until
//! [`self_test`] has seen a block come and go.

use std::cell::Cell;
use std::ffi::{c_uint, c_void};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::Release};

use rustix::time::{ClockId, clock_gettime};
use tikv_jemalloc_ctl::{Error, raw};

use super::containers::{self, Containers};
use super::samples::{Sample, Samples};
use super::stacks::{PCS_MAX, SCALES, Stacks};
use super::tag;
use crate::memory::HAS_JEMALLOC;
use crate::stack;

/// Everything the hooks write. In the program's zeroed memory: no page of it exists before it is used.
pub(super) static TABLES: Tables = Tables::new();

/// 4,096 stacks and 65,536 live samples, which at one sample in 512 KiB is a heap of 32 GiB.
pub(super) struct Tables {
    pub(super) stacks: Stacks<4_096>,
    pub(super) samples: Samples<65_536>,
    pub(super) containers: Containers<1_024>,
    /// Mean bytes between samples.
    interval: AtomicU64,
    /// Ages of the verdict's scales, in milliseconds.
    ages_ms: [AtomicU64; SCALES],
    active: AtomicBool,
}

/// `lg_prof_sample:19` in `.cargo/config.toml`.
const COMPILED_INTERVAL: u64 = 1 << 19;

/// Bytes that the tables hold at most.
pub(super) const TABLES_BYTES: usize = size_of::<Tables>();

thread_local! {
    /// While a large block is being grown: its birth + 1. Constant and without a destructor.
    static GROWING: Cell<u64> = const { Cell::new(0) };
}

type BacktraceHook = extern "C" fn(*mut *mut c_void, *mut c_uint, c_uint);
type SampleHook = extern "C" fn(*const c_void, usize, *mut *mut c_void, c_uint, usize);
type FreeHook = extern "C" fn(*const c_void, usize);

/// Why blocks cannot be followed one by one.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    #[error("the C library allocates, and does not sample")]
    NoJemalloc,
    #[error("the allocator was built without sampling")]
    NoSampling(#[source] Error),
    #[error("the allocator has no hook {0}")]
    Missing(&'static str, #[source] Error),
    #[error("sampling cannot be switched on")]
    Activate(#[source] Error),
    #[error("a block that must be sampled was not")]
    Unseen,
    #[error("stacks cannot be walked")]
    Stackless,
    #[error("a sampled block that was freed is still in the table")]
    Undead,
}

/// Milliseconds of a clock that is a memory read away and moves every few of them.
pub(super) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

/// Installs the hooks and switches sampling on, one sample in `2^lg_interval` bytes on average.
#[allow(unsafe_code, reason = "the allocator is told what to call")]
pub(super) fn install(lg_interval: u32, ages_ms: [u64; SCALES]) -> Result<(), HookError> {
    stack::map();
    if !HAS_JEMALLOC {
        return Err(HookError::NoJemalloc);
    }
    for (cell, age) in TABLES.ages_ms.iter().zip(ages_ms) {
        cell.store(age, Relaxed);
    }
    // SAFETY: `lg_prof_sample` is a size_t (jemalloc, ctl.c: prof_lg_sample).
    let lg: usize = unsafe { raw::read(b"prof.lg_sample\0") }.map_err(HookError::NoSampling)?;
    if lg != lg_interval as usize {
        // SAFETY: prof.reset takes a size_t, the new lg_prof_sample.
        unsafe { raw::write(b"prof.reset\0", lg_interval as usize) }
            .map_err(HookError::NoSampling)?;
    }
    TABLES.interval.store(1 << lg_interval, Relaxed);
    let missing = |name| move |error| HookError::Missing(name, error);
    // SAFETY: prof_hook.h: the value is a function of type prof_backtrace_hook_t, which ours is; it
    // writes at most the given number of addresses.
    unsafe { raw::write::<BacktraceHook>(b"experimental.hooks.prof_backtrace\0", on_backtrace) }
        .map_err(missing("prof_backtrace"))?;
    // SAFETY: prof_hook.h: the value is a prof_sample_hook_t.
    unsafe { raw::write::<SampleHook>(b"experimental.hooks.prof_sample\0", on_sample) }
        .map_err(missing("prof_sample"))?;
    // SAFETY: prof_hook.h: the value is a prof_sample_free_hook_t.
    unsafe { raw::write::<FreeHook>(b"experimental.hooks.prof_sample_free\0", on_free) }
        .map_err(missing("prof_sample_free"))?;
    activate(true).map_err(HookError::Activate)?;
    TABLES.active.store(true, Release);
    Ok(())
}

/// Takes back what was installed, as far as it was; the own unwinder stays, as it is cheaper.
#[allow(unsafe_code, reason = "the allocator is told to call nobody")]
pub(super) fn remove() {
    let stopped = activate(false);
    // SAFETY: prof_hook.h: the value is a prof_sample_hook_t, which may be null.
    let sample =
        unsafe { raw::write::<Option<SampleHook>>(b"experimental.hooks.prof_sample\0", None) };
    // SAFETY: as above, for a prof_sample_free_hook_t.
    let free =
        unsafe { raw::write::<Option<FreeHook>>(b"experimental.hooks.prof_sample_free\0", None) };
    // What was never there cannot be taken away, and nothing follows from that.
    if let Err(error) = stopped.and(sample).and(free) {
        tracing::debug!(%error, "not every hook was there to be removed");
    }
}

/// Switches sampling on or off; blocks that were sampled are followed to their end either way.
#[allow(unsafe_code, reason = "a setting of the allocator")]
pub(super) fn activate(active: bool) -> Result<(), Error> {
    TABLES.active.store(active, Release);
    // SAFETY: prof.active is a bool.
    unsafe { raw::write(b"prof.active\0", active) }
}

/// Sees one block come and go.
///
/// See [`certain_block`].
pub(super) fn self_test() -> Result<(), HookError> {
    let block = certain_block();
    let address = black_box(block.as_ptr()) as usize;
    let sample = TABLES.samples.find(address).ok_or(HookError::Unseen)?;
    let walked = sample.stack.and_then(|index| TABLES.stacks.read(index));
    if walked.is_none_or(|stack| stack.pcs().len() < 3) {
        return Err(HookError::Stackless);
    }
    drop(block);
    match TABLES.samples.find(address) {
        Some(found) if found == sample => Err(HookError::Undead),
        _ => Ok(()),
    }
}

/// A block that is sampled but for a chance of e^-64, being 64 sampling intervals large. It is never
/// touched, so it costs address space only.
///
/// A thread draws its next interval when it has used up the last one, so what counts is the larger of
/// the interval that was compiled in and ours.
pub(super) fn certain_block() -> Vec<u8> {
    let interval = TABLES.interval().max(COMPILED_INTERVAL);
    Vec::with_capacity(black_box(interval as usize * 64))
}

/// Bytes of the heap that one sample of a block of `usable` bytes stands for.
///
/// A block is sampled with probability `1 - e^(-usable / interval)`.
pub(super) fn weight(usable: u64, interval: u64) -> u64 {
    let ratio = usable as f64 / interval.max(1) as f64;
    if ratio > 32.0 { usable } else { (usable as f64 / -(-ratio).exp_m1()) as u64 }
}

// === the hooks ===

#[allow(unsafe_code, reason = "called by the allocator with a vector of its own")]
extern "C" fn on_backtrace(pcs: *mut *mut c_void, written: *mut c_uint, max: c_uint) {
    let max = (max as usize).min(PCS_MAX);
    let mut walked = [0; PCS_MAX];
    let n = stack::walk(&mut walked[..max]);
    for (index, pc) in walked[..n].iter().enumerate() {
        // SAFETY: the vector has room for `max` addresses, and `index` is below it.
        unsafe { pcs.add(index).write(*pc as *mut c_void) };
    }
    // SAFETY: the length is the caller's variable.
    unsafe { written.write(n as c_uint) };
}

#[allow(unsafe_code, reason = "called by the allocator with a stack of its own")]
extern "C" fn on_sample(
    address: *const c_void,
    requested: usize,
    pcs: *mut *mut c_void,
    len: c_uint,
    usable: usize,
) {
    let growing = GROWING.get();
    let pcs: &[usize] = if pcs.is_null() {
        &[]
    } else {
        // SAFETY: `len` addresses lie at `pcs`, in the allocator's table of stacks, and stay while the
        // block is being sampled; an address has the size of a usize.
        unsafe { std::slice::from_raw_parts(pcs.cast::<usize>().cast_const(), len as usize) }
    };
    TABLES.enter(address as usize, requested as u64, usable as u64, pcs, growing.checked_sub(1));
}

extern "C" fn on_free(address: *const c_void, usable: usize) {
    TABLES.leave(address as usize, usable as u64, GROWING.get() != 0);
}

// === impl Tables ===

impl Tables {
    const fn new() -> Self {
        Self {
            stacks: Stacks::new(),
            samples: Samples::new(),
            containers: Containers::new(),
            interval: AtomicU64::new(0),
            ages_ms: [const { AtomicU64::new(u64::MAX) }; SCALES],
            active: AtomicBool::new(false),
        }
    }

    pub(super) fn interval(&self) -> u64 {
        self.interval.load(Relaxed)
    }

    pub(super) fn ages_ms(&self) -> [u64; SCALES] {
        std::array::from_fn(|scale| self.ages_ms[scale].load(Relaxed))
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    fn enter(
        &self,
        address: usize,
        requested: u64,
        usable: u64,
        pcs: &[usize],
        born_ms: Option<u64>,
    ) {
        let weight = weight(usable, self.interval());
        let stack = self.stacks.acquire(pcs);
        let sample = Sample {
            born_ms: born_ms.unwrap_or_else(now_ms),
            requested,
            usable,
            weight,
            tag: tag::current().word(),
            stack,
        };
        let entered = self.samples.insert(address, &sample);
        if let Some(stack) = stack.filter(|_| !entered) {
            self.stacks.release(stack, [false; SCALES]);
        }
    }

    /// A block that was `grown` goes on elsewhere: it does not end.
    fn leave(&self, address: usize, usable: u64, grown: bool) {
        let Some(sample) = self.samples.remove(address, usable) else { return };
        let Some(stack) = sample.stack else { return };
        let age = now_ms().saturating_sub(sample.born_ms);
        let passed = self.ages_ms().map(|limit| !grown && age >= limit);
        self.stacks.release(stack, passed);
    }
}

// === growth of large blocks, called by the allocator type ===

/// Grows a large block with `realloc`, which gives the new address or null, and keeps its lineage.
pub(super) fn grow(
    address: usize,
    bytes: usize,
    new_bytes: usize,
    realloc: impl FnOnce() -> *mut u8,
) -> *mut u8 {
    if !TABLES.is_active() {
        return realloc();
    }
    let tag = tag::current().word();
    // Taken out before the call: afterwards the address may be somebody else's.
    let before = TABLES.containers.remove(address).unwrap_or_else(|| {
        let born_ms = TABLES.samples.find(address).map_or_else(now_ms, |sample| sample.born_ms);
        TABLES.containers.begin(born_ms, bytes as u64, tag)
    });
    GROWING.set(before.born_ms + 1);
    let block = realloc();
    GROWING.set(0);
    if block.is_null() {
        TABLES.containers.insert(address, &before);
    } else if new_bytes >= containers::BYTES_MIN {
        TABLES.containers.insert(block as usize, &before.grown(new_bytes as u64, tag, stack::walk));
    }
    block
}

/// A large block is about to be freed.
#[inline]
pub(super) fn forget(address: usize) {
    if TABLES.is_active() {
        TABLES.containers.remove(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_for_its_share_of_the_heap() {
        let interval = 1 << 19;
        assert_eq!(weight(64 << 20, interval), 64 << 20);
        let near = |usable, expected: f64| {
            let weight = weight(usable, interval) as f64;
            assert!((weight / expected - 1.0).abs() < 0.001, "{usable}: {weight}");
        };
        // A small block stands for one interval and half of itself; one of an interval for 1.58.
        near(16, f64::from(1 << 19) + 8.0);
        near(interval, 1.582 * f64::from(1 << 19));
        assert_eq!(weight(100, 0), 100);
    }

    #[test]
    fn the_coarse_clock_moves() {
        let start = now_ms();
        while now_ms() == start {
            std::hint::spin_loop();
        }
        assert!(now_ms() - start < 1_000);
    }
}
