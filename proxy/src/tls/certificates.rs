//! The certificates of this node: a folder of `NAME.pem` and `NAME.key`, watched.
//!
//! What handshakes see is an immutable `Table` behind one atomic pointer. Only a scan builds a
//! new one; it keeps the last good version of a pair that has become unusable and says why. Which
//! name a port should serve is not decided here.

mod folder;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use foldhash::{HashMap, HashMapExt};
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use rustls::sign::CertifiedKey;
use telemetry::ledger::scope::CERTIFICATES;
use telemetry::lock::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::leaf::{Expiry, Leaf};
use super::pair::Pair;
use super::reasons;
use folder::Folder;

/// The certificates by the names they are valid for.
pub struct Certificates {
    directory: PathBuf,
    table: ArcSwap<Table>,
    /// Taken for the length of a scan; nothing on the request path asks for it.
    folder: Mutex<Folder>,
}

/// One pair of files, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The files are `NAME.pem` and `NAME.key`.
    pub name: String,
    /// Names the version being served is valid for; empty when none is.
    pub dns_names: Vec<String>,
    pub not_after: Option<SystemTime>,
    /// Why the files as they are now cannot be used.
    pub problem: Option<String>,
}

/// The folder of certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    #[error("cannot list the certificates in {}", directory.display())]
    List {
        directory: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What a lookup needs.
#[derive(Default)]
struct Table {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// By the parent of the wildcard.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    listed: Vec<Listed>,
}

/// Writing a pair takes several events; wait for the last of them.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Finds what the watch does not see: the target of a symbolic link, a replaced folder.
const RESCAN: Duration = Duration::from_secs(5);

const REMIND: Duration = Duration::from_secs(24 * 3600);

// === impl Certificates ===

impl Certificates {
    /// Reads what is in `directory` now; [`Certificates::watch`] follows its changes.
    ///
    /// # Errors
    /// Only when the folder itself cannot be listed. A pair that cannot be used is quarantined.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Arc<Self>, CertificatesError> {
        let directory = directory.into();
        let certificates = Self {
            directory,
            table: ArcSwap::default(),
            folder: Mutex::new("certificates", Folder::default()),
        };
        certificates.scan()?;
        Ok(Arc::new(certificates))
    }

    /// The certificate for `sni` (lower case, no trailing dot): an exact name before a wildcard,
    /// and a wildcard stands for one label.
    pub fn lookup(&self, sni: &str) -> Option<Arc<CertifiedKey>> {
        self.table.load().lookup(sni).cloned()
    }

    /// Every pair of files, by name.
    pub fn list(&self) -> Vec<Listed> {
        self.table.load().listed.clone()
    }

    /// Follows the folder until `stop`. Runs on the control thread.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let changed = Arc::new(Notify::new());
        let _watcher = self.subscribe(changed.clone());
        let mut rescan = tokio::time::interval(RESCAN);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut remind = tokio::time::interval_at(Instant::now() + REMIND, REMIND);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed.notified() => tokio::time::sleep(DEBOUNCE).await,
                _ = rescan.tick() => {}
                _ = remind.tick() => self.folder.lock().warn_of_expiry(SystemTime::now()),
            }
            self.clone().rescan().await;
        }
    }

    /// Reads what has changed. Files are read off the thread that answers the admin page.
    async fn rescan(self: Arc<Self>) {
        match tokio::task::spawn_blocking(move || self.scan()).await {
            Ok(Ok(())) => {}
            // What is served stays: an unreadable folder is no reason to serve less.
            Ok(Err(error)) => {
                tracing::warn!(reason = reasons(&error), "certificates not rescanned")
            }
            Err(error) => tracing::error!(reason = reasons(&error), "certificate scan failed"),
        }
    }

    fn scan(&self) -> Result<(), CertificatesError> {
        let _working = CERTIFICATES.enter();
        let mut folder = self.folder.lock();
        let changed = folder.scan(&self.directory, SystemTime::now()).map_err(|source| {
            CertificatesError::List { directory: self.directory.clone(), source }
        })?;
        if changed {
            self.table.store(Arc::new(Table::new(&folder)));
        }
        Ok(())
    }

    /// `None` when the kernel has no watch left for us; rescanning finds changes too, only later.
    fn subscribe(&self, changed: Arc<Notify>) -> Option<RecommendedWatcher> {
        let on_event = move |event: notify::Result<notify::Event>| {
            // Our own reading must not count as a change.
            let closed_after_write = EventKind::Access(AccessKind::Close(AccessMode::Write));
            if !event.is_ok_and(|event| event.kind.is_access() && event.kind != closed_after_write)
            {
                changed.notify_one();
            }
        };
        let watched = notify::recommended_watcher(on_event).and_then(|mut watcher| {
            watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        watched
            .inspect_err(|error| {
                tracing::warn!(reason = reasons(error), "certificates are rescanned, not watched");
            })
            .ok()
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("directory", &self.directory).finish_non_exhaustive()
    }
}

// === impl Table ===

impl Table {
    fn new(folder: &Folder) -> Self {
        let mut table = Self { exact: HashMap::new(), wildcard: HashMap::new(), listed: vec![] };
        // Of two certificates for one name the one that lasts longer wins: a renewal under another
        // file name takes over by itself. Inserted last wins.
        let mut pairs: BTreeMap<_, _> = BTreeMap::new();
        for (name, problem, pair) in folder.pairs() {
            if let Some(pair) = pair {
                pairs.insert((pair.leaf.not_after, std::cmp::Reverse(name)), pair);
            }
            table.listed.push(Listed {
                name: name.to_owned(),
                dns_names: pair.map(|pair| pair.leaf.dns_names.clone()).unwrap_or_default(),
                not_after: pair.map(|pair| pair.leaf.not_after),
                problem: problem.map(ToOwned::to_owned),
            });
        }
        for Pair { key, leaf } in pairs.into_values() {
            for name in &leaf.dns_names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut table.wildcard, parent),
                    None => (&mut table.exact, name.as_str()),
                };
                map.insert(name.into(), key.clone());
            }
        }
        table
    }

    fn lookup(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.exact.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.wildcard.get(parent)
        })
    }
}

/// Says it in the log when `leaf` needs renewing.
pub(super) fn warn_of_expiry(leaf: &Leaf, file: &str, now: SystemTime) {
    let days = |duration: Duration| duration.as_secs() / (24 * 3600);
    match leaf.expiry(now) {
        Expiry::Far => {}
        Expiry::Soon => {
            let days_left = leaf.not_after.duration_since(now).map(days).unwrap_or_default();
            tracing::warn!(file, days_left, "certificate expires soon");
        }
        Expiry::Over => {
            let days_ago = now.duration_since(leaf.not_after).map(days).unwrap_or_default();
            tracing::warn!(file, days_ago, "certificate has expired and is still served");
        }
    }
}

#[cfg(test)]
mod tests;
