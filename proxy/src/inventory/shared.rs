//! The addresses at which apps without addresses of their own are served.

use std::net::IpAddr;

/// What `listen.addresses` says; a handful.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedAddresses {
    single: Box<[IpAddr]>,
    every_v4: bool,
    every_v6: bool,
}

// === impl SharedAddresses ===

impl SharedAddresses {
    pub fn new(addresses: &[IpAddr]) -> Self {
        let every = |v4: bool| {
            addresses.iter().any(|address| address.is_unspecified() && address.is_ipv4() == v4)
        };
        let single = addresses.iter().filter(|address| !address.is_unspecified());
        Self {
            single: single.map(IpAddr::to_canonical).collect(),
            every_v4: every(true),
            every_v6: every(false),
        }
    }

    /// Whether apps that share are served at `address`, which is in its canonical form.
    pub fn contain(&self, address: IpAddr) -> bool {
        let every = if address.is_ipv4() { self.every_v4 } else { self.every_v6 };
        every || self.single.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unspecified_stands_for_its_family_and_others_for_themselves() {
        let check = |listed: &[&str], address: &str, expected| {
            let listed: Vec<_> = listed.iter().map(|address| address.parse().unwrap()).collect();
            let shared = SharedAddresses::new(&listed);
            assert_eq!(shared.contain(address.parse().unwrap()), expected, "{listed:?} {address}");
        };
        check(&["0.0.0.0"], "198.51.100.1", true);
        check(&["0.0.0.0"], "2001:db8::1", false);
        check(&["::"], "2001:db8::1", true);
        check(&["::"], "198.51.100.1", false);
        check(&["198.51.100.1"], "198.51.100.1", true);
        check(&["198.51.100.1"], "198.51.100.2", false);
        check(&["198.51.100.1", "::"], "2001:db8::1", true);
        check(&[], "198.51.100.1", false);
    }
}
