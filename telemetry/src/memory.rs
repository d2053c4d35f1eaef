//! What the allocator says it holds.

use std::sync::LazyLock;

use tikv_jemalloc_ctl::thread::{ThreadLocal, allocatedp, deallocatedp};
use tikv_jemalloc_ctl::{epoch, opt, stats};

use crate::metrics::{Registry, Source, catalogue};

/// Whether jemalloc may be asked anything.
pub(crate) const HAS_JEMALLOC: bool = !cfg!(feature = "system-allocator");

/// jemalloc's own totals, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Handed out to the program.
    pub allocated: usize,
    /// Pages with at least one allocation.
    pub active: usize,
    /// Physically resident, the allocator's own data included.
    pub resident: usize,
    /// Mapped from the kernel.
    pub mapped: usize,
    /// Virtual memory kept for reuse, without pages behind it.
    pub retained: usize,
    /// The allocator's own data.
    pub metadata: usize,
}

/// Reads the totals as of now; zeros when jemalloc is not the allocator (unit tests).
pub fn read() -> Memory {
    // The statistics are a snapshot that only moves with the epoch.
    if !HAS_JEMALLOC || epoch::advance().is_err() {
        return Memory::default();
    }
    Memory {
        allocated: stats::allocated::read().unwrap_or_default(),
        active: stats::active::read().unwrap_or_default(),
        resident: stats::resident::read().unwrap_or_default(),
        mapped: stats::mapped::read().unwrap_or_default(),
        retained: stats::retained::read().unwrap_or_default(),
        metadata: stats::metadata::read().unwrap_or_default(),
    }
}

/// Gives every page that holds nothing back to the kernel at once, instead of after its decay time.
///
/// Takes each arena's lock in turn and a millisecond or so; for when memory is short.
#[allow(unsafe_code, reason = "a command of the allocator, which has no typed form")]
pub fn purge() {
    if !HAS_JEMALLOC {
        return;
    }
    // MALLCTL_ARENAS_ALL, as the allocator's manual gives it for `arena.<i>.purge`.
    let all = c"arena.4096.purge";
    let none = std::ptr::null_mut;
    // SAFETY: the name ends with a zero, and a command has neither an old nor a new value.
    let refused = unsafe {
        tikv_jemalloc_sys::mallctl(all.as_ptr(), none(), std::ptr::null_mut(), none(), 0)
    };
    if refused != 0 {
        tracing::debug!(refused, "the allocator does not purge");
    }
}

/// What the thread that made it has allocated and not freed; bound to that thread.
pub struct ThreadBalance {
    counters: Option<[ThreadLocal<u64>; 2]>,
}

impl Default for ThreadBalance {
    fn default() -> Self {
        Self::new()
    }
}

impl ThreadBalance {
    /// Of the calling thread; always 0 when jemalloc is not the allocator (unit tests).
    pub fn new() -> Self {
        let both =
            || Ok::<_, tikv_jemalloc_ctl::Error>([allocatedp::read()?, deallocatedp::read()?]);
        Self { counters: HAS_JEMALLOC.then(both).and_then(Result::ok) }
    }

    /// Bytes; negative when it has freed more of other threads' than it allocated. Two loads.
    pub fn now(&self) -> i64 {
        let Some([allocated, deallocated]) = self.counters else { return 0 };
        allocated.get().wrapping_sub(deallocated.get()) as i64
    }
}

/// Bytes in pages with at least one allocation, as of now; 0 when the allocator does not tell.
///
/// Takes no lock and needs no epoch, so it may be asked for every few milliseconds, and where
/// nothing may wait.
pub fn approximate_active() -> usize {
    static KEY: LazyLock<Option<[usize; 2]>> = LazyLock::new(|| {
        let mut key = [0; 2];
        let name = b"approximate_stats.active\0";
        (HAS_JEMALLOC && tikv_jemalloc_ctl::raw::name_to_mib(name, &mut key).is_ok()).then_some(key)
    });
    let Some(key) = &*KEY else { return 0 };
    #[allow(unsafe_code, reason = "this figure of the allocator has no typed reader")]
    // SAFETY: the key is of `approximate_stats.active`, which is a `size_t`.
    unsafe { tikv_jemalloc_ctl::raw::read_mib(key) }.unwrap_or_default()
}

