//! What the maps hold, byte for byte.
//!
//! Loader and program are compiled by different compilers and meet only here: every type is
//! `repr(C)`, has no padding (the kernel compares keys as bytes) and asserts its size. A change to
//! any of them, or to the maps' names and kinds, raises [`LAYOUT`].

/// Version of everything in this file; part of the path of the pins, so that a program never meets
/// maps of another layout.
pub const LAYOUT: u32 = 1;

/// Names of maps, as the kernel, the loader and the pins spell them, and the sizes of those that no
/// configuration sets.
pub mod map {
    /// Exact IPv4 addresses: `[u8; 4]` → [`Policy`](super::Policy).
    pub const EXACT_V4: &str = "EXACT_V4";
    /// Exact IPv6 addresses: `[u8; 16]` → [`Policy`](super::Policy).
    pub const EXACT_V6: &str = "EXACT_V6";
    /// The anycast prefixes and the prefixes dedicated to apps: [`V4Prefix`](super::V4Prefix) →
    /// [`Policy`](super::Policy).
    pub const PREFIX_V4: &str = "PREFIX_V4";
    /// As [`PREFIX_V4`], for IPv6.
    pub const PREFIX_V6: &str = "PREFIX_V6";
    /// Ports that do not fit into a policy: [`PortBlock`](super::PortBlock) → 64 bits.
    pub const PORTS: &str = "PORTS";
    /// One [`Settings`](super::Settings).
    pub const SETTINGS: &str = "SETTINGS";
    /// Packets per [`Verdict`](crate::Verdict), per CPU.
    pub const VERDICTS: &str = "VERDICTS";
    /// [`AppCounters`](super::AppCounters) per app, per CPU.
    pub const APPS: &str = "APPS";
    /// One [`Token`](super::Token), for all CPUs.
    pub const TOKEN: &str = "TOKEN";
    /// Ring buffer of [`DropEvent`](super::DropEvent).
    pub const DROPS: &str = "DROPS";
    /// Prefixes that are steered: [`V4Prefix`](super::V4Prefix) → [`Steered`](super::Steered).
    pub const STEER_V4: &str = "STEER_V4";
    /// As [`STEER_V4`], for IPv6.
    pub const STEER_V6: &str = "STEER_V6";
    /// The node's sockets, by [`Slot`](super::Slot).
    pub const SOCKETS: &str = "SOCKETS";

    /// Apps with counters of their own; the others share the last one.
    pub const APP_COUNTERS: u32 = 4096;
    /// Bytes of the ring buffer (a power of two, whole pages): 1,638 events.
    pub const DROPS_BYTES: u32 = 64 * 1024;
}

/// Which app a policy belongs to, as the loader numbers them.
pub type AppIndex = u32;

/// The policy of an address that belongs to no app: what all shared apps ask for together.
pub const NOBODY: AppIndex = 0;

/// Where an app is counted: under its own number, or under the last one that there is.
#[inline(always)]
pub fn counter_slot(app: AppIndex) -> u32 {
    if app < map::APP_COUNTERS { app } else { map::APP_COUNTERS - 1 }
}

/// A range of ports, both ends included. All zero is an unused range: no port is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// What is asked for at one address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Whose address it is; [`NOBODY`] for shared ones.
    pub app: AppIndex,
    /// Which [`PortBlock`]s belong to it besides the ranges below; 0 = none.
    ///
    /// A set is written before a policy names it and is never changed afterwards; another list of
    /// ports gets another set. So a policy is all old or all new, however many ports it has.
    pub set: u32,
    /// TCP ports.
    pub tcp: [PortRange; Self::TCP_RANGES],
    /// UDP ports.
    pub udp: [PortRange; Self::UDP_RANGES],
}

/// Key of 64 neighbouring ports of a set; the value has a bit for each. A set is at most 1,024 of
/// these per protocol, whatever ports an app lists.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortBlock {
    /// The set, as in [`Policy::set`].
    pub set: u32,
    /// 6 (TCP) or 17 (UDP): see [`Protocol`].
    pub protocol: u16,
    /// Port divided by 64.
    pub block: u16,
}

/// What can have ports.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// Key of a trie: the kernel takes the length in bits first, then the address in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V4Prefix {
    /// Bits that count, 0 to 32.
    pub bits: u32,
    /// The address.
    pub address: [u8; 4],
}

/// As [`V4Prefix`], for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V6Prefix {
    /// Bits that count, 0 to 128.
    pub bits: u32,
    /// The address.
    pub address: [u8; 16],
}

