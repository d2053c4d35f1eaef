//! Which ports apps want, and whose a port of the shared addresses is.
//!
//! Ranges stay ranges: an app that wants 1 to 65535 costs as much as one that wants 443.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use control::snapshot::{App, AppName};

/// What has to be listened on. Ranges are sorted and do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortsInUse {
    /// On the node's shared addresses.
    pub shared: Vec<RangeInclusive<u16>>,
    /// On addresses that belong to one app.
    pub dedicated: BTreeMap<IpAddr, Vec<RangeInclusive<u16>>>,
}

/// Every app's wishes; the control thread's own.
#[derive(Default)]
pub(super) struct Claims {
    /// How many apps want HTTP on a range of shared ports.
    http: BTreeMap<(Range, Tls), usize>,
    /// Who wants a range of shared ports without HTTP.
    single: BTreeMap<Range, BTreeSet<AppName>>,
    dedicated: BTreeMap<IpAddr, (AppName, Vec<RangeInclusive<u16>>)>,
    changed: bool,
}

/// First and last port.
type Range = (u16, u16);
type Tls = bool;

/// Whose the ports of shared addresses are: sorted by the first port, without overlap.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SharedPorts {
    ranges: Vec<(Range, SharedPort)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SharedPort {
    Http { tls: bool },
    Of(AppName),
}

// === impl Claims ===

impl Claims {
    /// An app changed from `old` to `new`. One more app on ports that are in use changes nothing,
    /// so that the usual app is added without going over all the others.
    pub(super) fn replace(&mut self, old: Option<&App>, new: Option<&App>) {
        if let (Some(old), Some(new)) = (old, new)
            && old.addresses == new.addresses
            && old
                .ports()
                .map(|(_, _, port)| (&port.range, port.handlers))
                .eq(new.ports().map(|(_, _, port)| (&port.range, port.handlers)))
        {
            return;
        }
        if let Some(old) = old {
            self.remove(old);
        }
        if let Some(new) = new {
            self.add(new);
        }
    }

    /// Whether what is derived from the wishes may have changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn in_use(&self) -> PortsInUse {
        let http = self.http.keys().map(|(range, _)| *range);
        PortsInUse {
            shared: merged(http.chain(self.single.keys().copied())),
            dedicated: self
                .dedicated
                .iter()
                .map(|(address, (_, ranges))| (*address, ranges.clone()))
                .collect(),
        }
    }

    /// Sweeps over all wishes. Where they contradict each other (the catalog reports it) HTTP wins,
    /// because it serves many apps, and TLS over clear text; else the first app by name.
    pub(super) fn shared_ports(&self) -> SharedPorts {
        #[derive(Clone, Copy)]
        enum Wish<'a> {
            Http(Tls),
            Single(&'a BTreeSet<AppName>),
        }
        let http = self.http.keys().map(|(range, tls)| (*range, Wish::Http(*tls)));
        let single = self.single.iter().map(|(range, apps)| (*range, Wish::Single(apps)));
        // Where a wish begins (+1) and where it has ended (-1).
        let mut edges = Vec::new();
        for ((first, last), wish) in http.chain(single) {
            debug_assert!(first <= last, "a range of ports is not empty");
            edges.push((u32::from(first), 1_i32, wish));
            edges.push((u32::from(last) + 1, -1, wish));
        }
        edges.sort_by_key(|(at, ..)| *at);

        let mut ranges: Vec<(Range, SharedPort)> = Vec::new();
        let mut http = [0_i32; 2];
        let mut apps: BTreeMap<&AppName, i32> = BTreeMap::new();
        let mut edges = edges.into_iter().peekable();
        while let Some((at, change, wish)) = edges.next() {
            match wish {
                Wish::Http(tls) => http[usize::from(tls)] += change,
                Wish::Single(wanted) => {
                    for app in wanted {
                        let count = apps.entry(app).or_default();
                        *count += change;
                        if *count == 0 {
                            apps.remove(app);
                        }
                    }
                }
            }
            let Some(next) = edges.peek().map(|(at, ..)| *at).filter(|next| *next > at) else {
                continue;
            };
            let [clear, tls] = http;
            let port = if tls > 0 {
                SharedPort::Http { tls: true }
            } else if clear > 0 {
                SharedPort::Http { tls: false }
            } else if let Some((app, _)) = apps.first_key_value() {
                SharedPort::Of((*app).clone())
            } else {
                continue;
            };
            // Edges are at most 65,536.
            let (first, last) = (at as u16, (next - 1) as u16);
            match ranges.last_mut() {
                Some((range, own)) if *own == port && u32::from(range.1) + 1 == at => {
                    range.1 = last
                }
                _ => ranges.push(((first, last), port)),
            }
        }
        SharedPorts { ranges }
    }

    fn add(&mut self, app: &App) {
        if app.addresses.is_empty() {
            for (range, handlers) in shared(app) {
                match handlers {
                    Some(tls) => {
                        let count = self.http.entry((range, tls)).or_default();
                        *count += 1;
                        self.changed |= *count == 1;
                    }
                    None => {
                        self.single.entry(range).or_default().insert(app.name.clone());
                        self.changed = true;
                    }
                }
            }
        }
        for address in &app.addresses {
            let ranges = merged(app.ports().map(|(_, _, port)| bounds(&port.range)));
            self.dedicated.insert(address.to_canonical(), (app.name.clone(), ranges));
            self.changed = true;
        }
    }

    fn remove(&mut self, app: &App) {
        if app.addresses.is_empty() {
            for (range, handlers) in shared(app) {
                match handlers {
                    Some(tls) => {
                        if let Some(count) = self.http.get_mut(&(range, tls)) {
                            *count -= 1;
                            if *count == 0 {
                                self.http.remove(&(range, tls));
                                self.changed = true;
                            }
                        }
                    }
                    None => {
                        if let Some(apps) = self.single.get_mut(&range) {
                            apps.remove(&app.name);
                            self.changed = true;
                            if apps.is_empty() {
                                self.single.remove(&range);
                            }
                        }
                    }
                }
            }
        }
        for address in app.addresses.iter().map(IpAddr::to_canonical) {
            if self.dedicated.get(&address).is_some_and(|(owner, _)| *owner == app.name) {
                self.dedicated.remove(&address);
                self.changed = true;
            }
        }
    }
}

/// An app's ranges, each once, with `Some(tls)` where HTTP is spoken.
fn shared(app: &App) -> BTreeSet<(Range, Option<Tls>)> {
    app.ports()
        .map(|(_, _, port)| (bounds(&port.range), port.handlers.http.then_some(port.handlers.tls)))
        .collect()
}

fn bounds(range: &RangeInclusive<u16>) -> Range {
    (*range.start(), *range.end())
}

/// The same ports in as few ranges as possible.
fn merged(ranges: impl Iterator<Item = Range>) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<Range> = ranges.collect();
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => {
                before.1 = before.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(|(first, last)| first..=last).collect()
}

// === impl SharedPorts ===

impl SharedPorts {
    pub(super) fn at(&self, port: u16) -> Option<&SharedPort> {
        let after = self.ranges.partition_point(|((first, _), _)| *first <= port);
        let ((_, last), owner) = self.ranges.get(after.checked_sub(1)?)?;
        (port <= *last).then_some(owner)
    }
}

#[cfg(test)]
mod tests;
