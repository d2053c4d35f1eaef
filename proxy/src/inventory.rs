//! What requests look up: apps by hostname, address, port and name, with their live state.
//!
//! The control thread applies changes, one app at a time or many at once; requests load an `Arc`
//! and keep it until they end. Names lead to a slot per app and the slot to the newest version, so
//! a change that moves no name (nearly all) replaces one pointer. Live state (load, queue,
//! connection count) is carried from one version of an app to the next and forgotten with it.

mod build;
mod live;
mod names;
mod ports;
mod shared;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use control::snapshot::{self, App, AppName, Change, Handlers, NodeId, Port, Region};
use telemetry::lock::Mutex;
use telemetry::metrics::Registry;
use telemetry::shared_counts::Counts;
use tokio::sync::{Notify, watch};

use crate::balance::load::Load;
use crate::balance::pick::Field;
use crate::balance::queue::{self, Queue};
use crate::config;
use crate::nodes::{Node, Nodes};
pub use live::{AppLive, ConnectionGuard, State};
use names::{AllEdits, Names, names};
pub use ports::PortsInUse;
use ports::{Claims, SharedPort, SharedPorts};
pub use shared::SharedAddresses;
use table::Table;

/// Every app this node knows.
pub struct Inventory {
    own: NodeId,
    region: Region,
    nodes: Arc<Nodes>,
    shared_addresses: SharedAddresses,
    app_connections_max: u32,
    queue_length_max: u32,
    counts: Arc<Counts>,

    by_name: Table<AppName>,
    by_hostname: Table<Arc<str>>,
    /// `*.example.org` under `example.org`.
    by_parent: Table<Arc<str>>,
    by_address: Table<IpAddr>,
    shared: ArcSwap<SharedPorts>,
    ports: watch::Sender<Arc<PortsInUse>>,

    metrics: Arc<live::Metrics>,
    queues: queue::Metrics,
    control: Mutex<Claims>,
    /// Apps whose active checks may have changed since `health` last looked; at most all apps.
    unchecked: Mutex<BTreeSet<AppName>>,
    checks_changed: Notify,
}

/// One version of an app with its live state.
pub struct Entry {
    pub app: Arc<App>,
    /// Those of this node first, then this region's, then the others, then those on unknown nodes.
    pub candidates: Box<[Arc<Candidate>]>,
    pub live: Arc<AppLive>,
    /// Where the first three of these groups end.
    ends: [usize; 3],
    /// By service.
    queues: Box<[Arc<Queue>]>,
}

/// One instance with where it is and how it does.
pub struct Candidate {
    pub instance: snapshot::Instance,
    pub place: Place,
    /// By service.
    loads: Box<[Arc<Load>]>,
}

/// Where an instance is, seen from this node.
#[derive(Clone)]
pub enum Place {
    Local,
    Remote(Arc<Node>),
    /// On a node this one knows no way to.
    Unknown,
}

/// What a connection to some address and port meets.
pub enum Binding {
    /// One app, known before the first byte: by a dedicated address, or because a port without
    /// HTTP on shared addresses belongs to one app.
    Dedicated {
        entry: Arc<Entry>,
        /// Index of the service.
        service: usize,
        /// Index of the port in the service.
        port: usize,
    },
    /// Many apps, told apart by SNI and authority. An app whose own port has other handlers is
    /// not served here.
    Shared { handlers: Handlers },
}

// === impl Inventory ===

impl Inventory {
    pub fn new(
        own: &config::Node,
        listen: &config::Listen,
        nodes: Arc<Nodes>,
        limits: &config::Limits,
        counts: Arc<Counts>,
        registry: &Registry,
    ) -> Self {
        Self {
            own: own.id.clone(),
            region: own.region.clone(),
            nodes,
            shared_addresses: SharedAddresses::new(&listen.addresses),
            app_connections_max: limits.app_connections_max,
            queue_length_max: limits.queue_length_max,
            counts,
            by_name: Table::new(),
            by_hostname: Table::new(),
            by_parent: Table::new(),
            by_address: Table::new(),
            shared: ArcSwap::default(),
            ports: watch::Sender::new(Arc::default()),
            metrics: Arc::new(live::Metrics::new(registry)),
            queues: queue::Metrics::new(registry),
            control: Mutex::new("inventory", Claims::default()),
            unchecked: Mutex::new("apps to check", BTreeSet::new()),
            checks_changed: Notify::new(),
        }
    }

    /// The app that answers to `host` (lower case, no port, no trailing dot): exactly, else by a
    /// wildcard for one label.
    pub fn by_hostname(&self, host: &str) -> Option<Arc<Entry>> {
        self.by_hostname.get(host).or_else(|| {
            let (label, parent) = host.split_once('.')?;
            if label.is_empty() { None } else { self.by_parent.get(parent) }
        })
    }

