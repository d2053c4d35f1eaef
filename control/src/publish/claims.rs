//! Who holds which name, instance id and port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::snapshot::{App, AppName, Hostname, InstanceId, Port};

use super::{Claim, Contradiction};

/// What published apps hold.
#[derive(Default)]
pub(super) struct Claims {
    hostnames: HashMap<Hostname, AppName>,
    instances: HashMap<InstanceId, AppName>,
    /// Of each dedicated address: first port of a range → last port and holder; no two overlap.
    addresses: HashMap<IpAddr, BTreeMap<u16, (u16, AppName)>>,
    /// At most 65,535 ports; those of HTTP may have many holders.
    shared: BTreeMap<u16, Shared>,
}

/// One shared port.
enum Shared {
    /// The request's name chooses among the holders.
    Http {
        tls: bool,
        holders: BTreeSet<AppName>,
    },
    Whole(AppName),
}

impl Claims {
    /// What `app` claims and another app holds, at most `max` of it.
    pub(super) fn contradictions(&self, app: &App, max: usize) -> Vec<Contradiction> {
        let names = app
            .hostnames
            .iter()
            .filter_map(|name| Some((self.hostnames.get(name)?, Claim::Hostname(name.clone()))));
        let ports = app.ports().flat_map(|(_, _, port)| self.ports_held(app, port));
        let instances = app.instances.iter().filter_map(|instance| {
            let holder = self.instances.get(&instance.id)?;
            Some((holder, Claim::Instance(instance.id.clone())))
        });
        names
            .chain(ports)
            .chain(instances)
            .filter(|(holder, _)| **holder != app.name)
            .map(|(holder, claim)| Contradiction {
                app: app.name.clone(),
                holder: holder.clone(),
                claim,
            })
            .take(max)
            .collect()
    }

    /// Everything that somebody holds of what `port` of `app` claims.
    fn ports_held<'a>(&'a self, app: &'a App, port: &'a Port) -> Vec<(&'a AppName, Claim)> {
        let mut held = Vec::new();
        for address in &app.addresses {
            let Some(ranges) = self.addresses.get(address) else { continue };
            for (first, (last, holder)) in overlapping(ranges, &port.range) {
                if last >= port.range.start() && *holder != app.name {
                    held.push((holder, Claim::Address(*address, *first.max(port.range.start()))));
                }
            }
        }
        if !app.addresses.is_empty() {
            return held;
        }
        for (number, shared) in self.shared.range(port.range.clone()) {
            held.extend(shared.against(app, port, *number));
        }
        held
    }

    pub(super) fn take(&mut self, app: &App) {
        let App { name, hostnames, addresses, instances, .. } = app;
        self.hostnames.extend(hostnames.iter().map(|host| (host.clone(), name.clone())));
        self.instances.extend(instances.iter().map(|held| (held.id.clone(), name.clone())));
        for (_, _, port) in app.ports() {
            for address in addresses {
                let ranges = self.addresses.entry(*address).or_default();
                ranges.insert(*port.range.start(), (*port.range.end(), name.clone()));
            }
            if addresses.is_empty() {
                self.take_shared(name, port);
            }
        }
    }

    fn take_shared(&mut self, name: &AppName, port: &Port) {
        let tls = port.handlers.tls;
        for number in port.range.clone() {
            if !port.handlers.http {
                self.shared.insert(number, Shared::Whole(name.clone()));
                continue;
            }
            let http = || Shared::Http { tls, holders: BTreeSet::new() };
            match self.shared.entry(number).or_insert_with(http) {
                Shared::Http { holders, .. } => {
                    holders.insert(name.clone());
                }
                Shared::Whole(_) => debug_assert!(false, "port {number} was taken unasked"),
            }
        }
    }

    pub(super) fn release(&mut self, app: &App) {
        let App { name, hostnames, addresses, instances, .. } = app;
        for hostname in hostnames {
            self.hostnames.remove(hostname);
        }
        for instance in instances {
            self.instances.remove(&instance.id);
        }
        for (_, _, port) in app.ports() {
            for address in addresses {
                if let Some(ranges) = self.addresses.get_mut(address) {
                    ranges.remove(port.range.start());
                }
            }
            if addresses.is_empty() {
                self.release_shared(name, port.range.clone());
            }
        }
        for address in addresses {
            if self.addresses.get(address).is_some_and(BTreeMap::is_empty) {
                self.addresses.remove(address);
            }
        }
    }

    fn release_shared(&mut self, name: &AppName, range: RangeInclusive<u16>) {
        for number in range {
            let free = match self.shared.get_mut(&number) {
                Some(Shared::Http { holders, .. }) => {
                    holders.remove(name);
                    holders.is_empty()
                }
                Some(Shared::Whole(_)) => true,
                None => false,
            };
            if free {
                self.shared.remove(&number);
            }
        }
    }
}

impl Shared {
    /// The first other holder that `port` of `app` cannot be beside.
    fn against(&self, app: &App, port: &Port, number: u16) -> Option<(&AppName, Claim)> {
        match self {
            Self::Whole(holder) => {
                (*holder != app.name).then_some((holder, Claim::WholePort(number)))
            }
            Self::Http { tls, holders } => {
                if port.handlers.http && port.handlers.tls == *tls {
                    return None;
                }
                let other = holders.iter().find(|holder| **holder != app.name)?;
                let claim = if port.handlers.http { Claim::PortHandlers } else { Claim::WholePort };
                Some((other, claim(number)))
            }
        }
    }
}

/// The ranges that may overlap `range`: those that begin in it, and the one that begins before it.
fn overlapping<'a, T>(
    ranges: &'a BTreeMap<u16, T>,
    range: &RangeInclusive<u16>,
) -> impl Iterator<Item = (&'a u16, &'a T)> {
    let before = ranges.range(..*range.start()).next_back();
    before.into_iter().chain(ranges.range(range.clone()))
}
