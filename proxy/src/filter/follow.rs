//! Keeps the kernel's table at what the inventory says: each change as it comes, and what failed
//! again later.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use control::snapshot::AppName;
use ebpf_filter::{AppPolicy, FilterError};

use super::policy::{self, SHARED, Shared};
use crate::inventory::Inventory;
use telemetry::error::chain;

/// Where policies go.
pub(crate) trait Table {
    fn replace_all(
        &mut self,
        policies: &mut dyn Iterator<Item = AppPolicy>,
    ) -> Result<(), FilterError>;
    fn apply(&mut self, policy: &AppPolicy) -> Result<(), FilterError>;
    fn remove(&mut self, app: &str) -> Result<(), FilterError>;
}

/// What the table should hold, and what of it did not get there.
pub(crate) struct Follower {
    shared: Shared,
    /// The shared ports that were sent last.
    sent: Vec<RangeInclusive<u16>>,
    behind: Behind,
    /// Another process keeps the table now.
    superseded: bool,
}

/// What the table does not hold yet; at most all apps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Behind {
    everything: bool,
    shared: bool,
    apps: BTreeSet<AppName>,
}

/// Pause before what failed is tried again, and the longest one.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

// === impl Follower ===

impl Follower {
    /// Sends nothing before [`replace_all`](Self::replace_all): a start without a catalog would
    /// take from the table what another process left there.
    pub(crate) fn new(shared: Shared) -> Self {
        let behind = Behind { everything: true, ..Behind::default() };
        Self { shared, sent: Vec::new(), behind, superseded: false }
    }

    /// The whole inventory, in place of whatever the table held.
    pub(crate) fn replace_all(&mut self, table: &mut impl Table, inventory: &Inventory) {
        let ports = inventory.ports().borrow().clone();
        let entries = inventory.entries();
        let own = entries.iter().filter_map(|entry| policy::of(&entry.app));
        let mut policies = own.chain(self.shared.policy(&ports));
        self.sent.clone_from(&ports.shared);
        self.behind = Behind::default();
        self.superseded = false;
        if let Err(error) = table.replace_all(&mut policies) {
            self.behind.everything = true;
            complain(&error, "all apps");
        }
    }

    /// One app's change, after the inventory has it.
    pub(crate) fn changed(&mut self, table: &mut impl Table, inventory: &Inventory, app: &AppName) {
        // All will be read anyway.
        if self.behind.everything || self.superseded {
            return;
        }
        self.send_app(table, inventory, app);
        self.send_shared(table, inventory);
    }

    /// Whether the table lacks something.
    pub(crate) fn is_behind(&self) -> bool {
        self.behind != Behind::default()
    }

    /// Of how many apps the table lacks the newest policy; those that share count as one.
    pub(crate) fn behind(&self, inventory: &Inventory) -> usize {
        if self.behind.everything {
            return inventory.entries().len().max(1);
        }
        self.behind.apps.len() + usize::from(self.behind.shared)
    }

    /// Tries again what failed.
    pub(crate) fn catch_up(&mut self, table: &mut impl Table, inventory: &Inventory) {
        let behind = std::mem::take(&mut self.behind);
        if behind.everything {
            return self.replace_all(table, inventory);
        }
        for app in &behind.apps {
            self.send_app(table, inventory, app);
        }
        self.behind.shared = behind.shared;
        self.send_shared(table, inventory);
        if !self.is_behind() {
            tracing::info!("the filter is what the inventory says again");
        }
    }

    fn send_app(&mut self, table: &mut impl Table, inventory: &Inventory, name: &AppName) {
        let policy = inventory.by_name(name.as_str()).and_then(|entry| policy::of(&entry.app));
        let sent = match policy {
            Some(policy) => table.apply(&policy),
            None => table.remove(name.as_str()),
        };
        match sent {
            Ok(()) => {
                self.behind.apps.remove(name);
            }
            Err(FilterError::Superseded) => self.stop_following(),
            Err(error) => {
                if self.behind.apps.insert(name.clone()) {
                    complain(&error, name.as_str());
                }
            }
        }
    }

