//! Every listening socket of this node: what its successor will get, and what the service manager
//! keeps for the next process should this one end without any.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::manifest::Place;
use super::stored;

/// A socket that may be given away while it is in use.
pub type Socket = Arc<dyn AsFd + Send + Sync>;

/// The listening sockets of a node, by place. Cloning shares them.
#[derive(Clone, Default)]
pub struct Legacy {
    sockets: Arc<Mutex<BTreeMap<Place, Socket>>>,
}

/// Keeps a socket in the legacy; dropped when it is closed.
#[must_use = "a socket that is not held is not handed over"]
pub struct Held {
    legacy: Legacy,
    place: Place,
}

// === impl Legacy ===

impl Legacy {
    pub fn hold(&self, place: Place, socket: Socket) -> Held {
        stored::store(&place, &*socket);
        self.sockets.lock().insert(place.clone(), socket);
        Held { legacy: self.clone(), place }
    }

    /// Has all of them kept by the service manager, where a process that was not the node could not.
    pub fn store(&self) {
        for (place, socket) in self.all() {
            stored::store(&place, &*socket);
        }
    }

    /// All of them, as of now.
    pub fn all(&self) -> Vec<(Place, Socket)> {
        let sockets = self.sockets.lock();
        sockets.iter().map(|(place, socket)| (place.clone(), socket.clone())).collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        stored::forget(&self.place);
        self.legacy.sockets.lock().remove(&self.place);
    }
}
