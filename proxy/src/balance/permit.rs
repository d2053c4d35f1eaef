//! The right to have one request or connection at one instance, given back when dropped.

use std::cell::Cell;
use std::sync::Arc;

use tokio::time::Instant;

use super::load::{Load, Millis, Streak};

/// Counted against the hard limit of one instance and service for as long as it lives.
///
/// When somebody waits, dropping it hands the place to the first who can use it, so that nobody
/// who comes later is faster. The other case is Dekker's: whoever drops subtracts and then looks
/// for waiters, whoever waits enters the queue and then looks for a place. All four are `SeqCst`,
/// so at least one of them sees the other.
///
/// Handing on takes nothing: the count stays what it was, so also two generations of the process
/// together stay within the limit. What the other one gives back is offered to nobody here, so while
/// there is one, who waits looks by themselves (`Place::look_in`).
pub struct Permit {
    /// `None` once it was given back or passed on.
    load: Option<Arc<Load>>,
    /// What the answer that it was used for has ended.
    ended: Cell<Streak>,
}

// === impl Permit ===

impl Permit {
    pub(super) fn new(load: Arc<Load>) -> Self {
        Self { load: Some(load), ended: Cell::default() }
    }

    /// What it counts at.
    pub fn load(&self) -> &Arc<Load> {
        self.load.as_ref().expect("only drop takes it")
    }

    /// The head of an answer came, and ended a streak of failures.
    pub(super) fn answered(&self, ended: Streak) {
        self.ended.set(ended);
    }

    /// The instance broke the answer off.
    pub fn broken_off(&self, now: Instant) {
        self.load().broken_off(self.ended.get(), now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(mut load) = self.load.take() else { return };
        if load.queue().waiting() != 0 {
            match pass_on(load) {
                Ok(()) => return,
                Err(back) => load = back,
            }
        }
        load.give_back();
        // Once is enough: whoever enters from here on finds the place free, and those who were
        // there and cannot use it look again by themselves.
        if load.queue().waiting() != 0
            && load.may_pass_on(Millis::at(Instant::now()))
            && let Some(mut permit) = load.try_acquire()
            && let Some(load) = permit.load.take()
            && let Err(back) = pass_on(load)
        {
            back.give_back();
        }
    }
}

/// Gives the place to the first who waits and can use it; `Err` if nobody does.
fn pass_on(load: Arc<Load>) -> Result<(), Arc<Load>> {
    if !load.may_pass_on(Millis::at(Instant::now())) {
        return Err(load);
    }
    let queue = Arc::clone(load.queue());
    queue.offer(Permit::new(load)).map_err(|mut permit| {
        // Taken out, because dropping it here would come back to where we are.
        permit.load.take().expect("nobody took it")
    })
}