    /// A process that took over knows the inventory too.
    pub(crate) fn stop_following(&mut self) {
        if !self.superseded {
            tracing::info!("another process keeps the filter from now on");
        }
        self.superseded = true;
        self.behind = Behind::default();
    }

    fn send_shared(&mut self, table: &mut impl Table, inventory: &Inventory) {
        if self.superseded {
            return;
        }
        let ports = inventory.ports().borrow().clone();
        if ports.shared == self.sent && !self.behind.shared {
            return;
        }
        let sent = match self.shared.policy(&ports) {
            Some(policy) => table.apply(&policy),
            None => table.remove(SHARED),
        };
        self.sent.clone_from(&ports.shared);
        match sent {
            Ok(()) => self.behind.shared = false,
            Err(FilterError::Superseded) => self.stop_following(),
            Err(error) => {
                if !std::mem::replace(&mut self.behind.shared, true) {
                    complain(&error, "apps on shared addresses");
                }
            }
        }
    }
}

/// How long to wait after the `n`th failure in a row.
pub(crate) fn pause(n: u32) -> Duration {
    let (first, longest) = TRY_AGAIN;
    first.saturating_mul(1 << n.min(16)).min(longest)
}

fn complain(error: &FilterError, app: &str) {
    let error = chain(error);
    tracing::error!(%error, app, "the kernel's filter was not changed; it will be tried again");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::sync::Arc;

    use control::snapshot::{App, Change};

    use super::*;
    use crate::config::Listen;
    use crate::inventory::tests::{app, inventory, limited};

    /// A table that can be told to refuse.
    #[derive(Default)]
    struct Fake {
        held: BTreeMap<String, Vec<String>>,
        refuse: bool,
        superseded: bool,
        calls: usize,
    }

    impl Fake {
        fn call(&mut self) -> Result<(), FilterError> {
            self.calls += 1;
            if self.superseded {
                return Err(FilterError::Superseded);
            }
            if self.refuse {
                return Err(FilterError::Full { map: "EXACT_V4", capacity: 1 });
            }
            Ok(())
        }

        fn hold(&mut self, policy: &AppPolicy) {
            let mut places: Vec<_> = policy.addresses.iter().map(ToString::to_string).collect();
            places.extend(policy.tcp.iter().map(|range| format!("{range:?}")));
            self.held.insert(policy.app.clone(), places);
        }

        fn names(&self) -> Vec<&str> {
            self.held.keys().map(String::as_str).collect()
        }
    }

    impl Table for Fake {
        fn replace_all(
            &mut self,
            policies: &mut dyn Iterator<Item = AppPolicy>,
        ) -> Result<(), FilterError> {
            self.call()?;
            self.held.clear();
            policies.for_each(|policy| self.hold(&policy));
            Ok(())
        }

        fn apply(&mut self, policy: &AppPolicy) -> Result<(), FilterError> {
            self.call()?;
            self.hold(policy);
            Ok(())
        }

        fn remove(&mut self, app: &str) -> Result<(), FilterError> {
            self.call()?;
            self.held.remove(app);
            Ok(())
        }
    }

    struct Node {
        inventory: Arc<Inventory>,
        table: Fake,
        follower: Follower,
    }

    impl Node {
        /// Started with an app of its own address and one that shares.
        fn start() -> Self {
            let prefixes = vec!["198.51.100.0/24".parse().unwrap()];
            let listen = Listen { prefixes, ..Listen::default() };
            let mut node = Self {
                inventory: inventory(),
                table: Fake::default(),
                follower: Follower::new(Shared::new(&listen)),
            };
            node.change(named("own", Some(7)));
            node.change(named("web", None));
            assert_eq!(node.table.calls, 0, "nothing before the whole");
            node.follower.replace_all(&mut node.table, &node.inventory);
            node
        }

        fn change(&mut self, app: App) {
            let name = app.name.clone();
            self.inventory.apply(Change::Upsert(Arc::new(app)));
            self.follower.changed(&mut self.table, &self.inventory, &name);
        }

        fn remove(&mut self, app: &str) {
            let name = AppName::new(app);
            self.inventory.apply(Change::Remove(name.clone()));
            self.follower.changed(&mut self.table, &self.inventory, &name);
        }

        fn behind(&self) -> usize {
            self.follower.behind(&self.inventory)
        }

        fn catch_up(&mut self) {
            self.follower.catch_up(&mut self.table, &self.inventory);
        }
    }

    /// An app on port 80, of `198.51.100.<last>` if it has an address of its own.
    fn named(name: &str, last: Option<u8>) -> App {
        let addresses = last.map(|last| IpAddr::from([198, 51, 100, last])).into_iter().collect();
        App { addresses, ..app(name, vec![limited(1, None)], Vec::new()) }
    }

    #[test]
    fn the_table_is_what_the_inventory_says() {
        let mut node = Node::start();
        assert_eq!(node.table.names(), [SHARED, "own"]);
        assert_eq!(node.table.held["own"], ["198.51.100.7/32", "80..=80"]);
        assert_eq!(node.table.held[SHARED], ["80..=80"]);
        node.change(named("own", Some(8)));
        assert_eq!(node.table.held["own"], ["198.51.100.8/32", "80..=80"]);
        let mut web = named("web", None);
        web.services[0].ports[0].range = 8080..=8090;
        node.change(web);
        assert_eq!(node.table.held[SHARED], ["8080..=8090"]);
        node.remove("own");
        node.remove("web");
        assert_eq!(node.table.names(), [""; 0]);
        assert_eq!(node.behind(), 0);
    }

    #[test]
    fn an_app_that_gives_up_its_address_shares() {
        let mut node = Node::start();
        node.remove("web");
        node.change(named("own", None));
        assert_eq!(node.table.names(), [SHARED]);
        node.change(named("own", Some(9)));
        assert_eq!(node.table.names(), ["own"]);
    }

    #[test]
    fn one_more_app_on_shared_ports_costs_nothing_for_the_shared_policy() {
        let mut node = Node::start();
        let before = node.table.calls;
        node.change(named("web-2", None));
        assert_eq!(node.table.calls, before + 1, "that it has no address of its own");
    }

    #[test]
    fn what_fails_is_tried_again_with_what_is_wanted_by_then() {
        let mut node = Node::start();
        node.table.refuse = true;
        node.change(named("own", Some(8)));
        node.change(named("late", Some(9)));
        node.remove("web");
        assert_eq!(node.behind(), 4, "own, late, web, and the shared addresses");
        node.catch_up();
        assert_eq!(node.behind(), 4);
        node.remove("late");
        node.table.refuse = false;
        node.catch_up();
        assert_eq!(node.behind(), 0);
        assert_eq!(node.table.names(), ["own"]);
        assert_eq!(node.table.held["own"], ["198.51.100.8/32", "80..=80"]);
    }

    #[test]
    fn when_the_whole_fails_the_whole_is_tried_again() {
        let mut node = Node::start();
        node.table.refuse = true;
        node.follower.replace_all(&mut node.table, &node.inventory);
        assert_eq!(node.behind(), 2);
        node.change(named("late", Some(9)));
        node.table.refuse = false;
        node.catch_up();
        assert_eq!(node.table.names(), [SHARED, "late", "own"]);
        assert_eq!(node.behind(), 0);
    }

    #[test]
    fn a_table_that_another_process_keeps_is_left_to_it() {
        let mut node = Node::start();
        node.table.superseded = true;
        node.change(named("own", Some(8)));
        let calls = node.table.calls;
        node.change(named("late", Some(9)));
        assert_eq!((node.table.calls, node.behind()), (calls, 0));
    }

    #[test]
    fn patience_grows_to_a_bound() {
        let pauses: Vec<_> = [0, 1, 5, 9, 100, u32::MAX].map(|n| pause(n).as_millis()).to_vec();
        assert_eq!(pauses, [100, 200, 3_200, 30_000, 30_000, 30_000]);
    }
}
