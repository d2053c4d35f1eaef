//! What parts of the program hold that consist of many small blocks: measured, not added up.
//!
//! While a part is at work, its thread's balance (bytes allocated minus bytes freed, which the
//! allocator keeps anyway) is the part's. It costs six loads and two adds each time, and is exact as
//! long as a part frees what it allocated; what one part allocates and another frees moves from line
//! to line and leaves the sum right.
//!
//! A thread that works for one part only needs no measuring of its tasks
//! ([`Scope::take_what_is_there`]).
//!
//! Scopes nest: the inner one's bytes are not the outer one's. Neither are those that an [`Account`]
//! has taken meanwhile.
//!
//! [`Account`]: super::Account

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::task::{Context, Poll};

use crossbeam_utils::CachePadded;
use pin_project_lite::pin_project;

use crate::heapwatch::{self, Charge, Subsystem};
use crate::memory::ThreadBalance;
use crate::shard;

/// Connections of clients and nodes with their requests, and what those opened upstream: whatever a
/// worker holds that has no other owner. Blocks go from task to task there, and some go with the
/// runtime or with the last waker, so a worker is measured as a whole.
pub static CONNECTIONS: Scope = Scope::new("connections", Subsystem::Listener);
/// Apps, instances, lookup tables, what the workers count of each, and what the kernel's filter is
/// told of them. SQLite's own memory is not the allocator's.
pub static INVENTORY: Scope = Scope::new("inventory", Subsystem::Inventory);
/// Certificates and keys.
pub static CERTIFICATES: Scope = Scope::new("certificates", Subsystem::Tls);
/// Health checks and probes of other nodes.
pub static HEALTH: Scope = Scope::new("health", Subsystem::Health);
/// Pages that are being made and sent.
pub static ADMIN: Scope = Scope::new("admin", Subsystem::Admin);
/// Exporters, the watch over the heap and names of functions.
pub static TELEMETRY: Scope = Scope::new("telemetry", Subsystem::Telemetry);
/// What each worker has before its first connection: runtime, timers, tables.
pub static WORKERS: Scope = Scope::new("workers", Subsystem::Stack);
/// What a node without apps and clients has: configuration, runtime, shared tables.
pub static PROCESS: Scope = Scope::new("process", Subsystem::Other);

/// One part of the program.
pub struct Scope {
    name: &'static str,
    subsystem: Subsystem,
    /// One cell for each of the first workers, and one for all other threads.
    bytes: [CachePadded<AtomicI64>; SHARDS],
}

/// Until it is dropped, this thread works for a scope.
#[must_use = "the scope ends when the guard is dropped"]
pub struct Scoped {
    _measure: Measure,
    _charge: Charge,
}

/// Books what this thread's balance changes by, from its making to its drop.
struct Measure {
    scope: &'static Scope,
    before: i64,
}

pin_project! {
    /// A task of a scope, whose polls are measured, and so is its end. See [`Scope::task`].
    pub struct InScope<F> {
        // Let go in a scope of its own.
        #[pin]
        task: Option<F>,
        scope: &'static Scope,
        cell: i64,
    }

    impl<F> PinnedDrop for InScope<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let working = this.scope.enter();
            this.task.set(None);
            drop(working);
            this.scope.add(-*this.cell); // the runtime frees it later, in nobody's scope
        }
    }
}

const SHARDS: usize = 65;

/// What a runtime adds to a task's future: header, scheduler, links and waker (tokio 1.54), in cache
/// lines of their own.
const TASK_BYTES: usize = 120;
const TASK_ALIGN: usize = 128;

thread_local! {
    /// Neither has a destructor, so both may be used at any time of a thread's life.
    static MOVED: Cell<i64> = const { Cell::new(0) };
    static BALANCE: ThreadBalance = ThreadBalance::new();
}

/// Bytes of this thread that have no owner yet: its balance without what was booked.
fn unowned() -> i64 {
    BALANCE.try_with(ThreadBalance::now).unwrap_or_default() - MOVED.get()
}

/// `bytes` of what this thread allocates, allocated or (when negative) frees have an owner.
pub(crate) fn moved(bytes: i64) {
    MOVED.set(MOVED.get().wrapping_add(bytes));
}

/// What the allocator sets aside for `bytes`: four classes for each doubling (jemalloc's manual, size
/// classes).
fn size_class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 8).max(16);
    bytes.next_multiple_of(step)
}

// === impl Scope ===

impl Scope {
    pub(super) const ALL: [&'static Self; 8] =
        [&CONNECTIONS, &INVENTORY, &CERTIFICATES, &HEALTH, &ADMIN, &TELEMETRY, &WORKERS, &PROCESS];

    const fn new(name: &'static str, subsystem: Subsystem) -> Self {
        let bytes = [const { CachePadded::new(AtomicI64::new(0)) }; SHARDS];
        Self { name, subsystem, bytes }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes held now; negative when it has freed more of others' than it allocated.
    pub fn bytes(&self) -> i64 {
        self.bytes.iter().map(|cell| cell.load(Relaxed)).sum()
    }

    /// What this thread allocates and frees is the scope's until the guard is dropped. Not for
    /// across an await: see [`Scope::task`].
    pub fn enter(&'static self) -> Scoped {
        let charge = heapwatch::tag(self.subsystem);
        Scoped { _measure: Measure { scope: self, before: unowned() }, _charge: charge }
    }

    /// What this thread has allocated and freed until now, and nobody has booked, is the scope's. For
    /// a thread that works for nobody else, which says so from time to time.
    pub fn take_what_is_there(&'static self) {
        drop(Measure { scope: self, before: 0 });
    }

    /// A part of a task that works for the scope.
    pub fn part<F: Future>(&'static self, part: F) -> InScope<F> {
        InScope { task: Some(part), scope: self, cell: 0 }
    }

    /// A task that works for the scope: `spawn` spawns it. What the runtime allocates to hold it is
    /// the scope's as well, whoever spawns it, for as long as it is there.
    pub fn task<F: Future, T>(&'static self, task: F, spawn: impl FnOnce(InScope<F>) -> T) -> T {
        let cell = size_of::<InScope<F>>() + TASK_BYTES;
        let cell = size_class(cell.next_multiple_of(TASK_ALIGN)) as i64;
        self.add(cell);
        let before = unowned();
        let spawned = spawn(InScope { task: Some(task), scope: self, cell });
        moved(unowned() - before); // booked already
        spawned
    }

    /// Of what this thread has allocated or freed, this much was for the scope.
    fn book(&self, bytes: i64) {
        self.add(bytes);
        moved(bytes);
    }

    fn add(&self, bytes: i64) {
        // A shard of one worker has one writer, the last one many; the sum must be right in both.
        self.bytes[shard::current(SHARDS).index()].fetch_add(bytes, Relaxed);
    }
}

// === impl Measure ===

impl Drop for Measure {
    fn drop(&mut self) {
        self.scope.book(unowned() - self.before);
    }
}

// === impl InScope ===

impl<F: Future> Future for InScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _working = this.scope.enter();
        match this.task.as_pin_mut() {
            Some(task) => task.poll(cx),
            None => Poll::Pending, // it is only empty while it is dropped
        }
    }
}