/// Switches that the program reads for every packet that it would drop.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Not 0: count as always, pass everything.
    pub dry_run: u32,
    /// One drop of this many (per verdict and CPU) is reported; 0 = none.
    pub sample_drops_every: u32,
    /// Reports per second at most, of all CPUs together.
    pub reports_per_second: u32,
    /// Which writer fills the maps: each one that takes over adds one, so that an earlier process
    /// notices. Programs do not look at it.
    pub writer: u32,
}

/// How many reports left in the running second (2^30 ns).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Which second.
    pub second: u64,
    /// Reports in it.
    pub used: u64,
}

/// Packets that asked for something at an app's addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppCounters {
    /// Allowed.
    pub allowed: u64,
    /// Refused: not a port of this app, or nothing that can be judged.
    pub dropped: u64,
}

/// A sampled drop. The sender's address is not in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// Destination; IPv4 in the first four bytes.
    pub destination: [u8; 16],
    /// Whose address it was, [`NOBODY`] for none.
    pub app: AppIndex,
    /// Destination port, 0 where none could be read.
    pub port: u16,
    /// 4, 6, or 0 where no destination could be read.
    pub family: u8,
    /// The verdict's number.
    pub verdict: u8,
    /// The interface's index, 0 where it is not known.
    pub interface: u32,
    /// 0.
    pub reserved: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub at_ns: u64,
}

/// Value in the steering tries. There is nothing to say about a prefix but that it is there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steered {
    /// 1.
    pub on: u32,
}

/// Address family of a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where a socket is in the map of sockets.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// TCP over IPv4.
    Tcp4 = 0,
    /// TCP over IPv6.
    Tcp6 = 1,
    /// UDP over IPv4.
    Udp4 = 2,
    /// UDP over IPv6.
    Udp6 = 3,
}

// === impl Policy ===

impl Policy {
    /// TCP ranges that fit into a policy.
    pub const TCP_RANGES: usize = 4;
    /// UDP ranges that fit into a policy.
    pub const UDP_RANGES: usize = 2;

    /// Whether the ranges inside the policy have this port. Port 0 is in none.
    #[inline(always)]
    pub fn has_inline(&self, protocol: Protocol, port: u16) -> bool {
        // Written out, because a loop over a slice is a loop the verifier has to walk.
        match protocol {
            Protocol::Tcp => {
                let [a, b, c, d] = self.tcp;
                a.has(port) || b.has(port) || c.has(port) || d.has(port)
            }
            Protocol::Udp => {
                let [a, b] = self.udp;
                a.has(port) || b.has(port)
            }
        }
    }

    /// Whether it asks for anything at all.
    #[inline(always)]
    pub fn asks_for_nothing(&self) -> bool {
        self.set == 0 && self.tcp[0].last == 0 && self.udp[0].last == 0
    }
}

// === impl PortRange ===

impl PortRange {
    /// Whether the port is in the range.
    #[inline(always)]
    pub fn has(self, port: u16) -> bool {
        port != 0 && self.first <= port && port <= self.last
    }
}

// === impl PortBlock ===

impl PortBlock {
    /// The block of a set that has this port's bit.
    #[inline(always)]
    pub fn of(set: u32, protocol: Protocol, port: u16) -> Self {
        Self { set, protocol: protocol as u16, block: port / 64 }
    }

    /// This port's bit in its block.
    #[inline(always)]
    pub fn bit(port: u16) -> u64 {
        1 << (port % 64)
    }
}

// === impl Slot ===

impl Slot {
    /// How many there are.
    pub const COUNT: u32 = 4;

    /// TCP of this family.
    pub fn tcp(family: Family) -> Self {
        match family {
            Family::V4 => Self::Tcp4,
            Family::V6 => Self::Tcp6,
        }
    }

    /// UDP of this family.
    pub fn udp(family: Family) -> Self {
        match family {
            Family::V4 => Self::Udp4,
            Family::V6 => Self::Udp6,
        }
    }
}

const _: () = {
    assert!(size_of::<Policy>() == 32 && align_of::<Policy>() == 4);
    assert!(size_of::<PortBlock>() == 8 && align_of::<PortBlock>() == 4);
    assert!(size_of::<PortRange>() == 4);
    assert!(size_of::<V4Prefix>() == 8 && size_of::<V6Prefix>() == 20);
    assert!(size_of::<Settings>() == 16);
    assert!(size_of::<Token>() == 16);
    assert!(size_of::<AppCounters>() == 16);
    assert!(size_of::<DropEvent>() == 40 && align_of::<DropEvent>() == 8);
    assert!(size_of::<Steered>() == 4);
};
