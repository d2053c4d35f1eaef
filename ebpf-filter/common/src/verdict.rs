//! The verdict on a packet that was read.

use crate::layout::NOBODY;
use crate::{AppIndex, Destination, Kind, Parsed, Policy, PortBlock, Protocol};

/// Where policies are looked up: the kernel's maps, or a table of the host.
pub trait Policies {
    /// The policy of an IPv4 address: its own, else that of the longest prefix around it. `None`
    /// outside the anycast prefixes.
    fn v4(&self, address: &[u8; 4]) -> Option<&Policy>;
    /// The policy of an IPv6 address.
    fn v6(&self, address: &[u8; 16]) -> Option<&Policy>;
    /// The bits of a block of ports.
    fn ports(&self, block: &PortBlock) -> Option<u64>;
}

/// What happens to a packet, and why. The set is closed: it is a label of metrics.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Not IP, so not ours to judge.
    PassOther = 0,
    /// Not for an anycast prefix: no opinion.
    PassOutside = 1,
    /// ICMP: without it path MTU discovery and IPv6 neighbours break.
    PassIcmp = 2,
    /// A TCP segment that begins nothing. The kernel knows whether its connection exists.
    PassEstablished = 3,
    /// An app asked for it.
    PassAllowed = 4,
    /// The address is somebody's (or shared), the port is nobody's.
    DropPort = 5,
    /// An anycast address that is nobody's.
    DropAddress = 6,
    /// A fragment: its port cannot be known, and neither TCP nor QUIC sends any.
    DropFragment = 7,
    /// Cut off or against the rules.
    DropMalformed = 8,
    /// Neither TCP nor UDP nor ICMP.
    DropProtocol = 9,
}

/// A verdict, and who is counted for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What happens.
    pub verdict: Verdict,
    /// Whose address it was; `None` where none was looked up or it is outside.
    pub app: Option<AppIndex>,
}

/// Judges a packet.
#[inline(always)]
pub fn decide<P: Policies>(parsed: &Parsed, policies: &P) -> Decision {
    match parsed.kind {
        Kind::NotIp => return Decision::of(Verdict::PassOther),
        Kind::Icmp => return Decision::of(Verdict::PassIcmp),
        // Most packets end here, before any map. An app that is removed keeps the connections it
        // has; a forged segment meets a kernel that knows of no connection.
        Kind::Segment => return Decision::of(Verdict::PassEstablished),
        _ => {}
    }
    let policy = match &parsed.destination {
        Destination::V4(address) => policies.v4(address),
        Destination::V6(address) => policies.v6(address),
        // The kernel would find no use for it either.
        Destination::Unknown => return Decision::of(Verdict::DropMalformed),
    };
    let Some(policy) = policy else { return Decision::of(Verdict::PassOutside) };
    let verdict = match parsed.kind {
        Kind::Syn => port(policy, Protocol::Tcp, parsed.port, policies),
        Kind::Datagram => port(policy, Protocol::Udp, parsed.port, policies),
        Kind::Fragment => Verdict::DropFragment,
        Kind::OtherProtocol => Verdict::DropProtocol,
        _ => Verdict::DropMalformed,
    };
    Decision { verdict, app: Some(policy.app) }
}

#[inline(always)]
fn port<P: Policies>(policy: &Policy, protocol: Protocol, port: u16, policies: &P) -> Verdict {
    if policy.has_inline(protocol, port) {
        return Verdict::PassAllowed;
    }
    if policy.set != 0 && port != 0 {
        let block = PortBlock::of(policy.set, protocol, port);
        if policies.ports(&block).is_some_and(|bits| bits & PortBlock::bit(port) != 0) {
            return Verdict::PassAllowed;
        }
    }
    if policy.app == NOBODY && policy.asks_for_nothing() {
        Verdict::DropAddress
    } else {
        Verdict::DropPort
    }
}

// === impl Verdict ===

impl Verdict {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::PassOther,
        Self::PassOutside,
        Self::PassIcmp,
        Self::PassEstablished,
        Self::PassAllowed,
        Self::DropPort,
        Self::DropAddress,
        Self::DropFragment,
        Self::DropMalformed,
        Self::DropProtocol,
    ];

    /// Whether the packet goes on.
    #[inline(always)]
    pub fn passes(self) -> bool {
        (self as u8) < Self::DropPort as u8
    }

    /// The name in metrics and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PassOther => "pass_other",
            Self::PassOutside => "pass_outside",
            Self::PassIcmp => "pass_icmp",
            Self::PassEstablished => "pass_established",
            Self::PassAllowed => "pass_allowed",
            Self::DropPort => "drop_port",
            Self::DropAddress => "drop_address",
            Self::DropFragment => "drop_fragment",
            Self::DropMalformed => "drop_malformed",
            Self::DropProtocol => "drop_protocol",
        }
    }

    /// The verdict with this number.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

// === impl Decision ===

impl Decision {
    #[inline(always)]
    fn of(verdict: Verdict) -> Self {
        Self { verdict, app: None }
    }
}

#[cfg(test)]
mod tests;
