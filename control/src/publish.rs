//! Which versions of which apps may be seen together: no two published apps contradict each other.
//!
//! An app that claims what another one holds waits; the version of it that was published before,
//! if any, stays. When the holder lets go, those that wait for it are considered again, in the
//! order they came. Pure: changes go in, the changes to publish come out.

mod claims;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::snapshot::{App, AppName, Change, Hostname, InstanceId};

use claims::Claims;

/// Every app that is published, and every version that waits.
#[derive(Default)]
pub struct Publisher {
    published: HashMap<AppName, Arc<App>>,
    waiting: BTreeMap<AppName, Waiting>,
    /// Who waits for whom: holder → (order of arrival, waiting app). Only these are looked at
    /// when a holder lets go.
    queues: HashMap<AppName, BTreeSet<(u64, AppName)>>,
    claims: Claims,
    instances: usize,
    revision: u64,
    arrivals: u64,
}

/// A version that contradicts what is published.
struct Waiting {
    app: App,
    arrival: u64,
    contradictions: Vec<Contradiction>,
}

/// Versions to consider by order of arrival, with their revision when they are to keep it.
type Candidates = BTreeMap<u64, (App, Option<u64>)>;

/// What `app` claims although `holder` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    pub app: AppName,
    pub holder: AppName,
    pub claim: Claim,
}

/// Something that only one app can have, or that all who have it must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    Hostname(Hostname),
    Instance(InstanceId),
    /// A port of a dedicated address.
    Address(IpAddr, u16),
    /// A shared port on which there is no name to choose the app by: raw TCP, or TLS without HTTP.
    WholePort(u16),
    /// A shared port that is HTTP for both, with TLS for one and in clear text for the other.
    PortHandlers(u16),
}

/// Contradictions listed of one app; the first one is reason enough to wait.
const CONTRADICTIONS_MAX: usize = 20;

// === impl Publisher ===

impl Publisher {
    /// Nothing published yet; revisions rise from above `revision`.
    pub fn new(revision: u64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// Publishes an app as it was, with its revision. For what an earlier run had accepted.
    pub fn restore(&mut self, app: App) -> Option<Arc<App>> {
        self.revision = self.revision.max(app.revision);
        let revision = app.revision;
        let (changes, name) = (&mut Vec::new(), app.name.clone());
        self.consider(app, Some(revision), changes);
        changes.first().and_then(|_| self.published.get(&name)).cloned()
    }

    /// A new version of an app. What may be published by it is added to `changes`.
    pub fn upsert(&mut self, app: App, changes: &mut Vec<Change>) {
        self.stop_waiting(&app.name);
        if let Some(published) = self.published.get(&app.name)
            && same(published, &app)
        {
            return;
        }
        self.consider(app, None, changes);
    }

    /// An app is gone. Its removal and what that makes room for is added to `changes`.
    pub fn remove(&mut self, name: &AppName, changes: &mut Vec<Change>) {
        self.stop_waiting(name);
        let Some(app) = self.published.remove(name) else { return };
        self.instances -= app.instances.len();
        self.claims.release(&app);
        changes.push(Change::Remove(name.clone()));
        let candidates = self.take_waiting_for(name);
        self.settle(candidates, changes);
    }

    /// The published version of an app.
    pub fn app(&self, name: &AppName) -> Option<&Arc<App>> {
        self.published.get(name)
    }

    /// Number of published apps.
    pub fn apps(&self) -> usize {
        self.published.len()
    }

    /// Number of instances of published apps.
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// Why the newest version of `name` waits; empty when it does not.
    pub fn contradictions(&self, name: &AppName) -> &[Contradiction] {
        self.waiting.get(name).map_or(&[], |waiting| &waiting.contradictions)
    }

    /// Every app whose newest version waits.
    pub fn waiting(&self) -> impl Iterator<Item = &AppName> {
        self.waiting.keys()
    }

    /// Publishes `app`, or lets it wait for the holder of what it claims.
    fn consider(&mut self, app: App, revision: Option<u64>, changes: &mut Vec<Change>) {
        self.arrivals += 1;
        self.settle(BTreeMap::from([(self.arrivals, (app, revision))]), changes);
    }

    /// Considers candidates in the order of their arrival.
    ///
    /// Publishing a version can let go of what the former one held, which makes room for others.
    /// It ends because every round either publishes a version that waited, or lets it wait again.
    fn settle(&mut self, mut candidates: Candidates, changes: &mut Vec<Change>) {
        while let Some((arrival, (app, revision))) = candidates.pop_first() {
            let name = app.name.clone();
            let contradictions = self.claims.contradictions(&app, CONTRADICTIONS_MAX);
            if let Some(first) = contradictions.first() {
                let queue = self.queues.entry(first.holder.clone()).or_default();
                queue.insert((arrival, name.clone()));
                self.waiting.insert(name, Waiting { app, arrival, contradictions });
            } else {
                self.publish(app, revision, changes);
                candidates.extend(self.take_waiting_for(&name));
            }
        }
    }

    /// Those that wait for `holder`, to be considered again.
    fn take_waiting_for(&mut self, holder: &AppName) -> Candidates {
        let queue = self.queues.remove(holder).unwrap_or_default();
        let take = |(arrival, name)| {
            let waiting = self.waiting.remove(&name).expect("a queue names only those that wait");
            (arrival, (waiting.app, None))
        };
        queue.into_iter().map(take).collect()
    }

    fn publish(&mut self, mut app: App, revision: Option<u64>, changes: &mut Vec<Change>) {
        app.revision = revision.unwrap_or_else(|| {
            self.revision += 1;
            self.revision
        });
        let app = Arc::new(app);
        if let Some(former) = self.published.insert(app.name.clone(), app.clone()) {
            self.instances -= former.instances.len();
            self.claims.release(&former);
        }
        self.instances += app.instances.len();
        self.claims.take(&app);
        changes.push(Change::Upsert(app));
    }

    fn stop_waiting(&mut self, name: &AppName) {
        let Some(waiting) = self.waiting.remove(name) else { return };
        let holder = &waiting.contradictions[0].holder;
        if let Some(queue) = self.queues.get_mut(holder) {
            queue.remove(&(waiting.arrival, name.clone()));
            if queue.is_empty() {
                self.queues.remove(holder);
            }
        }
    }
}

/// Equal in everything but the revision.
fn same(a: &App, b: &App) -> bool {
    let App { name, revision: _, hostnames, addresses, services, instances, compat } = a;
    *name == b.name
        && *hostnames == b.hostnames
        && *addresses == b.addresses
        && *services == b.services
        && *instances == b.instances
        && *compat == b.compat
}

// === impl Contradiction ===

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { app, holder, claim } = self;
        match claim {
            Claim::Hostname(name) => {
                write!(f, "app \"{app}\" claims the hostname {name}, which app \"{holder}\" has")
            }
            Claim::Instance(id) => {
                write!(f, "app \"{app}\" claims the instance id {id}, which app \"{holder}\" has")
            }
            Claim::Address(address, port) => write!(
                f,
                "app \"{app}\" claims port {port} of {address}, which app \"{holder}\" has"
            ),
            Claim::WholePort(port) => write!(
                f,
                "app \"{app}\" and app \"{holder}\" both claim shared port {port}, and without \
                 the \"http\" handler a connection does not say which one it means; give one of \
                 them an address of its own"
            ),
            Claim::PortHandlers(port) => write!(
                f,
                "app \"{app}\" and app \"{holder}\" claim shared port {port} with different handlers"
            ),
        }
    }
}

#[cfg(test)]
mod tests;