    pub fn by_name(&self, app: &str) -> Option<Arc<Entry>> {
        self.by_name.get(app)
    }

    /// What a connection to (local address, port) meets.
    pub fn binding(&self, address: IpAddr, port: u16) -> Option<Binding> {
        // A socket for `::` reports IPv4 addresses as mapped.
        let address = address.to_canonical();
        if let Some(entry) = self.by_address.get(&address) {
            return Binding::dedicated(entry, port);
        }
        // Steering brings connections to every address of the prefixes, shared or nobody's.
        if !self.shared_addresses.contain(address) {
            return None;
        }
        match self.shared.load().at(port)? {
            SharedPort::Http { tls } => {
                let handlers = Handlers { tls: *tls, http: true, proxy_protocol: None };
                Some(Binding::Shared { handlers })
            }
            SharedPort::Of(app) => Binding::dedicated(self.by_name.get(app.as_str())?, port),
        }
    }

    /// The addresses and ports that apps want, now and after each change.
    pub fn ports(&self) -> watch::Receiver<Arc<PortsInUse>> {
        self.ports.subscribe()
    }

    /// Every app, in no particular order. Copies the whole list: not for requests.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.by_name.all()
    }

    /// Names of the apps that [`AppLive::id`] numbers so, as far as they are known.
    pub fn names_of(&self, ids: &BTreeSet<u32>) -> BTreeMap<u32, String> {
        let named = |entry: &Arc<Entry>| (entry.live.id(), entry.app.name.to_string());
        let entries = self.entries();
        entries.iter().map(named).filter(|(id, _)| ids.contains(id)).collect()
    }

    /// The app that [`AppLive::id`] numbers so. Looks at every app: not for requests.
    pub fn name_of(&self, id: u32) -> Option<String> {
        let entry = self.entries().into_iter().find(|entry| entry.live.id() == id)?;
        Some(entry.app.name.to_string())
    }

    /// Permits held at all instances; at rest it is zero.
    pub fn permits_in_use(&self) -> u64 {
        let held = |entry: Arc<Entry>| -> u64 {
            let loads = entry.candidates.iter().flat_map(|candidate| &candidate.loads);
            loads.map(|load| u64::from(load.in_flight())).sum()
        };
        self.entries().into_iter().map(held).sum()
    }

    /// Lets everybody who waits for a permit look for one: another generation of the process has
    /// come or gone. From then on who waits knows how often to look.
    pub fn look_again_everywhere(&self) {
        if self.queues.waiting() == 0 {
            return;
        }
        let entries = self.entries();
        entries.iter().flat_map(|entry| &entry.queues).for_each(|queue| queue.look_again());
    }

    /// Applies one app's change. Control thread only.
    pub fn apply(&self, change: Change) {
        self.apply_all([change]);
    }

    /// Applies many changes, copying each table's shards once: what a start from the catalog needs.
    ///
    /// Requests see one app's change as a whole; which of an app's names lead to it may change a
    /// moment before or after.
    pub fn apply_all(&self, changes: impl IntoIterator<Item = Change>) {
        // Of several changes of one app the last is what counts.
        let newest: BTreeMap<AppName, Option<Arc<App>>> = changes
            .into_iter()
            .map(|change| match change {
                Change::Upsert(app) => (app.name.clone(), Some(app)),
                Change::Remove(app) => (app, None),
            })
            .collect();
        let mut claims = self.control.lock();
        let mut edits = AllEdits::default();
        for (name, app) in newest {
            match app {
                Some(app) => self.upsert(app, &mut claims, &mut edits),
                None => self.remove(&name, &mut claims, &mut edits),
            }
        }
        self.by_name.edit(edits.names);
        self.by_hostname.edit(edits.hostnames);
        self.by_parent.edit(edits.parents);
        self.by_address.edit(edits.addresses);
        if claims.take_changed() {
            self.shared.store(Arc::new(claims.shared_ports()));
            let in_use = claims.in_use();
            self.ports.send_if_modified(|old| {
                let changed = **old != in_use;
                if changed {
                    *old = Arc::new(in_use);
                }
                changed
            });
        }
    }

    fn upsert(&self, app: Arc<App>, claims: &mut Claims, edits: &mut AllEdits) {
        let slot = self.by_name.slot(app.name.as_str());
        let previous = slot.as_ref().map(|slot| slot.entry.load_full());
        let entry = self.build(app, previous.as_deref());
        let new = names(&entry.app);
        let old = previous.as_ref().map(|previous| names(&previous.app)).unwrap_or_default();
        let slot = match slot {
            Some(slot) => {
                slot.entry.store(entry.clone());
                slot
            }
            None => {
                let slot = entry.live.new_slot(entry.clone());
                edits.names.put(entry.app.name.clone(), slot.clone());
                slot
            }
        };
        edits.replace(&old, &new, &slot);
        claims.replace(previous.as_ref().map(|previous| &*previous.app), Some(&entry.app));
        if let Some(previous) = &previous {
            previous.retire(Some(&entry));
        }
        entry.live.count_states(entry.states());
        if entry.has_checks() || previous.is_some_and(|previous| previous.has_checks()) {
            self.look_at_checks(&entry.app.name);
        }
    }

    fn remove(&self, name: &AppName, claims: &mut Claims, edits: &mut AllEdits) {
        let Some(slot) = self.by_name.slot(name.as_str()) else { return };
        let entry = slot.entry.load_full();
        edits.names.drop(name.clone(), slot.clone());
        edits.replace(&names(&entry.app), &Names::default(), &slot);
        claims.replace(Some(&entry.app), None);
        entry.live.forget(); // first, so that who wakes sees it
        entry.retire(None);
        if entry.has_checks() {
            self.look_at_checks(name);
        }
    }

    fn look_at_checks(&self, app: &AppName) {
        self.unchecked.lock().insert(app.clone());
        self.checks_changed.notify_one();
    }

    /// Apps whose checks may have changed; waits until there are some.
    pub(crate) async fn changed_checks(&self) -> BTreeSet<AppName> {
        loop {
            let changed = std::mem::take(&mut *self.unchecked.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.checks_changed.notified().await;
        }
    }

    /// An instance of `app` became healthy or unhealthy.
    pub(crate) fn health_changed(&self, app: &AppName) {
        let _order = self.control.lock(); // with `apply`, so that no count is of an older version
        if let Some(entry) = self.by_name(app.as_str()) {
            entry.live.count_states(entry.states());
        }
    }
}

