//! Sampled drops, on their way to whoever wants to know why.
//!
//! A flood of packets must not become a flood of reports. So one drop in N is considered, all CPUs
//! together may send so many per second, the ring buffer has an end, and nobody is woken: the
//! loader reads when it has time.

use core::arch::asm;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use ebpf_filter_common::{Decision, Destination, DropEvent, Parsed, Settings};

use crate::maps::{DROPS, TOKEN};

/// Reports a drop, if it is its turn. `before` is how many of its kind this CPU saw before: the first
/// one is always considered, so that a rare reason shows up at once.
#[inline(always)]
pub fn report(
    parsed: &Parsed,
    decision: &Decision,
    before: u64,
    settings: &Settings,
    interface: u32,
) {
    let every = u64::from(settings.sample_drops_every);
    if every == 0 || before % every != 0 {
        return;
    }
    // SAFETY: the helper reads a clock.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    if !token(at_ns >> 30, u64::from(settings.reports_per_second)) {
        return;
    }
    let Some(mut event) = DROPS.reserve::<DropEvent>(0) else { return };
    let mut destination = [0; 16];
    let family = match &parsed.destination {
        Destination::V4(address) => {
            [destination[0], destination[1], destination[2], destination[3]] = *address;
            4
        }
        Destination::V6(address) => {
            destination = *address;
            6
        }
        Destination::Unknown => 0,
    };
    event.write(DropEvent {
        destination,
        app: decision.app.unwrap_or(0),
        port: parsed.port,
        family,
        verdict: decision.verdict as u8,
        interface,
        reserved: 0,
        at_ns,
    });
    event.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Takes one of this second's reports. CPUs that look at the same moment may take a few more.
#[inline(always)]
fn token(second: u64, per_second: u64) -> bool {
    let Some(token) = TOKEN.get_ptr_mut(0) else { return false };
    // SAFETY: the map outlives the program; its words are touched only whole, here and nowhere else.
    // The addition is the instruction itself: this target's `core` has no atomic arithmetic.
    unsafe {
        if (&raw const (*token).second).read_volatile() != second {
            (&raw mut (*token).second).write_volatile(second);
            (&raw mut (*token).used).write_volatile(0);
        }
        // Looked at before it is counted, so that a flood does not write to a line that all CPUs share.
        if (&raw const (*token).used).read_volatile() >= per_second {
            return false;
        }
        asm!("lock *(u64 *)({used} + 0) += {one}", used = in(reg) &raw mut (*token).used, one = in(reg) 1u64);
    }
    true
}
