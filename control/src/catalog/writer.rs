//! The one writer, and the mailbox it is fed through.
//!
//! The mailbox holds at most one change per app, the newest: it is bounded by the inventory, which
//! is in memory anyway, and nobody who puts something in ever waits for the disk.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode};
use telemetry::ledger::scope::INVENTORY;

use crate::snapshot::{App, AppName};

use super::rows;

/// What is to become of one app's rows.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Store { app: Arc<App>, origin: Arc<str> },
    Remove,
}

/// What the writer has not written yet.
#[derive(Default)]
pub(super) struct Mailbox {
    pending: Mutex<Pending>,
    wake: Condvar,
}

#[derive(Default)]
struct Pending {
    changes: BTreeMap<AppName, Change>,
    synced_at: Option<SystemTime>,
    closing: bool,
}

/// Time between attempts while the disk refuses.
const RETRY: Duration = Duration::from_secs(5);

// === impl Mailbox ===

impl Mailbox {
    pub(super) fn put(&self, name: AppName, change: Change) {
        self.lock().changes.insert(name, change);
        self.wake.notify_one();
    }

    pub(super) fn note_synced(&self, at: SystemTime) {
        self.lock().synced_at = Some(at);
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// Everything pending, as soon as there is something; `None` when there is nothing and will
    /// be nothing.
    fn take(&self) -> Option<Pending> {
        let idle = |pending: &mut Pending| {
            pending.changes.is_empty() && pending.synced_at.is_none() && !pending.closing
        };
        let mut pending =
            self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let closing = pending.closing;
        let taken = Pending { closing, ..std::mem::take(&mut *pending) };
        pending.closing = closing;
        let last = closing && taken.changes.is_empty() && taken.synced_at.is_none();
        (!last).then_some(taken)
    }

    /// Puts back what could not be written, unless something newer has come, and waits a while.
    fn give_back(&self, refused: Pending) {
        let mut pending = self.lock();
        for (name, change) in refused.changes {
            pending.changes.entry(name).or_insert(change);
        }
        pending.synced_at = pending.synced_at.or(refused.synced_at);
        let open = |pending: &mut Pending| !pending.closing;
        // Only closing ends the pause: a refusing disk is not asked once per change.
        drop(self.wake.wait_timeout_while(pending, RETRY, open));
    }

    /// A panic elsewhere leaves a map of whole changes, so the lock's poison means nothing.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl writer ===

/// Writes until the mailbox is closed and empty. Without a connection everything is refused.
pub(super) fn run(mut connection: Option<Connection>, mailbox: &Mailbox, errors: &AtomicU64) {
    let mut refusing = false;
    while let Some(taken) = mailbox.take() {
        let _working = INVENTORY.enter();
        let closing = taken.closing;
        let (refused, error) = match &mut connection {
            Some(connection) => write(connection, taken),
            None => (Pending::default(), None), // said at the start; nothing would change it
        };
        match error {
            None if refusing => {
                refusing = false;
                tracing::info!("the catalog is written again");
            }
            None => {}
            Some(error) => {
                errors.fetch_add(1, Relaxed);
                if !std::mem::replace(&mut refusing, true) {
                    tracing::error!(%error, "the catalog cannot be written; going on from memory");
                }
                if closing {
                    break;
                }
                mailbox.give_back(refused);
            }
        }
    }
    if let Some(connection) = connection
        && let Err((_, error)) = connection.close()
    {
        tracing::warn!(%error, "the catalog did not close cleanly");
    }
}

/// Writes each change in a transaction of its own; returns what was refused, and why.
fn write(connection: &mut Connection, taken: Pending) -> (Pending, Option<rusqlite::Error>) {
    let mut refused = Pending::default();
    let mut last = None;
    for (name, change) in taken.changes {
        // One refusal is enough to know about the disk; the rest waits for the next attempt.
        let outcome = match &last {
            Some(_) => None,
            None => Some(write_one(connection, &name, &change)),
        };
        match outcome {
            Some(Ok(())) => {}
            Some(Err(error))
                if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) =>
            {
                // It is the app, not the disk, and trying again would end the same way.
                tracing::error!(app = %name, %error, "the app cannot be stored");
            }
            Some(Err(error)) => {
                last = Some(error);
                refused.changes.insert(name, change);
            }
            None => {
                refused.changes.insert(name, change);
            }
        }
    }
    if let Some(at) = taken.synced_at {
        match &last {
            None => last = rows::note_synced(connection, at).err(),
            Some(_) => refused.synced_at = Some(at),
        }
    }
    (refused, last)
}

fn write_one(connection: &mut Connection, name: &AppName, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Store { app, origin } => rows::store(connection, app, origin),
        Change::Remove => rows::remove(connection, name),
    }
}
