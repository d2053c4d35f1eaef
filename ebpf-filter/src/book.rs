//! Which app asks for what, and the order in which a change reaches the maps.
//!
//! A packet may be judged between any two steps of a change. The rule that keeps every such moment
//! right is that an entry never means something unfinished:
//!
//! - A policy is one entry, replaced as a whole, so an address has the app's old ports or its new
//!   ones. Ports that do not fit into it are blocks of a *set*. A set is complete before the first
//!   policy names it and is removed after the last policy that named it is gone; a change of ports
//!   is a new set, never a change of one that is in use.
//! - An address that an app gives up gets the policy of the prefix around it at once, because its own
//!   entry goes. One that moves to another app is overwritten by the other's policy. The entry says
//!   whose it is, so the app that lost it does not take it from the one that has it.
//! - An anycast prefix itself always has an entry: that of the shared apps, or of nobody. It is
//!   replaced and never removed, so nothing becomes "outside" for a moment.
//!
//! What this does not give: an app with two addresses changes at one a few microseconds before the
//! other. Each of them is right all the time.
//!
//! One limit is the kernel's. It may reuse the memory of a replaced entry while a program on another
//! core still reads it, so within some nanoseconds one packet can meet another entry's policy. The
//! maps themselves are right, and whoever accepts the connection judges it again.

mod shared;

use std::collections::HashMap;
use std::sync::Arc;

use ebpf_filter_common::{AppIndex, NOBODY, Policy, PortBlock};
use ipnet::IpNet;

use crate::error::FilterError;
use crate::policy::{AppPolicy, Ports};
use crate::store::Store;
use shared::SharedRanges;

/// The apps as they are in the maps.
///
/// Costs about 150 bytes per app and 18 per address.
pub(crate) struct Book {
    /// The anycast prefixes, none inside another.
    prefixes: Vec<IpNet>,
    numbers: HashMap<Arc<str>, AppIndex>,
    /// By number. [`NOBODY`] has none.
    apps: Vec<Option<Entry>>,
    /// Numbers that are free again.
    free: Vec<AppIndex>,
    next_set: u32,
    shared_ranges: SharedRanges,
    shared: Applied,
}

struct Entry {
    name: Arc<str>,
    /// Sorted, each inside an anycast prefix.
    addresses: Box<[IpNet]>,
    shared: bool,
    applied: Applied,
}

/// What an app asks for, before it has a policy.
struct Wanted {
    name: Arc<str>,
    addresses: Box<[IpNet]>,
    shared: bool,
    ports: Ports,
}

/// Ports as they are in the maps.
#[derive(Clone, Default)]
struct Applied {
    policy: Policy,
    /// Only where the policy does not say it all.
    ports: Option<Box<Ports>>,
}

/// Policies that are put at once while all are replaced: what there is twice in memory meanwhile.
const AT_ONCE: usize = 16_384;

// === impl Book ===

impl Book {
    pub(crate) fn new(prefixes: &[IpNet]) -> Self {
        Self {
            prefixes: IpNet::aggregate(&prefixes.to_vec()),
            numbers: HashMap::new(),
            apps: vec![None],
            free: Vec::new(),
            next_set: 1,
            shared_ranges: SharedRanges::default(),
            shared: Applied::default(),
        }
    }

    /// The name of an app by its number.
    pub(crate) fn name(&self, app: AppIndex) -> Option<&str> {
        self.entry(app).map(|entry| &*entry.name)
    }

