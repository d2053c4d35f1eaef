//! The PROXY protocol header that tells an instance who the client of a raw connection is.
//!
//! Written only; the specification is haproxy.org's `proxy-protocol.txt`, sections 2.1 and 2.2.

use std::net::{IpAddr, SocketAddr};

use control::snapshot::ProxyProtocol;

/// The header for a connection from `client` to `local`.
pub fn header(version: ProxyProtocol, client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let (source, destination) = same_family(client.ip().to_canonical(), local.ip().to_canonical());
    match version {
        ProxyProtocol::V1 => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (client.port(), local.port());
            format!("PROXY {family} {source} {destination} {from} {to}\r\n").into_bytes()
        }
        ProxyProtocol::V2 => v2(source, destination, client.port(), local.port()),
    }
}

fn v2(source: IpAddr, destination: IpAddr, from: u16, to: u16) -> Vec<u8> {
    const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
    const VERSION_2_PROXY: u8 = 0x21;
    const TCP_OVER_IPV4: u8 = 0x11;
    const TCP_OVER_IPV6: u8 = 0x21;
    let mut addresses = Vec::with_capacity(36);
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => addresses.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => addresses.extend_from_slice(&address.octets()),
        }
    }
    addresses.extend_from_slice(&from.to_be_bytes());
    addresses.extend_from_slice(&to.to_be_bytes());
    let family = if source.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 };
    let mut header = SIGNATURE.to_vec();
    header.extend_from_slice(&[VERSION_2_PROXY, family]);
    header.extend_from_slice(&(addresses.len() as u16).to_be_bytes());
    header.extend_from_slice(&addresses);
    header
}

/// Both addresses in one family: the header has only one.
fn same_family(source: IpAddr, destination: IpAddr) -> (IpAddr, IpAddr) {
    let v6 = |address| match address {
        IpAddr::V4(address) => IpAddr::V6(address.to_ipv6_mapped()),
        IpAddr::V6(_) => address,
    };
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (v6(source), v6(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_a_line() {
        let header = |client: &str, local: &str| {
            let header = header(ProxyProtocol::V1, client.parse().unwrap(), local.parse().unwrap());
            String::from_utf8(header).unwrap()
        };
        let v4 = header("198.51.100.9:4711", "198.51.100.1:5432");
        assert_eq!(v4, "PROXY TCP4 198.51.100.9 198.51.100.1 4711 5432\r\n");
        let mapped = header("[::ffff:198.51.100.9]:1", "198.51.100.1:2");
        assert_eq!(mapped, "PROXY TCP4 198.51.100.9 198.51.100.1 1 2\r\n");
        let v6 = header("[2001:db8::9]:1", "[2001:db8::1]:2");
        assert_eq!(v6, "PROXY TCP6 2001:db8::9 2001:db8::1 1 2\r\n");
    }

    #[test]
    fn version_2_is_binary_with_the_length_of_what_follows() {
        let client = "198.51.100.9:4711".parse().unwrap();
        let header = header(ProxyProtocol::V2, client, "198.51.100.1:5432".parse().unwrap());
        assert_eq!(header.len(), 16 + 12);
        assert_eq!(header[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(header[16..20], [198, 51, 100, 9]);
        assert_eq!(header[24..28], [0x12, 0x67, 0x15, 0x38]);
    }
}
