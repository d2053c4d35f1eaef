//! The verdict, with maps for policies and a context for the packet.

use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::sk_buff::SkBuff;
use ebpf_filter_common::{Packet, Policies, Policy, PortBlock, Start, counter_slot, decide, parse};

use crate::maps::{APPS, EXACT_V4, EXACT_V6, PORTS, PREFIX_V4, PREFIX_V6, SETTINGS, VERDICTS};
use crate::report::report;

/// A packet in one piece of memory.
pub struct Linear {
    pub start: usize,
    pub end: usize,
}

/// A packet in the kernel's buffer, whose tail may lie elsewhere: read through the helper.
pub struct Buffer<'a>(pub &'a SkBuff);

/// The policies in the maps.
struct Maps;

/// Judges and counts; true when the packet goes on.
#[inline(always)]
pub fn judge<P: Packet>(packet: &P, start: Start, interface: u32) -> bool {
    let parsed = parse(packet, start);
    let decision = decide(&parsed, &Maps);
    let passes = decision.verdict.passes();

    let mut before = 0;
    if let Some(count) = VERDICTS.get_ptr_mut(decision.verdict as u32) {
        // SAFETY: the entry is this CPU's, and a program is not interrupted by another one of its
        // kind on the same CPU; the map outlives the program.
        unsafe {
            before = *count;
            *count = before + 1;
        }
    }
    if let Some(app) = decision.app
        && let Some(counters) = APPS.get_ptr_mut(counter_slot(app))
    {
        // SAFETY: as above.
        unsafe {
            if passes {
                (*counters).allowed += 1;
            } else {
                (*counters).dropped += 1;
            }
        }
    }
    if passes {
        return true;
    }
    let Some(settings) = SETTINGS.get(0) else { return false };
    report(&parsed, &decision, before, settings, interface);
    settings.dry_run != 0
}

// === impl Linear ===

impl Packet for Linear {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.start + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: `start..end` is the packet, and `N` bytes of it lie at `at`. The verifier has proved
        // the same, or the program does not load.
        Some(unsafe { (at as *const [u8; N]).read_unaligned() })
    }
}

// === impl Buffer ===

impl Packet for Buffer<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load(offset).ok()
    }
}

// === impl Maps ===

impl Policies for Maps {
    #[inline(always)]
    fn v4(&self, address: &[u8; 4]) -> Option<&Policy> {
        // SAFETY: an entry that is replaced meanwhile stays readable until the program ends.
        match unsafe { EXACT_V4.get(address) } {
            Some(policy) => Some(policy),
            None => PREFIX_V4.get(Key::new(32, *address)),
        }
    }

    #[inline(always)]
    fn v6(&self, address: &[u8; 16]) -> Option<&Policy> {
        // SAFETY: as above.
        match unsafe { EXACT_V6.get(address) } {
            Some(policy) => Some(policy),
            None => PREFIX_V6.get(Key::new(128, *address)),
        }
    }

    #[inline(always)]
    fn ports(&self, block: &PortBlock) -> Option<u64> {
        // SAFETY: as above.
        unsafe { PORTS.get(block) }.copied()
    }
}
