//! What the allocator says it holds.

use tikv_jemalloc_ctl::{epoch, opt, stats};

use crate::metrics::Registry;

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
    if epoch::advance().is_err() {
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

/// Whether the allocator gives memory back from a thread of its own; `.cargo/config.toml` asks for it.
pub fn has_background_thread() -> bool {
    opt::background_thread::read().unwrap_or_default()
}

/// Exports `ferrule_memory_bytes{kind}`.
pub fn export(registry: &Registry) {
    type Of = fn(&Memory) -> usize;
    const KINDS: [(&str, Of); 6] = [
        ("allocated", |memory| memory.allocated),
        ("active", |memory| memory.active),
        ("resident", |memory| memory.resident),
        ("mapped", |memory| memory.mapped),
        ("retained", |memory| memory.retained),
        ("metadata", |memory| memory.metadata),
    ];
    for (kind, of) in KINDS {
        let help = "Memory as jemalloc accounts for it.";
        registry.gauge_read("ferrule_memory_bytes", help, &[("kind", kind)], move || {
            of(&read()) as f64
        });
    }
}

#[cfg(test)]
mod tests {
    use tikv_jemalloc_ctl::stats_print::{Options, stats_print};

    use super::*;

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
}
