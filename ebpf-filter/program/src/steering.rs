//! Any address of the anycast prefixes, any port: one listening group.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SkLookupContext;
use ebpf_filter_common::{Protocol, Slot};

use crate::maps::{SOCKETS, STEER_V4, STEER_V6};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const TCP: u32 = Protocol::Tcp as u32;

/// Hands the kernel the node's socket for this family and protocol.
///
/// Where TCP has none, because no ferrule lives, the answer is a refusal and not the usual search:
/// that could find another program's wildcard socket, and an anycast address would reach sshd. UDP
/// without a socket of ours is left alone.
#[inline(always)]
pub fn steer(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the kernel hands every program a valid context; the reads are of its own fields.
    let (family, protocol) = unsafe { ((*ctx.lookup).family, (*ctx.lookup).protocol) };
    let tcp = protocol == TCP;
    let slot = match family {
        AF_INET => {
            // SAFETY: as above.
            let address = unsafe { (*ctx.lookup).local_ip4 };
            if STEER_V4.get(Key::new(32, address.to_ne_bytes())).is_none() {
                return SK_PASS;
            }
            if tcp { Slot::Tcp4 } else { Slot::Udp4 }
        }
        AF_INET6 => {
            // SAFETY: as above.
            let [a, b, c, d] = unsafe { (*ctx.lookup).local_ip6 }.map(u32::to_ne_bytes);
            let address = [
                a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
                d[2], d[3],
            ];
            if STEER_V6.get(Key::new(128, address)).is_none() {
                return SK_PASS;
            }
            if tcp { Slot::Tcp6 } else { Slot::Udp6 }
        }
        _ => return SK_PASS,
    };
    match SOCKETS.redirect_sk_lookup(ctx, slot as u32, 0) {
        Ok(()) => SK_PASS,
        Err(_) if tcp => SK_DROP,
        Err(_) => SK_PASS,
    }
}
