//! From bytes to what the packet wants: where it goes, and whether it begins something.
//!
//! The same code runs on the host and behind the kernel's verifier. So it reads only through
//! [`Packet`], which knows the bounds, keeps offsets small and provably so, and has no loop without
//! a constant limit. It does not check what the kernel's own stack checks later (checksums, total
//! lengths): a packet that is wrong there cannot begin a connection either.

/// Read access to a packet that has bounds.
pub trait Packet {
    /// The bytes at `offset`, or `None` where the packet has fewer.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// What the packet begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// An Ethernet header (a device's packets).
    Ethernet,
    /// An IP header (a cgroup's packets).
    Network,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// It could not be read, or there is none.
    Unknown,
    /// IPv4, in network order.
    V4([u8; 4]),
    /// IPv6, in network order.
    V6([u8; 16]),
}

/// What a packet is, as far as admission cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not IP: ARP, LLDP, more than two VLAN tags.
    NotIp,
    /// Cut off, or against its protocol's rules.
    Malformed,
    /// A part of a packet. Ports are in the first part only, so none of them can be judged.
    Fragment,
    /// ICMP or ICMPv6.
    Icmp,
    /// Neither TCP nor UDP nor ICMP.
    OtherProtocol,
    /// Asks for a connection.
    Syn,
    /// Any other well-formed TCP segment.
    Segment,
    /// A datagram.
    Datagram,
}

/// A packet, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Where it goes.
    pub destination: Destination,
    /// What it is.
    pub kind: Kind,
    /// Destination port of a [`Kind::Syn`] or [`Kind::Datagram`], else 0.
    pub port: u16,
}

/// Extension headers looked through in one IPv6 packet; more are malformed. Nobody sends more than
/// three, and each is work that a stranger can ask for.
const EXTENSION_HEADERS_MAX: usize = 6;

/// Tags looked through in one frame: customer and provider (802.1ad).
const VLAN_TAGS_MAX: usize = 2;

/// Reads a packet.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P, start: Start) -> Parsed {
    let network = match start {
        Start::Ethernet => ethernet(packet),
        Start::Network => Ok(match packet.bytes::<1>(0) {
            Some([first]) if first >> 4 == 4 => (ETHERTYPE_IPV4, 0),
            Some([first]) if first >> 4 == 6 => (ETHERTYPE_IPV6, 0),
            _ => return Parsed::lost(Kind::Malformed),
        }),
    };
    match network {
        Ok((ETHERTYPE_IPV4, offset)) => ipv4(packet, offset),
        Ok((ETHERTYPE_IPV6, offset)) => ipv6(packet, offset),
        Ok(_) => Parsed::lost(Kind::NotIp),
        Err(kind) => Parsed::lost(kind),
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// The EtherType behind the tags, and where the network header begins.
#[inline(always)]
fn ethernet<P: Packet + ?Sized>(packet: &P) -> Result<(u16, usize), Kind> {
    let header = packet.bytes::<14>(0).ok_or(Kind::Malformed)?;
    let mut kind = u16::from_be_bytes([header[12], header[13]]);
    let mut offset = 14;
    for _ in 0..VLAN_TAGS_MAX {
        if kind != ETHERTYPE_VLAN && kind != ETHERTYPE_QINQ {
            break;
        }
        let [_, _, high, low] = packet.bytes::<4>(offset).ok_or(Kind::Malformed)?;
        kind = u16::from_be_bytes([high, low]);
        offset += 4;
    }
    Ok((kind, offset))
}

#[inline(always)]
fn ipv4<P: Packet + ?Sized>(packet: &P, offset: usize) -> Parsed {
    let Some(header) = packet.bytes::<20>(offset) else { return Parsed::lost(Kind::Malformed) };
    let destination = Destination::V4([header[16], header[17], header[18], header[19]]);
    let words = usize::from(header[0] & 0x0f);
    if header[0] >> 4 != 4 || words < 5 {
        return Parsed::at(destination, Kind::Malformed);
    }
    // More-fragments, or not the first one. "Don't fragment" is nobody's business here.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Parsed::at(destination, Kind::Fragment);
    }
    transport(packet, offset + words * 4, header[9], destination)
}

