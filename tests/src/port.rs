//! Ports that nobody else will take before they are used.
//!
//! They come from below the range the kernel gives to outgoing connections, and each process
//! starts at another place, so that neither a client's socket nor another test run gets between
//! choosing a port and binding it.
//! Whether one is free is read, not tried: a child that another test is just starting holds a copy
//! of every socket until it executes its program, and a port that was bound for a moment would be
//! taken for as long.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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
        if !listening().any(|(_, taken)| taken == port) {
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
    let IpAddr::V4(ip) = address.ip() else { return false };
    let ip = format!("{:08X}", u32::from_le_bytes(ip.octets()));
    listening().any(|place| place == (ip.clone(), address.port()))
}

/// Where anybody listens: the address as the kernel writes it, and the port.
fn listening() -> impl Iterator<Item = (String, u16)> {
    const LISTEN: &str = "0A";
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(|table| {
        let table = std::fs::File::open(table).expect("the kernel tells");
        let lines = BufReader::new(table).lines().skip(1).map(|line| line.expect("it is text"));
        // Those that listen come first, before what may be many thousand connections.
        lines.map_while(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (address, port) = fields.next()?.split_once(':')?;
            (fields.nth(1) == Some(LISTEN)).then_some(())?;
            Some((address.to_owned(), u16::from_str_radix(port, 16).ok()?))
        })
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
