//! Values with a form of their own: trust domains, addresses, prefixes, interfaces.

use std::net::IpAddr;

use control::document::Item;
use http::Uri;
use ipnet::IpNet;

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

/// A URL with one of these schemes and a host.
pub(super) fn url(item: &Item<'_>, schemes: &[&str]) -> Option<Uri> {
    let uri = item.string()?.parse::<Uri>().ok();
    let fits = |uri: &Uri| {
        uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme)) && uri.host().is_some()
    };
    uri.filter(fits)
        .or_else(|| item.wrong(&format!("a URL that starts with {}://", schemes.join(":// or "))))
}

/// An address range such as `198.51.100.0/24`.
pub(super) fn prefix(text: &str) -> Result<IpNet, &'static str> {
    let prefix: IpNet =
        text.parse().map_err(|_| "must be an address range, such as \"198.51.100.0/24\"")?;
    if prefix != prefix.trunc() {
        return Err("has bits set beyond its length; write the range's first address");
    }
    Ok(prefix)
}

/// The name of a network interface, as the kernel takes it.
pub(super) fn interface(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if matches!(text.len(), 1..=15) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a network interface, such as \"eth0\"")
    }
}
