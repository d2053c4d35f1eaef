//! From what apps want to what the kernel lets in.
//!
//! An app with addresses of its own is a policy of those addresses. All others are served at the
//! shared addresses and told apart by name, which the kernel does not see, so together they are
//! one more policy: [`SHARED`].

use std::net::IpAddr;

use control::snapshot::App;
use ebpf_filter::AppPolicy;
use ipnet::IpNet;

use crate::config::Listen;
use crate::inventory::PortsInUse;

/// Under which name the shared addresses are counted; no app can have it.
pub(crate) const SHARED: &str = "__shared__";

/// Under which name addresses are counted that are nobody's; no app can have it.
pub(crate) const NOBODY: &str = "__nobody__";

/// The shared addresses as the kernel knows them.
pub(crate) struct Shared {
    /// Every address of the prefixes that no app has for itself; else only those below.
    everywhere: bool,
    addresses: Vec<IpNet>,
}

/// The policy of an app; `None` without addresses of its own.
pub(crate) fn of(app: &App) -> Option<AppPolicy> {
    if app.addresses.is_empty() {
        return None;
    }
    Some(AppPolicy {
        app: app.name.to_string(),
        addresses: app.addresses.iter().map(|address| host(*address)).collect(),
        shared: false,
        tcp: app.ports().map(|(_, _, port)| port.range.clone()).collect(),
        udp: Vec::new(), // services are TCP only
    })
}

fn host(address: IpAddr) -> IpNet {
    address.to_canonical().into()
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(listen: &Listen) -> Self {
        let Listen { addresses, prefixes, .. } = listen;
        let every = |v4: bool| {
            addresses.iter().any(|address| address.is_unspecified() && address.is_ipv4() == v4)
        };
        let (v4, v6) = (every(true), every(false));
        let whole = prefixes.iter().filter(|prefix| if prefix.addr().is_ipv4() { v4 } else { v6 });
        let single = addresses.iter().filter(|address| !address.is_unspecified());
        // The kernel is asked about the prefixes only.
        let single = single
            .map(|address| host(*address))
            .filter(|address| prefixes.iter().any(|prefix| prefix.contains(address)));
        let everywhere =
            prefixes.iter().all(|prefix| if prefix.addr().is_ipv4() { v4 } else { v6 });
        let addresses =
            if everywhere { Vec::new() } else { single.chain(whole.copied()).collect() };
        Self { everywhere, addresses }
    }

    /// Under which name addresses that are no app's own are counted.
    pub(crate) fn name_of_the_rest(&self) -> &'static str {
        if self.everywhere { SHARED } else { NOBODY }
    }

    /// What shared apps want together; `None` when there is nobody or nowhere.
    pub(crate) fn policy(&self, ports: &PortsInUse) -> Option<AppPolicy> {
        if ports.shared.is_empty() || !self.everywhere && self.addresses.is_empty() {
            return None;
        }
        Some(AppPolicy {
            app: SHARED.to_owned(),
            addresses: self.addresses.clone(),
            shared: self.everywhere,
            tcp: ports.shared.clone(),
            udp: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::inventory::tests::{app, limited};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn shared(addresses: &[&str]) -> Option<AppPolicy> {
        let listen = Listen {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            prefixes: nets(&["198.51.100.0/24", "2001:db8:1::/48"]),
            ..Listen::default()
        };
        let ports = PortsInUse { shared: vec![80..=80, 443..=443], dedicated: BTreeMap::new() };
        Shared::new(&listen).policy(&ports)
    }

    #[test]
    fn an_app_asks_for_its_ports_at_its_addresses() {
        let mut dedicated = app("db", vec![limited(1, None), limited(1, None)], Vec::new());
        assert_eq!(of(&dedicated), None, "it has none of its own");
        dedicated.addresses = ["198.51.100.7", "::ffff:198.51.100.8", "2001:db8:1::7"]
            .map(|address| address.parse().unwrap())
            .to_vec();
        dedicated.services[1].ports[0].range = 5432..=5440;
        let policy = of(&dedicated).unwrap();
        assert_eq!(policy.app, "db");
        assert_eq!(
            policy.addresses,
            nets(&["198.51.100.7/32", "198.51.100.8/32", "2001:db8:1::7/128"])
        );
        assert_eq!(
            (policy.shared, policy.tcp, policy.udp),
            (false, vec![80..=80, 5432..=5440], vec![])
        );
    }

    #[test]
    fn shared_apps_ask_together_everywhere_or_at_the_addresses_that_are_listed() {
        let everywhere = shared(&["0.0.0.0", "::"]).unwrap();
        assert!(everywhere.shared && everywhere.addresses.is_empty());
        assert_eq!(everywhere.tcp, [80..=80, 443..=443]);
        let some = shared(&["198.51.100.1", "10.0.0.1", "::"]).unwrap();
        assert!(!some.shared);
        assert_eq!(some.addresses, nets(&["198.51.100.1/32", "2001:db8:1::/48"]));
        assert_eq!(shared(&["10.0.0.1"]), None);
        assert_eq!(shared(&[]), None);
    }
}