    /// Names by number, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = (AppIndex, &str)> {
        let numbered = (0..).zip(&self.apps);
        numbered.filter_map(|(app, entry)| Some((app, &*entry.as_ref()?.name)))
    }

    /// Memory on the heap, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let entry = |entry: &Entry| {
            let ports = entry.applied.ports.as_ref().map_or(0, |ports| ports.bytes());
            entry.name.len() + 16 + entry.addresses.len() * size_of::<IpNet>() + ports
        };
        self.apps.iter().flatten().map(entry).sum::<usize>()
            + self.apps.capacity() * size_of::<Option<Entry>>()
            + self.numbers.capacity() * size_of::<(Arc<str>, AppIndex)>()
    }

    /// Makes the maps say this, whatever they said before, without a moment in which they say less
    /// than both: everything new is put first, then what is left of the old goes.
    pub(crate) fn replace_all(
        &mut self,
        store: &mut impl Store,
        apps: impl Iterator<Item = AppPolicy>,
    ) -> Result<(), FilterError> {
        let mut last_set = 0;
        store.visit_ports(&mut |block| last_set = last_set.max(block.set))?;
        let old_sets = last_set.max(self.next_set - 1);
        *self = Self { next_set: old_sets + 1, ..Self::new(&self.prefixes) };

        let (mut blocks, mut policies) = (Vec::new(), Vec::new());
        let put = |store: &mut _, blocks: &mut Vec<_>, policies: &mut Vec<_>| {
            Store::put_ports(store, blocks)?;
            Store::put_policies(store, policies)?;
            blocks.clear();
            policies.clear();
            Ok(())
        };
        for app in apps {
            // Listed twice: the later one counts.
            if let Some(twice) = self.take(&app.app) {
                self.free.push(twice.applied.policy.app);
                if twice.shared {
                    self.shared_ranges.uncount(&twice.applied.ports());
                }
            }
            let applied = self.lay_out(Ports::of(&app), self.free_number(), &mut blocks);
            let name = Arc::from(&*app.app);
            let entry = Entry { name, addresses: self.within(&app), shared: app.shared, applied };
            policies.extend(entry.addresses.iter().map(|net| (*net, entry.applied.policy)));
            if entry.shared {
                self.shared_ranges.count(&entry.applied.ports());
            }
            self.enter(entry);
            if policies.len() >= AT_ONCE {
                put(store, &mut blocks, &mut policies)?;
            }
        }
        self.shared = self.lay_out(self.shared_ranges.ports(), NOBODY, &mut blocks);
        put(store, &mut blocks, &mut policies)?;
        self.close_prefixes(store)?;
        self.remove_stale(store, old_sets)?;
        self.names().try_for_each(|(app, _)| store.reset_counters(app))
    }

    /// Puts the shared policy on every prefix that is no app's as a whole. This is what closes a prefix
    /// to what nobody asked for, so it comes after everything that is asked for.
    fn close_prefixes(&self, store: &mut impl Store) -> Result<(), FilterError> {
        for prefix in &self.prefixes {
            let policy = store.policy(prefix)?.unwrap_or_default();
            if policy.app == NOBODY || !self.owns(policy.app, prefix) {
                store.put_policies(&[(*prefix, self.shared.policy)])?;
            }
        }
        Ok(())
    }

    /// Removes what is not in the book: entries of before, sets up to `old_sets`.
    fn remove_stale(&self, store: &mut impl Store, old_sets: u32) -> Result<(), FilterError> {
        let mut stale = Vec::new();
        store.visit_policies(&mut |net, policy| {
            if !self.owns(policy.app, &net) {
                stale.push(net);
            }
        })?;
        store.remove_policies(&stale)?;
        let mut stale = Vec::new();
        store.visit_ports(&mut |block| {
            if block.set <= old_sets {
                stale.push(block);
            }
        })?;
        store.remove_ports(&stale)
    }

    /// Adds an app, or replaces what it asked for. When it fails the maps are as before.
    pub(crate) fn apply(
        &mut self,
        store: &mut impl Store,
        app: &AppPolicy,
    ) -> Result<(), FilterError> {
        let (ports, addresses) = (Ports::of(app), self.within(app));
        let old = self.take(&app.app);
        let name = old.as_ref().map_or_else(|| Arc::from(&*app.app), |old| Arc::clone(&old.name));
        let wanted = Wanted { name, ports, addresses, shared: app.shared };
        match self.change(store, old.as_ref(), Some(wanted)) {
            Ok(new) => {
                self.enter(new.expect("something was asked for"));
                Ok(())
            }
            Err(error) => {
                if let Some(old) = old {
                    self.enter(old);
                }
                Err(error)
            }
        }
    }

    /// Removes an app, if there is one.
    pub(crate) fn remove(&mut self, store: &mut impl Store, app: &str) -> Result<(), FilterError> {
        let Some(old) = self.take(app) else { return Ok(()) };
        if let Err(error) = self.change(store, Some(&old), None) {
            self.enter(old);
            return Err(error);
        }
        self.free.push(old.applied.policy.app);
        Ok(())
    }

    /// From what an app asked for to what it asks for now: what it gets, then the shared ports, then
    /// what it gives up. In this order an address that goes from shared to dedicated or back has one
    /// of the two all the time.
    fn change(
        &mut self,
        store: &mut impl Store,
        old: Option<&Entry>,
        new: Option<Wanted>,
    ) -> Result<Option<Entry>, FilterError> {
        let mut blocks = Vec::new();
        let entry = match new {
            None => None,
            Some(Wanted { name, ports, addresses, shared }) => {
                let applied = match old {
                    Some(old) if old.applied.ports() == ports => old.applied.clone(),
                    Some(old) => self.lay_out(ports, old.applied.policy.app, &mut blocks),
                    None => {
                        let number = self.free_number();
                        store.reset_counters(number)?;
                        self.lay_out(ports, number, &mut blocks)
                    }
                };
                Some(Entry { name, addresses, shared, applied })
            }
        };
        let counted = self.shared_ranges.clone();
        let mut result = entry.as_ref().map_or(Ok(()), |entry| self.put(store, entry, &blocks));
        if result.is_ok() {
            if let Some(old) = old.filter(|old| old.shared) {
                self.shared_ranges.uncount(&old.applied.ports());
            }
            if let Some(new) = entry.as_ref().filter(|new| new.shared) {
                self.shared_ranges.count(&new.applied.ports());
            }
            result = self.apply_shared(store);
        }
        if let Err(error) = result {
            self.shared_ranges = counted;
            let undone = entry.map_or(Ok(()), |entry| self.undo(store, old, &entry, &blocks));
            return Err(first(error, undone));
        }
        if let Some(old) = old {
            self.give_up(store, old, entry.as_ref())?;
        }
        Ok(entry)
    }

    /// Takes what an app had and has no more.
    fn give_up(
        &self,
        store: &mut impl Store,
        old: &Entry,
        new: Option<&Entry>,
    ) -> Result<(), FilterError> {
        for net in &old.addresses {
            if new.is_none_or(|new| new.addresses.binary_search(net).is_err()) {
                self.vacate(store, net, old.applied.policy.app)?;
            }
        }
        let set = old.applied.policy.set;
        if set != 0 && new.is_none_or(|new| new.applied.policy.set != set) {
            store.remove_ports(&keys(&old.applied.ports().blocks(set)))?;
        }
        Ok(())
    }

    /// Blocks, then the policies that name them.
    fn put(
        &self,
        store: &mut impl Store,
        entry: &Entry,
        blocks: &[(PortBlock, u64)],
    ) -> Result<(), FilterError> {
        store.put_ports(blocks)?;
        let policy = entry.applied.policy;
        let policies: Vec<_> = entry.addresses.iter().map(|net| (*net, policy)).collect();
        store.put_policies(&policies)
    }

    /// A change that met a full map: the policies that it had put go back, then its blocks.
    fn undo(
        &self,
        store: &mut impl Store,
        old: Option<&Entry>,
        new: &Entry,
        blocks: &[(PortBlock, u64)],
    ) -> Result<(), FilterError> {
        for net in &new.addresses {
            match old {
                Some(old) if old.addresses.binary_search(net).is_ok() => {
                    store.put_policies(&[(*net, old.applied.policy)])?;
                }
                _ => self.vacate(store, net, new.applied.policy.app)?,
            }
        }
        store.remove_ports(&keys(blocks))
    }

    /// Takes an address from an app, unless it is another's by now.
    fn vacate(
        &self,
        store: &mut impl Store,
        net: &IpNet,
        app: AppIndex,
    ) -> Result<(), FilterError> {
        if store.policy(net)?.is_none_or(|policy| policy.app != app) {
            return Ok(());
        }
        if self.prefixes.contains(net) {
            return store.put_policies(&[(*net, self.shared.policy)]);
        }
        store.remove_policies(&[*net])
    }

    /// Puts the shared apps' ports where nobody's addresses are, if they changed.
    fn apply_shared(&mut self, store: &mut impl Store) -> Result<(), FilterError> {
        let ports = self.shared_ranges.ports();
        if ports == self.shared.ports() {
            return Ok(());
        }
        let mut blocks = Vec::new();
        let new = self.lay_out(ports, NOBODY, &mut blocks);
        let put = store.put_ports(&blocks).and_then(|()| self.put_shared(store, &new.policy));
        if let Err(error) = put {
            let undone = self.put_shared(store, &self.shared.policy);
            return Err(first(error, undone.and_then(|()| store.remove_ports(&keys(&blocks)))));
        }
        let old = std::mem::replace(&mut self.shared, new);
        store.remove_ports(&keys(&old.ports().blocks(old.policy.set)))
    }

    fn put_shared(&self, store: &mut impl Store, policy: &Policy) -> Result<(), FilterError> {
        for net in &self.prefixes {
            if store.policy(net)?.is_none_or(|policy| policy.app == NOBODY) {
                store.put_policies(&[(*net, *policy)])?;
            }
        }
        Ok(())
    }

    /// Whether an entry of the maps is in the book.
    fn owns(&self, app: AppIndex, net: &IpNet) -> bool {
        if app == NOBODY {
            return self.prefixes.contains(net);
        }
        self.entry(app).is_some_and(|entry| entry.addresses.binary_search(net).is_ok())
    }

    /// A policy for these ports; with a new set, whose blocks are added, where they do not fit.
    fn lay_out(
        &mut self,
        ports: Ports,
        app: AppIndex,
        blocks: &mut Vec<(PortBlock, u64)>,
    ) -> Applied {
        let set = if ports.overflow() { self.next_set } else { 0 };
        if set != 0 {
            // 4 billion changes of ports: more than a century at one a second.
            self.next_set += 1;
            blocks.extend(ports.blocks(set));
        }
        let policy = ports.policy(app, set);
        Applied { policy, ports: (set != 0).then(|| Box::new(ports)) }
    }

    /// The parts of an app's addresses that lie inside the anycast prefixes.
    fn within(&self, app: &AppPolicy) -> Box<[IpNet]> {
        let mut within = Vec::with_capacity(app.addresses.len());
        for net in app.addresses.iter().map(IpNet::trunc) {
            for prefix in &self.prefixes {
                if prefix.contains(&net) {
                    within.push(net);
                } else if net.contains(prefix) {
                    within.push(*prefix);
                }
            }
        }
        within.sort_unstable();
        within.dedup();
        within.into()
    }

    /// The number that the next new app has.
    fn free_number(&self) -> AppIndex {
        let next = || AppIndex::try_from(self.apps.len()).expect("fewer apps than addresses");
        self.free.last().copied().unwrap_or_else(next)
    }

    fn entry(&self, app: AppIndex) -> Option<&Entry> {
        self.apps.get(app as usize)?.as_ref()
    }

    fn enter(&mut self, entry: Entry) {
        let app = entry.applied.policy.app;
        if self.free.last() == Some(&app) {
            self.free.pop();
        }
        if self.apps.len() <= app as usize {
            self.apps.resize_with(app as usize + 1, || None);
        }
        self.numbers.insert(Arc::clone(&entry.name), app);
        self.apps[app as usize] = Some(entry);
    }

    /// Takes an app out of the book; its number stays its own.
    fn take(&mut self, name: &str) -> Option<Entry> {
        let app = self.numbers.remove(name)?;
        self.apps[app as usize].take()
    }
}

// === impl Applied ===

impl Applied {
    fn ports(&self) -> Ports {
        self.ports.as_deref().map_or_else(|| Ports::inside(&self.policy), Ports::clone)
    }
}

/// The error of a change that failed, when it could be undone; that is said where it could not.
fn first(error: FilterError, undone: Result<(), FilterError>) -> FilterError {
    if let Err(undo) = undone {
        tracing::error!(error = %undo, "a change of the filter is half undone");
    }
    error
}

fn keys(blocks: &[(PortBlock, u64)]) -> Vec<PortBlock> {
    blocks.iter().map(|(block, _)| *block).collect()
}

#[cfg(test)]
mod tests;
