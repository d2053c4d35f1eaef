//! The global allocator: jemalloc, and a note when a large block grows.

use std::alloc::{GlobalAlloc, Layout};

use tikv_jemallocator::Jemalloc;

use super::{containers, hooks};

/// jemalloc with the lineage of large blocks that are reallocated; its settings are compiled in, see
/// `.cargo/config.toml`. Adds one comparison to freeing and growing, and nothing to a block.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

#[allow(unsafe_code, reason = "a global allocator")]
// SAFETY: every call goes to jemalloc with the arguments it came with, and its answer comes back
// unchanged; what is done beside reads and writes tables of our own, and neither allocates nor panics.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is jemalloc's.
        unsafe { Jemalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() >= containers::BYTES_MIN {
            hooks::forget(block as usize);
        }
        // SAFETY: as above.
        unsafe { Jemalloc.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        let realloc = || unsafe { Jemalloc.realloc(block, layout, new_size) };
        if layout.size() < containers::BYTES_MIN {
            return realloc();
        }
        hooks::grow(block as usize, layout.size(), new_size, realloc)
    }
}
