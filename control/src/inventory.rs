//! Control: the source's word becomes changes for the data plane, and is kept for the next start.
//!
//! At the start the catalog answers, at once. From then on every notice of the source goes through
//! the [`Publisher`]; what comes out is applied to the data plane first and written second.

mod check;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use telemetry::ledger::scope::INVENTORY;
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogError, Loaded, Stored};
use crate::document::Problem;
use crate::publish::Publisher;
use crate::snapshot::{App, AppName, Change};
use crate::source::directory::Directory;
use crate::source::{Notice, Source};

pub use check::check_directory;
pub use status::{QUARANTINED_MAX, Quarantined, Status};

/// Where the inventory is kept and where it comes from.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of the catalog.
    pub storage: PathBuf,
    /// The folder of app files.
    pub apps: PathBuf,
    /// Another process has the catalog open, and will for a while.
    pub shared: bool,
}

/// The inventory of this node and whoever keeps it current.
pub struct Control {
    apps: PathBuf,
    catalog: Catalog,
    publisher: Publisher,
    /// Which place each app comes from, for the catalog.
    origins: HashMap<AppName, Arc<str>>,
    /// Places whose content cannot be used; bounded by the source's own bound on places.
    bad: BTreeMap<Arc<str>, Vec<Problem>>,
    /// Apps of which the catalog has rows that do not decode.
    undecodable: BTreeMap<String, String>,
    unavailable: Option<Problem>,
    status: Arc<Status>,
    synced_noted: Option<Instant>,
}

/// Why there is no inventory.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("cannot open the catalog")]
    Catalog(#[source] CatalogError),
}

/// How often the time of the last sync is written, in case the process dies.
const SYNCED_NOTED: Duration = Duration::from_secs(60);

/// How long the catalog may take to write what is left at the end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

// === impl Control ===

