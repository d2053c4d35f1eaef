//! The HTTP/2 connections of one worker: one per instance or node, made once, replaced when retired.
//!
//! Whoever needs a connection that is not there joins the one attempt to make it and shares how it
//! ends. An attempt belongs to nobody who waits, so a cancelled request does not end it for the
//! others, and it only ever replaces what it was started for. After a failure nothing is tried for a
//! while that doubles: without that, every request of a busy worker would connect at once
//! (measured: an instance that closes costs 14 syscalls per request).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use control::snapshot::NodeId;
use foldhash::fast::RandomState;
use telemetry::ledger::{Account, Ledger, Unit};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::config;
use crate::error::{Code, Failure, Retry};

use super::http2::{Connection, Http2};

pub(super) struct Connections {
    by_key: RefCell<HashMap<Key, Entry, RandomState>>,
    http2: Http2,
    waiting_max: usize,
    account: Account,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Instance(SocketAddr),
    /// By its address as well: a node that moved is another peer.
    Node(NodeId, SocketAddr),
}

struct Entry {
    state: State,
    /// Attempts in a row that brought no answer.
    failures: u32,
    /// Before this, no further attempt.
    not_before: Instant,
}

enum State {
    Ready(Rc<Connection>),
    Connecting(Rc<Attempt>),
    /// The attempt failed: before `not_before` it fails again without being made.
    Failed(Shared),
    /// The connection ended without an answer: before `not_before` the next attempt waits.
    Gone,
}

/// One attempt, for all who wait for it.
#[derive(Default)]
struct Attempt {
    waiting: Cell<usize>,
    ended: Notify,
}

/// A failure told to everyone who waited.
#[derive(Clone)]
struct Shared(Arc<Failure>);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

// === impl Connections ===

impl Connections {
    pub(super) fn new(limits: &config::Limits, http2: Http2, ledger: &Ledger) -> Rc<Self> {
        let waiting_max = limits.upstream_streams_max as usize;
        Rc::new(Self {
            by_key: RefCell::default(),
            http2,
            waiting_max,
            // One entry per instance or node in use: bounded by the inventory, and swept.
            account: ledger.open("upstream_http2", Unit::Entries, u64::MAX),
        })
    }

    /// The connection of `key`; `connect` makes it when nobody else does.
    ///
    /// # Errors
    ///
    /// The failure of the attempt, or of the last one if it is too early for another. Nothing was
    /// sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the attempt to the others.
    pub(super) async fn get<C>(
        self: &Rc<Self>,
        key: &Key,
        connect: impl FnOnce() -> C,
    ) -> Result<Rc<Connection>, Failure>
    where
        C: Future<Output = Result<Rc<Connection>, Failure>> + 'static,
    {
        let attempt = match self.look(key, Instant::now()) {
            Look::Ready(connection) => return Ok(connection),
            Look::Failed(failure) => return Err(failure.into()),
            Look::Connecting(attempt) => attempt,
            Look::Start { attempt, at } => {
                let (this, key, of_task) = (self.clone(), key.clone(), attempt.clone());
                let connecting = connect();
                self.http2.tasks.spawn_local(async move {
                    sleep_until(at).await;
                    this.end(&key, &of_task, connecting.await);
                });
                attempt
            }
        };
        if attempt.waiting.get() >= self.waiting_max {
            self.account.drop_one();
            return Err(Failure::new(Code::PU02).retry(Retry::Unsent).because("too many wait"));
        }
        attempt.wait().await;
        match self.look(key, Instant::now()) {
            Look::Ready(connection) => Ok(connection),
            Look::Failed(failure) => Err(failure.into()),
            // It was made and is gone already.
            Look::Connecting(_) | Look::Start { .. } => Err(gone()),
        }
    }