const NEXT_HOP_BY_HOP: u8 = 0;
const NEXT_ROUTING: u8 = 43;
const NEXT_FRAGMENT: u8 = 44;
const NEXT_AUTHENTICATION: u8 = 51;
const NEXT_DESTINATION: u8 = 60;

#[inline(always)]
fn ipv6<P: Packet + ?Sized>(packet: &P, offset: usize) -> Parsed {
    let Some(header) = packet.bytes::<40>(offset) else { return Parsed::lost(Kind::Malformed) };
    let [.., b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15] = header;
    let destination =
        Destination::V6([b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15]);
    if header[0] >> 4 != 6 {
        return Parsed::at(destination, Kind::Malformed);
    }
    let mut next = header[6];
    let mut offset = offset + 40;
    for _ in 0..EXTENSION_HEADERS_MAX {
        match next {
            NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_AUTHENTICATION
            | NEXT_DESTINATION => {}
            _ => return transport(packet, offset, next, destination),
        }
        match extension(packet, offset, next) {
            Ok((after, length)) => {
                next = after;
                offset += length;
            }
            Err(kind) => return Parsed::at(destination, kind),
        }
    }
    match next {
        NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_FRAGMENT | NEXT_AUTHENTICATION | NEXT_DESTINATION => {
            Parsed::at(destination, Kind::Malformed)
        }
        _ => transport(packet, offset, next, destination),
    }
}

/// What follows an extension header, and how long it is.
#[inline(always)]
fn extension<P: Packet + ?Sized>(packet: &P, offset: usize, kind: u8) -> Result<(u8, usize), Kind> {
    let [next, length, high, low] = packet.bytes::<4>(offset).ok_or(Kind::Malformed)?;
    let length = usize::from(length);
    match kind {
        // An "atomic" fragment is a whole packet (RFC 6946); reserved bits do not count.
        NEXT_FRAGMENT if u16::from_be_bytes([high, low]) & 0xfff9 == 0 => Ok((next, 8)),
        NEXT_FRAGMENT => Err(Kind::Fragment),
        // Segments left: the address we see is not where it is going. The kernel follows none of
        // these unless it is told to.
        NEXT_ROUTING if low != 0 => Err(Kind::Malformed),
        NEXT_AUTHENTICATION => Ok((next, (length + 2) * 4)),
        _ => Ok((next, (length + 1) * 8)),
    }
}

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

#[inline(always)]
fn transport<P: Packet + ?Sized>(
    packet: &P,
    offset: usize,
    protocol: u8,
    destination: Destination,
) -> Parsed {
    let (kind, port) = match protocol {
        PROTOCOL_TCP => tcp(packet, offset),
        PROTOCOL_UDP => match packet.bytes::<8>(offset) {
            Some([_, _, high, low, ..]) => (Kind::Datagram, u16::from_be_bytes([high, low])),
            None => (Kind::Malformed, 0),
        },
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => (Kind::Icmp, 0),
        _ => (Kind::OtherProtocol, 0),
    };
    Parsed { destination, kind, port }
}

#[inline(always)]
fn tcp<P: Packet + ?Sized>(packet: &P, offset: usize) -> (Kind, u16) {
    let Some(header) = packet.bytes::<20>(offset) else { return (Kind::Malformed, 0) };
    if header[12] >> 4 < 5 {
        return (Kind::Malformed, 0);
    }
    let flags = header[13];
    if flags & (TCP_SYN | TCP_ACK) == TCP_SYN {
        // SYN with FIN or RST is nothing that RFC 9293 knows, only scanners.
        if flags & (TCP_FIN | TCP_RST) != 0 {
            return (Kind::Malformed, 0);
        }
        return (Kind::Syn, u16::from_be_bytes([header[2], header[3]]));
    }
    // After the first SYN every segment acknowledges, a reset excepted (RFC 9293, 3.10.7).
    if flags & (TCP_ACK | TCP_RST) == 0 {
        return (Kind::Malformed, 0);
    }
    (Kind::Segment, 0)
}

// === impl Parsed ===

impl Parsed {
    #[inline(always)]
    fn lost(kind: Kind) -> Self {
        Self::at(Destination::Unknown, kind)
    }

    #[inline(always)]
    fn at(destination: Destination, kind: Kind) -> Self {
        Self { destination, kind, port: 0 }
    }
}

/// Bytes of the host.
impl Packet for [u8] {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

#[cfg(test)]
mod tests;
