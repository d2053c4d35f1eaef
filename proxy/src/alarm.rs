//! Coarse deadlines: one scan per worker and tick, instead of a timer entry per wait.
//!
//! Every connection has a place where its peer can stop, and most deadlines are moved long before
//! they are reached. An [`Alarm`] is a slot in a table of its worker: arming it stores two numbers
//! and a waker, nothing is allocated and no wheel is touched. Whoever is woken looks at
//! [`Alarm::is_due`]; waking early is allowed, waking late is bounded by [`TICK`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// How often due alarms are looked for. A deadline may pass by up to two of these, so one that is
/// configured to be shorter than them is as long as they are.
pub const TICK: Duration = Duration::from_millis(100);

/// The alarms of one worker. Cloning shares them.
#[derive(Clone)]
pub struct Alarms {
    table: Rc<Table>,
}

/// A time at which an alarm is due, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

/// One deadline at a time; disarmed when dropped.
pub struct Alarm {
    table: Rc<Table>,
    slot: usize,
}

struct Table {
    started: Instant,
    /// Ticks since `started`, as of the last scan.
    now: Cell<u64>,
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Default)]
struct Slot {
    /// In ticks; `NEVER` when disarmed.
    due: u64,
    waker: Option<Waker>,
}

const NEVER: u64 = u64::MAX;

// === impl Alarms ===

impl Alarms {
    pub fn new() -> Self {
        let table = Table { started: Instant::now(), now: Cell::new(0), slots: RefCell::default() };
        Self { table: Rc::new(table) }
    }