/// Bytes that were freed and wait in the caches of threads for who needs their like: the allocator
/// counts them as allocated.
pub(crate) fn cached() -> u64 {
    // MALLCTL_ARENAS_ALL: the sum of all arenas, as of the last epoch.
    let name = b"stats.arenas.4096.tcache_bytes\0";
    if !HAS_JEMALLOC || epoch::advance().is_err() {
        return 0;
    }
    #[allow(unsafe_code, reason = "this figure of the allocator has no typed reader")]
    // SAFETY: the name ends with a zero, and the value is a `size_t`.
    let bytes = unsafe { tikv_jemalloc_ctl::raw::read::<usize>(name) };
    bytes.unwrap_or_default() as u64
}

/// Bytes that the C library's own allocator has handed out: to SQLite and to the cryptography, which
/// are written in C and do not ask ours.
///
/// Takes the lock of each of its arenas in turn.
#[allow(unsafe_code, reason = "the C library's statistics have no safe form")]
pub(crate) fn c_libraries() -> u64 {
    // SAFETY: it takes nothing, returns plain numbers, and may be called from any thread (mallinfo(3)).
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// Whether the allocator gives memory back from a thread of its own; `.cargo/config.toml` asks for it.
pub fn has_background_thread() -> bool {
    HAS_JEMALLOC && opt::background_thread::read().unwrap_or_default()
}

/// Exports `ferrule_memory_bytes{kind}`.
pub fn export(registry: &Registry) {
    export_from(registry, read);
}

/// The allocator sums up all its arenas for each reading, so there is one for each scrape.
fn export_from(registry: &Registry, read: impl Fn() -> Memory + Send + Sync + 'static) {
    type Of = fn(&Memory) -> usize;
    const KINDS: [(&str, Of); 6] = [
        ("allocated", |memory| memory.allocated),
        ("active", |memory| memory.active),
        ("resident", |memory| memory.resident),
        ("mapped", |memory| memory.mapped),
        ("retained", |memory| memory.retained),
        ("metadata", |memory| memory.metadata),
    ];
    let source = Source::new(read);
    for (kind, of) in KINDS {
        catalogue::MEMORY
            .gauge_read_of(registry, &[kind], &source, move |memory| of(memory) as f64);
    }
}

#[cfg(test)]
mod tests {
    use tikv_jemalloc_ctl::stats_print::{Options, stats_print};

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn all_kinds_of_a_scrape_come_from_one_reading() {
        let registry = Registry::new(1, 10);
        let readings = Arc::<AtomicUsize>::default();
        let counted = readings.clone();
        export_from(&registry, move || {
            let nth = counted.fetch_add(1, Relaxed) + 1;
            Memory {
                allocated: nth,
                active: nth,
                resident: nth,
                mapped: nth,
                retained: nth,
                metadata: nth,
            }
        });
        for scrape in 1..=3 {
            let text = registry.render();
            let shown = text.lines().filter(|line| line.starts_with("ferrule_memory_bytes{"));
            let values: Vec<_> = shown.filter_map(|line| line.rsplit(' ').next()).collect();
            assert_eq!(values, [scrape.to_string().as_str(); 6], "{text}");
            assert_eq!(readings.load(Relaxed), scrape);
        }
    }

    #[test]
    fn the_allocator_was_built_to_give_memory_back() {
        assert!(has_background_thread());
        let mut report = Vec::new();
        stats_print(&mut report, Options::default()).expect("jemalloc reports its settings");
        let report = String::from_utf8_lossy(&report);
        for setting in ["opt.dirty_decay_ms: 1000", "opt.muzzy_decay_ms: 1000"] {
            assert!(report.contains(setting), "{setting} is missing in\n{report}");
        }
    }

    #[test]
    #[allow(unsafe_code, reason = "a block of the C library's allocator")]
    fn what_the_c_library_hands_out_is_told() {
        const BYTES: usize = 3 << 20;
        let before = c_libraries();
        // SAFETY: the block is not used, and freed once.
        let block = unsafe { libc::malloc(BYTES) };
        let during = c_libraries();
        // SAFETY: it is the block of above, and nobody else has it.
        unsafe { libc::free(block) };
        // Other tests allocate there as well, far less.
        assert!(during.abs_diff(before) > BYTES as u64 / 2, "{before} {during}");
    }
}
