//! What the kernel runs: four programs around one verdict.
//!
//! `admit_xdp`, `admit_tcx` and `admit_cgroup` judge packets, each at another place of the stack, by
//! [`ebpf_filter_common::decide`]; one of them is attached, the earliest that the machine can do.
//! `steer` answers the kernel's search for a listening socket, whatever the port. Programs hold no
//! state of their own: all of it is in [`maps`], which outlive them.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod admission;
mod report;
mod steering;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{cgroup_skb, classifier, sk_lookup, xdp};
use aya_ebpf::programs::{SkBuffContext, SkLookupContext, TcContext, XdpContext};
use ebpf_filter_common::Start;

use admission::{Buffer, Linear, judge};

/// At the driver, or just behind it (generic), on frames.
#[xdp]
pub fn admit_xdp(ctx: XdpContext) -> u32 {
    let packet = Linear { start: ctx.data(), end: ctx.data_end() };
    // SAFETY: the kernel hands every XDP program a valid context.
    let interface = unsafe { (*ctx.ctx).ingress_ifindex };
    if judge(&packet, Start::Ethernet, interface) {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_DROP
    }
}

/// Before the queueing discipline of a device, on frames.
#[classifier]
pub fn admit_tcx(ctx: TcContext) -> i32 {
    // SAFETY: the kernel hands every classifier a valid context.
    let interface = unsafe { (*ctx.skb.skb).ingress_ifindex };
    // "Unspecific" lets programs behind this one have their say.
    if judge(&Buffer(&ctx.skb), Start::Ethernet, interface) { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

/// When a packet has found a socket of the cgroup, on IP packets.
#[cgroup_skb]
pub fn admit_cgroup(ctx: SkBuffContext) -> i32 {
    // SAFETY: the kernel hands every cgroup program a valid context.
    let interface = unsafe { (*ctx.skb.skb).ingress_ifindex };
    i32::from(judge(&Buffer(&ctx.skb), Start::Network, interface))
}

/// When the kernel looks for a listening socket.
#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    steering::steer(&ctx)
}

/// No helper in use is reserved for programs under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

/// Never reached: there is nothing in the programs that panics, and the verifier would refuse a loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
