//! How the inventory does, for whoever wants to show it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Shared with [`Control`](super::Control); every reading is cheap.
#[derive(Debug)]
pub struct Status {
    apps: AtomicUsize,
    instances: AtomicUsize,
    synced: AtomicBool,
    quarantined_total: AtomicUsize,
    catalog_errors: Arc<AtomicU64>,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    synced_at: Option<SystemTime>,
    quarantined: Arc<[Quarantined]>,
}

/// Something that is not served as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The file or the app.
    pub what: String,
    pub problems: Vec<String>,
}

/// Most that is listed; the others are only counted.
pub const QUARANTINED_MAX: usize = 1_000;

impl Status {
    pub(super) fn new(catalog_errors: Arc<AtomicU64>, synced_at: Option<SystemTime>) -> Self {
        Self {
            apps: AtomicUsize::new(0),
            instances: AtomicUsize::new(0),
            synced: AtomicBool::new(false),
            quarantined_total: AtomicUsize::new(0),
            catalog_errors,
            shared: Mutex::new(Shared { synced_at, quarantined: Arc::default() }),
        }
    }

    /// Time since the source had last said everything, also in an earlier run; `None` if never.
    pub fn age(&self) -> Option<Duration> {
        // A clock that was set back makes it young rather than wrong.
        self.synced_at().map(|at| SystemTime::now().duration_since(at).unwrap_or_default())
    }

    /// Whether the source has said everything in this run.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Relaxed)
    }

    /// Apps that are published.
    pub fn apps(&self) -> usize {
        self.apps.load(Relaxed)
    }

    /// Instances of the apps that are published.
    pub fn instances(&self) -> usize {
        self.instances.load(Relaxed)
    }

    /// What is not served as it is written, at most [`QUARANTINED_MAX`] of it.
    pub fn quarantined(&self) -> Arc<[Quarantined]> {
        self.lock().quarantined.clone()
    }

    /// How much is not served as it is written.
    pub fn quarantined_total(&self) -> usize {
        self.quarantined_total.load(Relaxed)
    }

    /// Times that the catalog could not be read or written.
    pub fn catalog_errors(&self) -> u64 {
        self.catalog_errors.load(Relaxed)
    }

    pub(super) fn synced_at(&self) -> Option<SystemTime> {
        self.lock().synced_at
    }

    pub(super) fn count(&self, apps: usize, instances: usize) {
        self.apps.store(apps, Relaxed);
        self.instances.store(instances, Relaxed);
    }

    pub(super) fn synced(&self, at: SystemTime) {
        self.lock().synced_at = Some(at);
        self.synced.store(true, Relaxed);
    }

    pub(super) fn report(&self, quarantined: Vec<Quarantined>, total: usize) {
        let mut shared = self.lock();
        if *shared.quarantined != *quarantined {
            shared.quarantined = quarantined.into();
        }
        drop(shared);
        self.quarantined_total.store(total, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