    /// A new alarm, not armed.
    pub fn alarm(&self) -> Alarm {
        let mut slots = self.table.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.slots.push(Slot::default());
            slots.slots.len() - 1
        });
        slots.slots[slot] = Slot { due: NEVER, waker: None };
        Alarm { table: self.table.clone(), slot }
    }

    /// Wakes what is due, for ever; the worker owns the task that polls it.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let now = ticks.tick().await;
            self.wake_due(now);
        }
    }

    /// Wakes every task that has an armed alarm, so that it looks at the worker's phase.
    pub fn wake_all(&self) {
        for slot in &mut self.table.slots.borrow_mut().slots {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// Alarms in use.
    pub fn len(&self) -> usize {
        let slots = self.table.slots.borrow();
        slots.slots.len() - slots.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn wake_due(&self, now: Instant) {
        let now = self.table.ticks(now - self.table.started);
        self.table.now.set(now);
        let mut slots = self.table.slots.borrow_mut();
        for slot in &mut slots.slots {
            if slot.due <= now
                && let Some(waker) = slot.waker.take()
            {
                waker.wake();
            }
        }
        // What a burst of connections left behind is given back once most of it is free.
        if slots.free.len() > 1024 && slots.free.len() > slots.slots.len() / 2 {
            slots.shrink();
        }
    }
}

impl Default for Alarms {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Alarm ===

impl Alarm {
    /// Wakes the current task in `after`, at the earliest; replaces an earlier deadline.
    pub fn arm(&self, after: Duration, cx: &Context<'_>) {
        self.arm_at(self.deadline_in(after), cx);
    }

    /// The deadline that [`Self::arm`] would set now.
    pub fn deadline_in(&self, after: Duration) -> Deadline {
        // One tick more, because the present one has begun.
        Deadline(self.table.now.get() + self.table.ticks(after) + 1)
    }

    /// Wakes the current task at `deadline`, at the earliest; replaces an earlier deadline.
    pub fn arm_at(&self, Deadline(due): Deadline, cx: &Context<'_>) {
        let slot = &mut self.table.slots.borrow_mut().slots[self.slot];
        slot.due = due;
        match &slot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => slot.waker = Some(cx.waker().clone()),
        }
    }

    /// As [`Self::arm_at`], unless it is armed for an earlier time: then only the waker is brought up to
    /// date.
    pub fn arm_by(&self, Deadline(due): Deadline, cx: &Context<'_>) {
        let armed = self.table.slots.borrow().slots[self.slot].due;
        self.arm_at(Deadline(due.min(armed)), cx);
    }

    /// As [`Self::arm`], unless it is armed already: then only the waker is brought up to date.
    pub fn arm_once(&self, after: Duration, cx: &Context<'_>) {
        let armed = self.table.slots.borrow().slots[self.slot].due != NEVER;
        if !armed {
            return self.arm(after, cx);
        }
        let slot = &mut self.table.slots.borrow_mut().slots[self.slot];
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
    }

    /// Keeps the waker: the next arming is most likely by the same task.
    pub fn disarm(&self) {
        self.table.slots.borrow_mut().slots[self.slot].due = NEVER;
    }

    /// Whether a deadline of any alarm of this worker is over.
    pub fn is_over(&self, Deadline(due): Deadline) -> bool {
        due <= self.table.now.get()
    }

    pub fn is_due(&self) -> bool {
        self.table.slots.borrow().slots[self.slot].due <= self.table.now.get()
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let slots = &mut *self.table.slots.borrow_mut();
        slots.slots[self.slot] = Slot { due: NEVER, waker: None };
        slots.free.push(self.slot);
    }
}

// === impl Table ===

impl Table {
    fn ticks(&self, duration: Duration) -> u64 {
        duration.as_millis().div_ceil(TICK.as_millis()) as u64
    }
}

impl Slots {
    /// Cuts the free slots at the end of the table off, and has the others used from the front, so
    /// that the end becomes free.
    fn shrink(&mut self) {
        self.free.sort_unstable();
        while self.free.last().is_some_and(|last| last + 1 == self.slots.len()) {
            self.free.pop();
            self.slots.pop();
        }
        self.free.reverse();
        self.slots.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn due(alarm: &Alarm, after: Duration) {
        poll_fn(|cx| {
            if alarm.is_due() {
                return Poll::Ready(());
            }
            alarm.arm_once(after, cx);
            Poll::Pending
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_wakes_after_its_time_and_not_before() {
        let alarms = Alarms::new();
        let alarm = alarms.alarm();
        let started = Instant::now();
        tokio::select! {
            () = due(&alarm, Duration::from_secs(10)) => {}
            () = alarms.clone().run() => unreachable!("the scan never ends"),
        }
        let waited = started.elapsed();
        assert!(waited >= Duration::from_secs(10), "{waited:?}");
        assert!(waited <= Duration::from_secs(10) + 3 * TICK, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_moved_alarm_does_not_wake_at_its_old_time() {
        let alarms = Alarms::new();
        let alarm = alarms.alarm();
        poll_fn(|cx| {
            alarm.arm(Duration::from_secs(1), cx);
            alarm.arm(Duration::from_secs(60), cx);
            Poll::Ready(())
        })
        .await;
        tokio::select! {
            () = due(&alarm, Duration::from_secs(1)) => panic!("woken at the old time"),
            () = alarms.clone().run() => unreachable!("the scan never ends"),
            () = tokio::time::sleep(Duration::from_secs(30)) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_with_a_hole_is_filled_from_its_front() {
        let alarms = Alarms::new();
        let mut held: Vec<_> = (0..5000).map(|_| alarms.alarm()).collect();
        let last = held.pop();
        drop(held);
        alarms.wake_due(Instant::now());
        assert_eq!(alarms.table.slots.borrow().slots.len(), 5000);
        let next = alarms.alarm();
        assert_eq!(next.slot, 0);
        drop(last);
        alarms.wake_due(Instant::now());
        assert_eq!(alarms.table.slots.borrow().slots.len(), 1);
    }

    #[test]
    fn slots_are_reused_and_given_back() {
        tokio::runtime::Builder::new_current_thread()
            .start_paused(true)
            .enable_time()
            .build()
            .unwrap()
            .block_on(async {
                let alarms = Alarms::new();
                let held: Vec<_> = (0..5000).map(|_| alarms.alarm()).collect();
                assert_eq!(alarms.len(), 5000);
                drop(held);
                assert!(alarms.is_empty());
                alarms.wake_due(Instant::now());
                assert_eq!(alarms.table.slots.borrow().slots.len(), 0);
            });
    }
}