impl Control {
    /// Opens the catalog and returns what it holds: it can be served before any source answers.
    ///
    /// Blocks for as long as the reading takes, about a second for a million instances.
    pub fn open(config: Config) -> Result<(Self, Vec<Arc<App>>), OpenError> {
        let _working = INVENTORY.enter();
        let Config { storage, apps, shared } = config;
        let opened = if shared { Catalog::open_shared(&storage) } else { Catalog::open(&storage) };
        let (catalog, loaded) = opened.map_err(OpenError::Catalog)?;
        let Loaded { apps: stored, quarantined, synced_at, trouble: _ } = loaded;
        let status = Arc::new(Status::new(catalog.errors(), synced_at));
        // Revisions rise even when the catalog was lost: no change is as frequent as this clock.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut control = Self {
            apps,
            catalog,
            publisher: Publisher::new(u64::try_from(now).unwrap_or_default()),
            origins: HashMap::new(),
            bad: BTreeMap::new(),
            undecodable: quarantined.into_iter().collect(),
            unavailable: None,
            status,
            synced_noted: None,
        };
        let restored = control.restore(stored);
        control.report();
        Ok((control, restored))
    }

    fn restore(&mut self, stored: Vec<Stored>) -> Vec<Arc<App>> {
        let mut restored = Vec::with_capacity(stored.len());
        for Stored { app, origin } in stored {
            self.origins.insert(app.name.clone(), origin);
            restored.extend(self.publisher.restore(app));
        }
        restored
    }

    /// How the inventory does; stays current while [`run`](Self::run) runs.
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    /// Follows the folder of apps until `stop`; hands each app's change to `apply`, in order.
    pub async fn run(self, apply: impl FnMut(Change), stop: CancellationToken) {
        let known = self.origins.iter().map(|(app, origin)| (origin.clone(), app.clone()));
        match Directory::watch(&self.apps, known) {
            Ok(source) => self.follow(source, apply, stop).await,
            Err(error) => {
                tracing::error!(%error, "the folder of apps is not watched; the inventory stays");
                stop.cancelled().await;
            }
        }
    }

    /// Follows any source until `stop`.
    pub async fn follow(
        mut self,
        mut source: impl Source,
        mut apply: impl FnMut(Change),
        stop: CancellationToken,
    ) {
        loop {
            let notice = tokio::select! {
                () = stop.cancelled() => break,
                notice = source.next() => notice,
            };
            let Some(notice) = notice else {
                tracing::error!("the source of the inventory has ended; the inventory stays");
                stop.cancelled().await;
                break;
            };
            self.take(notice, &mut apply);
        }
        drop(source);
        if let Some(at) = self.status.synced_at() {
            self.catalog.note_synced(at);
        }
        self.catalog.close(CLOSE_PATIENCE).await;
    }

    fn take(&mut self, notice: Notice, apply: &mut impl FnMut(Change)) {
        let mut changes = Vec::new();
        match notice {
            Notice::App { origin, app } => {
                self.origins.insert(app.name.clone(), origin);
                self.undecodable.remove(app.name.as_str());
                let name = app.name.clone();
                self.publisher.upsert(*app, &mut changes);
                if let Some(contradiction) = self.publisher.contradictions(&name).first() {
                    tracing::warn!(%contradiction, "an app waits; its last good version stays");
                }
            }
            Notice::Gone(name) => {
                self.publisher.remove(&name, &mut changes);
                self.origins.remove(&name);
            }
            Notice::Bad { origin, problems } => {
                if let Some(problem) = problems.first() {
                    let others = problems.len() - 1;
                    tracing::warn!(%problem, others, "an app file cannot be used; its last good version stays");
                }
                self.bad.insert(origin, problems);
            }
            Notice::Healed { origin } => {
                self.bad.remove(&origin);
            }
            Notice::Synced => self.synced(),
            Notice::Unavailable(problem) => {
                if self.unavailable.as_ref() != Some(&problem) {
                    tracing::warn!(%problem, "the inventory cannot be read; what is known stays");
                }
                self.unavailable = Some(problem);
                self.report();
            }
        }
        for change in changes {
            apply(change.clone());
            self.keep(change);
        }
        self.status.count(self.publisher.apps(), self.publisher.instances());
    }

    /// Has the catalog hold what the data plane now has.
    fn keep(&self, change: Change) {
        match change {
            Change::Upsert(app) => {
                let origin = self.origins.get(&app.name).cloned().unwrap_or_default();
                self.catalog.store(app, origin);
            }
            Change::Remove(name) => self.catalog.remove(name),
        }
    }

    fn synced(&mut self) {
        if self.unavailable.take().is_some() {
            tracing::info!("the inventory can be read again");
        }
        // The source has spoken: what only undecodable rows know of is no longer wanted.
        for name in std::mem::take(&mut self.undecodable).into_keys() {
            self.catalog.remove(AppName::new(name));
        }
        self.status.synced(SystemTime::now());
        if self.synced_noted.is_none_or(|noted| noted.elapsed() > SYNCED_NOTED) {
            self.synced_noted = Some(Instant::now());
            self.catalog.note_synced(SystemTime::now());
        }
        self.report();
    }

    /// Says in the status what is not served as it is written.
    fn report(&self) {
        let problems = |what: &str, message: &str| Quarantined {
            what: what.to_owned(),
            problems: vec![message.to_owned()],
        };
        let unavailable = self.unavailable.iter().map(|problem| Quarantined {
            what: problem.file.display().to_string(),
            problems: vec![problem.message.clone()],
        });
        let bad = self.bad.iter().map(|(origin, problems)| Quarantined {
            what: origin.to_string(),
            problems: problems.iter().map(Problem::to_string).collect(),
        });
        let waiting = self.publisher.waiting().map(|name| Quarantined {
            what: name.to_string(),
            problems: self.publisher.contradictions(name).iter().map(ToString::to_string).collect(),
        });
        let rows = self.undecodable.iter().map(|(name, problem)| {
            problems(name, &format!("its rows in the catalog do not decode: {problem}"))
        });
        let total = self.unavailable.iter().len()
            + self.bad.len()
            + self.publisher.waiting().count()
            + self.undecodable.len();
        let listed = unavailable.chain(bad).chain(waiting).chain(rows).take(QUARANTINED_MAX);
        self.status.report(listed.collect(), total);
        self.status.count(self.publisher.apps(), self.publisher.instances());
    }
}

#[cfg(test)]
mod tests;
