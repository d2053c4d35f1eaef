//! The sampler allocates nothing while it runs: it must go on when memory is what is missing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use telemetry::black_box::{Opened, open};
use telemetry::sampler::{Config, Sampler, TICK_NANOSECONDS};

/// The system's allocator, with every request counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[allow(unsafe_code, reason = "an allocator is unsafe to write")]
// SAFETY: hands everything to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test here: another one would allocate beside it.
#[test]
fn neither_ticks_nor_seconds_allocate() {
    let directory = tempfile::tempdir().unwrap();
    let Opened { black_box: kept, .. } = open(directory.path(), "ams-1", "0.0.0").unwrap();
    let sampler = Sampler::start(&Config::default(), Some(Arc::new(kept))).unwrap();
    // Lines of the standard library's that are made at a thread's first use of them.
    std::thread::sleep(Duration::from_millis(200));
    let (before, first) = (ALLOCATIONS.load(Relaxed), sampler.readings().heartbeat());
    std::thread::sleep(Duration::from_millis(2_500));
    let (after, last) = (ALLOCATIONS.load(Relaxed), sampler.readings().heartbeat());
    assert_eq!(after - before, 0, "allocations");
    assert!(last - first > 100 * TICK_NANOSECONDS, "it has run meanwhile");
    black_box(Box::new(1));
    assert!(ALLOCATIONS.load(Relaxed) > after, "what allocates is counted");
}
