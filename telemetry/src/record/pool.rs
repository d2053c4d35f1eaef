//! Buffers of one size, kept for the next request, out of a budget the whole node shares.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::ledger::Account;

/// The node's budget for buffers of one size.
pub(super) struct Budget {
    /// Bytes of one buffer.
    pub(super) each: usize,
    cap: usize,
    used: AtomicUsize,
    account: Account,
}

/// A worker's free buffers. The shared budget is touched only when one is made or given up.
pub(super) struct Pool {
    budget: Arc<Budget>,
    retained_max: usize,
    free: RefCell<Vec<Box<[u8]>>>,
}

// === impl Budget ===

impl Budget {
    pub(super) fn new(each: usize, cap: usize, account: Account) -> Arc<Self> {
        Arc::new(Self { each, cap, used: AtomicUsize::new(0), account })
    }

    fn make(&self) -> Option<Box<[u8]>> {
        let more = |used| (used + self.each <= self.cap).then_some(used + self.each);
        if self.used.fetch_update(Relaxed, Relaxed, more).is_err() {
            self.account.drop_one();
            return None;
        }
        self.account.take(self.each);
        Some(vec![0; self.each].into_boxed_slice())
    }

    fn unmake(&self, buffer: Box<[u8]>) {
        drop(buffer);
        self.used.fetch_sub(self.each, Relaxed);
        self.account.give_back(self.each);
    }
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(budget: Arc<Budget>, retained_max: usize) -> Self {
        Self { budget, retained_max, free: RefCell::new(Vec::with_capacity(retained_max)) }
    }

    /// A buffer with whatever is in it; none when the node's budget is used up.
    pub(super) fn take(&self) -> Option<Box<[u8]>> {
        let free = self.free.borrow_mut().pop();
        free.or_else(|| self.budget.make())
    }

    pub(super) fn give_back(&self, buffer: Box<[u8]>) {
        let mut free = self.free.borrow_mut();
        if free.len() < self.retained_max {
            free.push(buffer);
        } else {
            drop(free);
            self.budget.unmake(buffer);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for buffer in self.free.take() {
            self.budget.unmake(buffer);
        }
    }
}
