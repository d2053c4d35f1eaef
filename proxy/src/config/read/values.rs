//! Values with a form of their own: trust domains, addresses, prefixes.

use std::net::IpAddr;

use control::document::Item;

/// A SPIFFE trust domain.
pub(super) fn trust_domain(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
    };
    if matches!(text.len(), 1..=255) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 255 of a-z, 0-9, -, _ and .".to_owned())
    }
}

pub(super) fn listen_address(item: &Item<'_>) -> Option<IpAddr> {
    let address = item.ip()?;
    if address.is_multicast() {
        return item.wrong("an address of this node");
    }
    Some(address)
}

/// An address range such as `198.51.100.0/24`.
pub(super) fn prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || "must be an address range, such as \"198.51.100.0/24\"".to_owned();
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    if length > width {
        return Err(wrong());
    }
    let host_bits = u32::from(width - length);
    if host_bits > 0 && bits << (128 - host_bits) != 0 {
        return Err("has bits set beyond its length; write the range's first address".to_owned());
    }
    Ok((address, length))
}
