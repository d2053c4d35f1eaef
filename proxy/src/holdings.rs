//! What each connection holds: bytes allocated minus bytes freed, as far as its own tasks did both.
//!
//! An estimate that costs four loads per poll. What one task allocates and another frees is booked
//! where it happened, unless it is said to change hands: bodies to and from a shared HTTP/2 connection
//! upstream are ([`Holdings::take`], [`Holdings::give`]); what that connection has read and nobody
//! has taken yet is nobody's, and bounded by its windows. So small figures mean little; a connection
//! whose client does not read stands out. It decides who is asked to give way when memory is short
//! (`telemetry::pressure`).

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use telemetry::heapwatch::tag_app;
use telemetry::memory::ThreadBalance;

use crate::inventory::AppLive;

/// One connection's, with its streams'; between nodes, where one connection carries everybody's
/// requests, one stream's.
#[derive(Default)]
pub struct Holdings {
    bytes: Cell<i64>,
    /// Of these, what the tenant knows of.
    told: Cell<i64>,
    /// Number of the tenant; 0 while there is none.
    app: Cell<u32>,
    tenant: RefCell<Option<Arc<AppLive>>>,
}

/// Books what tasks allocate and free. One for each worker.
pub struct Desk<B = ThreadBalance> {
    balance: B,
}

/// What the thread has allocated and not freed.
pub trait Balance {
    fn now(&self) -> i64;
}

pin_project! {
    /// A task of a connection, whose polls and whose end are booked.
    pub struct Booked<F, B: Balance = ThreadBalance> {
        #[pin]
        task: Option<F>,
        holdings: Rc<Holdings>,
        desk: Rc<Desk<B>>,
    }

    impl<F, B: Balance> PinnedDrop for Booked<F, B> {
        fn drop(this: Pin<&mut Self>) {
            this.end();
        }
    }
}

thread_local! {
    /// Those of the task that is being polled.
    static CURRENT: Cell<Option<Rc<Holdings>>> = const { Cell::new(None) };
}

/// A tenant is told in steps of this size, so that its shared counter is left alone by those who
/// hold little.
const STEP_BYTES: i64 = 16 * 1024;

/// Those of the connection whose task is being polled; new ones outside of any.
pub fn current() -> Rc<Holdings> {
    let current = CURRENT.take().unwrap_or_default();
    CURRENT.set(Some(current.clone()));
    current
}

// === impl Holdings ===

impl Holdings {
    pub fn bytes(&self) -> u64 {
        self.bytes.get().max(0) as u64
    }

    /// Books what it holds for `tenant` from now on; samples of the heap name it from the next poll on.
    pub fn belong_to(&self, tenant: &Arc<AppLive>) {
        self.tell(0);
        self.app.set(tenant.id());
        *self.tenant.borrow_mut() = Some(tenant.clone());
    }

    /// Whether it may be ended for what it holds: nobody's, or of somebody who holds too much.
    pub fn is_fair_game(&self) -> bool {
        self.tenant.borrow().as_ref().is_none_or(|tenant| !tenant.may_have_more())
    }

    /// These bytes were allocated by others and are its own from here on.
    pub fn take(&self, bytes: usize) {
        self.book(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.tell_steps();
    }

    /// These bytes are others' from here on, who will free them.
    pub fn give(&self, bytes: usize) {
        self.book(-i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// It holds nothing worth mentioning, whatever was booked: where that is known, what the estimate
    /// was wrong by does not add up.
    pub fn settle(&self) {
        self.bytes.set(0);
        self.tell(0);
    }

    fn book(&self, bytes: i64) {
        self.bytes.set(self.bytes.get().saturating_add(bytes));
    }

    /// After a poll. Less than nothing is nothing: what others allocated for it and it freed is not
    /// its merit.
    fn balance(&self) {
        self.bytes.set(self.bytes.get().max(0));
        self.tell_steps();
    }

    fn tell_steps(&self) {
        let held = self.bytes.get().max(0);
        if (held - self.told.get()).abs() >= STEP_BYTES {
            self.tell(held);
        }
    }

    fn tell(&self, held: i64) {
        let Some(tenant) = &*self.tenant.borrow() else { return };
        tenant.holds(held - self.told.replace(held));
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        self.tell(0);
    }
}

// === impl Desk ===

impl Desk {
    /// The desk of the worker whose thread this is.
    pub fn new() -> Rc<Self> {
        Rc::new(Self { balance: ThreadBalance::new() })
    }
}

impl<B: Balance> Desk<B> {
    /// Books the polls of `task` to `holdings`.
    pub fn book<F: Future>(self: &Rc<Self>, holdings: Rc<Holdings>, task: F) -> Booked<F, B> {
        Booked { task: Some(task), holdings, desk: self.clone() }
    }

    /// Does something that the task being polled is not charged for: what it allocates is freed by
    /// the runtime.
    pub fn unbooked<T>(&self, something: impl FnOnce() -> T) -> T {
        let before = self.balance.now();
        let done = something();
        current().book(before - self.balance.now());
        done
    }

    fn booked<T>(&self, holdings: &Rc<Holdings>, something: impl FnOnce() -> T) -> T {
        let outer = CURRENT.replace(Some(holdings.clone()));
        let _charge = tag_app(holdings.app.get());
        let before = self.balance.now();
        let done = something();
        holdings.book(self.balance.now() - before);
        holdings.balance();
        CURRENT.set(outer);
        done
    }
}

impl Balance for ThreadBalance {
    fn now(&self) -> i64 {
        Self::now(self)
    }
}

// === impl Booked ===

impl<F, B: Balance> Booked<F, B> {
    /// Drops the task, which frees what it held.
    fn end(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.desk.booked(this.holdings, || this.task.set(None));
    }
}

impl<F: Future, B: Balance> Future for Booked<F, B> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.as_mut().project();
        let Some(task) = this.task.as_mut().as_pin_mut() else { return Poll::Pending };
        let polled = this.desk.booked(this.holdings, || task.poll(cx));
        if polled.is_ready() {
            self.end();
        }
        polled
    }
}

#[cfg(test)]
mod tests;
