//! The inventory on this node's disk, so that a start needs no source. The only user of SQLite.
//!
//! It is a cache: whatever is wrong with it costs the knowledge of the last run and nothing else.
//! A damaged file is put aside and replaced; a disk that cannot be written leaves the node serving
//! from memory, and what could not be written is tried again. Reads happen once, in
//! [`Catalog::open`]; everything after that is done by one writer on a thread of its own.

mod open;
mod rows;
mod options;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::snapshot::{App, AppName};

use writer::{Change, Mailbox};

/// The file in the storage directory.
pub const FILE: &str = "inventory.db";

/// The inventory's place on disk, open for writing.
///
/// Dropping it writes what is left and joins the writer.
pub struct Catalog {
    mailbox: Arc<Mailbox>,
    writer: Option<std::thread::JoinHandle<()>>,
    /// Closes when the writer has finished.
    finished: oneshot::Receiver<()>,
    errors: Arc<AtomicU64>,
}

/// What the catalog held when it was opened.
#[derive(Debug, Default)]
pub struct Loaded {
    pub apps: Vec<Stored>,
    /// Rows that do not decode: name of the app and what is wrong. The others are in `apps`.
    pub quarantined: Vec<(String, String)>,
    /// When the source had last said everything there was to say.
    pub synced_at: Option<SystemTime>,
    /// What was wrong with the file as a whole: it was replaced, or cannot be written.
    pub trouble: Option<String>,
}

/// One app with where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub app: App,
    /// What the source calls its place: for a directory the name of the file.
    pub origin: Arc<str>,
}

/// Why there is no catalog at all.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("cannot create the storage directory {}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot start the catalog's writer")]
    Thread { source: std::io::Error },
    #[error(
        "the catalog cannot be used ({reason}), and not be put aside: another process has it open"
    )]
    InUse { reason: String },
}

/// Largest file the catalog grows to: twenty times what a million instances need.
const BYTES_MAX: u64 = 2 << 30;

// === impl Catalog ===

impl Catalog {
    /// Opens or creates the catalog in `directory` and reads all of it.
    ///
    /// A file that is damaged or of another version is put aside. When the disk cannot be written
    /// what can be read is read, nothing is written until the next start, and that is said.
    /// Every statement is prepared before this returns.
    pub fn open(directory: &Path) -> Result<(Self, Loaded), CatalogError> {
        Self::open_bounded(directory, BYTES_MAX)
    }

    /// The same while another process has it open: a file that cannot be used stays where it is, because
    /// what SQLite keeps beside it is found by its name.
    pub fn open_shared(directory: &Path) -> Result<(Self, Loaded), CatalogError> {
        let (connection, loaded) = open::open_shared(&directory.join(FILE), BYTES_MAX)
            .map_err(|reason| CatalogError::InUse { reason })?;
        Self::begin(connection, loaded)
    }

    /// Like [`open`](Self::open), with the size the file may have.
    pub(crate) fn open_bounded(
        directory: &Path,
        bytes_max: u64,
    ) -> Result<(Self, Loaded), CatalogError> {
        std::fs::create_dir_all(directory).map_err(|source| {
            let path = directory.to_owned();
            CatalogError::Directory { path, source }
        })?;
        let (connection, loaded) = open::open(&directory.join(FILE), bytes_max);
        Self::begin(connection, loaded)
    }

    fn begin(
        connection: Option<Connection>,
        loaded: Loaded,
    ) -> Result<(Self, Loaded), CatalogError> {
        let errors = Arc::new(AtomicU64::new(u64::from(loaded.trouble.is_some())));
        let mailbox = Arc::new(Mailbox::default());
        let (done, finished) = oneshot::channel();
        let writer = std::thread::Builder::new()
            .name("ferrule-catalog".to_owned())
            .spawn({
                let (mailbox, errors) = (mailbox.clone(), errors.clone());
                move || {
                    writer::run(connection, &mailbox, &errors);
                    drop(done);
                }
            })
            .map_err(|source| CatalogError::Thread { source })?;
        Ok((Self { mailbox, writer: Some(writer), finished, errors }, loaded))
    }

    /// Has the app written, soon and in a transaction of its own. Never waits.
    pub fn store(&self, app: Arc<App>, origin: Arc<str>) {
        self.mailbox.put(app.name.clone(), Change::Store { app, origin });
    }

    /// Has the app removed, soon and in a transaction of its own. Never waits.
    pub fn remove(&self, name: AppName) {
        self.mailbox.put(name, Change::Remove);
    }

    /// Has the time noted at which the source had said everything. Never waits.
    pub fn note_synced(&self, at: SystemTime) {
        self.mailbox.note_synced(at);
    }

    /// Times that something could not be written or read.
    pub fn errors(&self) -> Arc<AtomicU64> {
        self.errors.clone()
    }

    /// Writes what is left and ends the writer; gives up on a disk that takes longer than `patience`.
    pub async fn close(mut self, patience: Duration) {
        self.mailbox.close();
        // The sender is only ever dropped, so an error is what we wait for.
        if tokio::time::timeout(patience, &mut self.finished).await.is_err() {
            self.errors.fetch_add(1, Relaxed);
            tracing::error!(
                "the catalog could not be closed in time; its last changes may be lost"
            );
            drop(self.writer.take()); // detached: the process is about to end, and it hangs in a write
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.mailbox.close();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the catalog's writer panicked");
        }
    }
}

#[cfg(test)]
mod tests;
