//! The record the thread is working for, for code that is handed none.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::handle::Record;

thread_local! {
    static CURRENT: Cell<Option<Record>> = const { Cell::new(None) };
}

/// While it lives its record is the thread's current one. Guards end in the reverse of their order.
pub struct Entered {
    previous: Option<Record>,
}

pin_project_lite::pin_project! {
    /// A future during whose polls a record is the thread's current one.
    pub struct Scope<F> {
        #[pin]
        future: F,
        record: Record,
    }
}

/// Calls `with` with the thread's current record, if there is one.
pub fn current<T>(with: impl FnOnce(&Record) -> T) -> Option<T> {
    // A clone, so that `with` may itself look for the current record, or enter another.
    // Absent as well while the thread ends.
    let record = CURRENT.try_with(|current| {
        let record = current.take();
        let clone = record.clone();
        current.set(record);
        clone
    });
    record.ok().flatten().map(|record| with(&record))
}

/// Makes `record` the thread's current one whenever `future` is polled.
pub fn scope<F>(record: Record, future: F) -> Scope<F> {
    Scope { future, record }
}

// === impl Entered ===

impl Entered {
    pub(super) fn new(record: Record) -> Self {
        let previous = CURRENT.try_with(|current| current.replace(Some(record)));
        Self { previous: previous.ok().flatten() }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let previous = self.previous.take();
        // The former value is dropped after the cell was set: it may end its request.
        let entered = CURRENT.try_with(|current| current.replace(previous));
        drop(entered);
    }
}

// === impl Scope ===

impl<F> Scope<F> {
    pub fn record(&self) -> &Record {
        &self.record
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.record.enter();
        this.future.poll(context)
    }
}
