//! Ports that nobody else will take before they are used.
//!
//! They come from below the range the kernel gives to outgoing connections, and each process
//! starts at another place, so that neither a client's socket nor another test run gets between
//! choosing a port and binding it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port that is free on every loopback address the harness uses.
///
/// # Panics
/// When none of the range is free.
pub fn free() -> u16 {
    let start = std::process::id().wrapping_mul(251);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("the range ends below 65,536");
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// Whether some process listens on exactly this IPv4 address, found without connecting.
///
/// # Panics
/// When the kernel does not tell.
pub fn is_listening(address: SocketAddr) -> bool {
    const LISTEN: &str = "0A";
    let IpAddr::V4(ip) = address.ip() else { return false };
    let place = format!("{:08X}:{:04X}", u32::from_le_bytes(ip.octets()), address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel tells");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(&place) && fields.nth(1) == Some(LISTEN)
    })
}

/// `127.0.0.last`: all of 127/8 is loopback, so two nodes can share port numbers.
pub fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// A free port on `127.0.0.last`.
pub fn free_address(last: u8) -> SocketAddr {
    SocketAddr::new(loopback(last), free())
}