// === impl Entry ===

impl Entry {
    /// What of the app is behind port `number`: the index of the service, and of the port in it.
    pub fn port(&self, number: u16) -> Option<(usize, usize)> {
        self.app.services.iter().enumerate().find_map(|(service, found)| {
            let port = found.ports.iter().position(|port| port.range.contains(&number))?;
            Some((service, port))
        })
    }

    /// The candidates as [`crate::balance::pick`] wants them.
    pub fn field(&self) -> Field<'_> {
        let [local, region, elsewhere] = self.ends;
        Field {
            local: &self.candidates[..local],
            region: &self.candidates[local..region],
            elsewhere: &self.candidates[region..elsewhere],
        }
    }

    /// Who waits for a service; `None` if there is no such service.
    pub fn queue(&self, service: usize) -> Option<&Arc<Queue>> {
        self.queues.get(service)
    }

    /// The index under which this version has the service of `queue`.
    pub(crate) fn service_of(&self, queue: &Arc<Queue>) -> Option<usize> {
        self.queues.iter().position(|own| Arc::ptr_eq(own, queue))
    }

    fn states(&self) -> [i64; State::ALL.len()] {
        let mut states = [0; State::ALL.len()];
        for candidate in &self.candidates {
            states[candidate.state() as usize] += 1;
        }
        states
    }

    fn has_checks(&self) -> bool {
        self.ends[0] > 0 && self.app.services.iter().any(|service| !service.checks.is_empty())
    }
}

// === impl Candidate ===

impl Candidate {
    /// Whether another node has it.
    pub fn is_remote(&self) -> bool {
        matches!(self.place, Place::Remote(_))
    }

    /// Its live numbers for a service; `None` if there is no such service.
    pub fn load(&self, service: usize) -> Option<&Arc<Load>> {
        self.loads.get(service)
    }

    pub fn state(&self) -> State {
        if self.instance.cordoned {
            State::Cordoned
        } else if self.loads.iter().all(|load| load.is_healthy()) {
            State::Routable
        } else {
            State::Unhealthy
        }
    }
}

// === impl Binding ===

impl Binding {
    fn dedicated(entry: Arc<Entry>, number: u16) -> Option<Self> {
        let (service, port) = entry.port(number)?;
        Some(Self::Dedicated { entry, service, port })
    }

    /// What is done to the connection.
    pub fn handlers(&self) -> Handlers {
        match self {
            Self::Dedicated { .. } => self.port().map(|port| port.handlers).unwrap_or_default(),
            Self::Shared { handlers } => *handlers,
        }
    }

    /// The one app's port; `None` on a shared one.
    pub fn port(&self) -> Option<&Port> {
        match self {
            Self::Dedicated { entry, service, port } => {
                entry.app.services.get(*service)?.ports.get(*port)
            }
            Self::Shared { .. } => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
