//! What names lead to an app, and how the tables follow when they change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use control::snapshot::{App, AppName, Hostname};

use super::table::{Edits, Slot};

/// What may lead to an app besides its own name.
#[derive(Default)]
pub(super) struct Names {
    hostnames: BTreeSet<Hostname>,
    addresses: BTreeSet<IpAddr>,
}

pub(super) fn names(app: &App) -> Names {
    Names {
        hostnames: app.hostnames.iter().cloned().collect(),
        addresses: app.addresses.iter().map(IpAddr::to_canonical).collect(),
    }
}

/// Edits of every table.
#[derive(Default)]
pub(super) struct AllEdits {
    pub(super) names: Edits<AppName>,
    pub(super) hostnames: Edits<Arc<str>>,
    pub(super) parents: Edits<Arc<str>>,
    pub(super) addresses: Edits<IpAddr>,
}

// === impl AllEdits ===

impl AllEdits {
    /// Two apps that claim one name contradict each other, which the catalog does not let pass; a
    /// name that moves from one to the other may arrive in either order. So the last claim holds,
    /// and only its holder can give it up.
    pub(super) fn replace(&mut self, old: &Names, new: &Names, slot: &Arc<Slot>) {
        for hostname in old.hostnames.difference(&new.hostnames) {
            let (edits, key) = self.of(hostname);
            edits.drop(key, slot.clone());
        }
        for hostname in new.hostnames.difference(&old.hostnames) {
            let (edits, key) = self.of(hostname);
            edits.put(key, slot.clone());
        }
        for address in old.addresses.difference(&new.addresses) {
            self.addresses.drop(*address, slot.clone());
        }
        for address in new.addresses.difference(&old.addresses) {
            self.addresses.put(*address, slot.clone());
        }
    }

    fn of(&mut self, hostname: &Hostname) -> (&mut Edits<Arc<str>>, Arc<str>) {
        match hostname {
            Hostname::Exact(name) => (&mut self.hostnames, name.clone()),
            Hostname::Wildcard(parent) => (&mut self.parents, parent.clone()),
        }
    }
}