    /// Retires connections without streams; with `all`, the others end with their last stream.
    pub(super) fn retire(&self, all: bool) {
        for entry in self.by_key.borrow().values() {
            if let State::Ready(connection) = &entry.state
                && (all || connection.is_idle())
            {
                connection.retire();
            }
        }
    }

    /// Forgets what is retired and failures that nobody asked about for a while.
    pub(super) fn sweep(&self, now: Instant) {
        let mut by_key = self.by_key.borrow_mut();
        let before = by_key.len();
        by_key.retain(|_, entry| match &entry.state {
            State::Ready(connection) if connection.is_usable() => true,
            State::Ready(connection) if connection.has_answered() => false,
            State::Ready(_) => {
                entry.back_off(now);
                entry.state = State::Gone;
                true
            }
            State::Connecting(_) => true,
            State::Failed(_) | State::Gone => now < entry.not_before + BACKOFF_MAX,
        });
        self.account.give_back(before - by_key.len());
    }

    fn look(&self, key: &Key, now: Instant) -> Look {
        let mut by_key = self.by_key.borrow_mut();
        let Some(entry) = by_key.get_mut(key) else {
            let attempt = Rc::<Attempt>::default();
            let state = State::Connecting(attempt.clone());
            by_key.insert(key.clone(), Entry { state, failures: 0, not_before: now });
            self.account.take(1);
            return Look::Start { attempt, at: now };
        };
        match &entry.state {
            State::Ready(connection) if connection.is_usable() => {
                return Look::Ready(connection.clone());
            }
            State::Ready(connection) if connection.has_answered() => entry.failures = 0,
            State::Ready(_) => entry.back_off(now),
            State::Connecting(attempt) => return Look::Connecting(attempt.clone()),
            State::Failed(failure) if now < entry.not_before => {
                return Look::Failed(failure.clone());
            }
            State::Failed(_) | State::Gone => {}
        }
        let attempt = Rc::<Attempt>::default();
        entry.state = State::Connecting(attempt.clone());
        Look::Start { attempt, at: entry.not_before }
    }

    fn end(&self, key: &Key, attempt: &Rc<Attempt>, outcome: Result<Rc<Connection>, Failure>) {
        let mut by_key = self.by_key.borrow_mut();
        if let Some(entry) = by_key.get_mut(key)
            && let State::Connecting(current) = &entry.state
            && Rc::ptr_eq(current, attempt)
        {
            entry.state = match outcome {
                Ok(connection) => State::Ready(connection),
                Err(failure) => {
                    entry.back_off(Instant::now());
                    State::Failed(Shared(Arc::new(failure)))
                }
            };
        }
        attempt.ended.notify_waiters();
    }
}

enum Look {
    Ready(Rc<Connection>),
    Failed(Shared),
    Connecting(Rc<Attempt>),
    Start { attempt: Rc<Attempt>, at: Instant },
}

pub(super) fn gone() -> Failure {
    Failure::new(Code::PU02).retry(Retry::Unsent).because("the connection ended before its turn")
}

// === impl Entry ===

impl Entry {
    fn back_off(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.failures.min(10).saturating_sub(1));
        // Workers and nodes must not come back together: between the half and the whole.
        let random = RandomState::default().hash_one(self.failures) % 1024;
        let jitter = 0.5 + random as f64 / 2048.0;
        self.not_before = now + doubled.min(BACKOFF_MAX).mul_f64(jitter);
    }
}

// === impl Attempt ===

impl Attempt {
    async fn wait(&self) {
        struct Leave<'a>(&'a Cell<usize>);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.update(|n| n - 1);
            }
        }
        self.waiting.update(|n| n + 1);
        let _leave = Leave(&self.waiting);
        self.ended.notified().await;
    }
}

// === impl Shared ===

impl From<Shared> for Failure {
    fn from(shared: Shared) -> Self {
        let Self { code, retry, .. } = *shared.0;
        Self::new(code).retry(retry).because(shared)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the attempt to connect failed")
    }
}

impl Error for Shared {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
