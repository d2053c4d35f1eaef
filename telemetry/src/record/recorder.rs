//! A worker's recorder: the slots of its requests, in use and free.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quanta::Clock;

use super::handle::Record;
use super::model::{Method, Protocol, Remote, ShortText, Verbosity, Wide};
use super::pool::Pool;
use super::random::Random;
use super::shared::Shared;
use super::slot::Slot;
use super::typical::Typical;
use crate::outbox::Outbox;

/// One per worker. Cloning shares it.
#[derive(Clone)]
pub struct Recorder {
    owner: Rc<Owner>,
}

/// A point in time of the recorder's clock; only the clock knows what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub(super) u64);

/// What is known of a request when its head was read.
#[derive(Debug, Clone)]
pub struct Begin {
    pub request_id: ShortText<64>,
    pub protocol: Protocol,
    pub tls: bool,
    pub method: Method,
    /// The span of the node before this one, and whether it was sampled there; only from a peer whose
    /// certificate was verified.
    pub parent: Option<(Remote, bool)>,
    /// What a client says its request belongs to. Noted, never continued.
    pub link: Option<Remote>,
    pub now: Moment,
}

/// Breaks the circle of worker and slots when the last recorder goes.
struct Owner {
    worker: Rc<Worker>,
}

/// What the records of one worker share.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
    index: usize,
    random: RefCell<Random>,
    /// Of 2^32 requests, how many are sampled.
    sample_below: u64,
    live: RefCell<Vec<Rc<Slot>>>,
    free: RefCell<Vec<Rc<Slot>>>,
    /// Nanoseconds.
    pub(super) segment_after: u64,
    pub(super) buffers: Pool,
    pub(super) verbose_buffers: Pool,
    pub(super) typical: RefCell<Typical>,
    /// A raw value of the clock and the time of day then, renewed by every sweep.
    anchor: Cell<(u64, Duration)>,
    /// Where the next sweep goes on.
    cursor: Cell<usize>,
    closed: Cell<bool>,
}

/// Slots that one sweep looks at.
const SWEEP_MAX: usize = 1024;
/// An empty list may keep this many places after a burst.
const LIST_KEPT: usize = 1024;

// === impl Recorder ===

impl Recorder {
    /// The recorder of worker `index`; made on that worker's thread.
    pub fn new(shared: &Arc<Shared>, index: usize) -> Self {
        let config = &shared.config;
        let clock = shared.clock.clone();
        let worker = Worker {
            index,
            random: RefCell::new(Random::from_system()),
            sample_below: (config.sample_percent / 100.0 * (1u64 << 32) as f64) as u64,
            segment_after: config.segment_after.as_nanos() as u64,
            live: RefCell::default(),
            free: RefCell::default(),
            buffers: Pool::new(Arc::clone(&shared.buffers), config.retained_buffers),
            verbose_buffers: Pool::new(
                Arc::clone(&shared.verbose_buffers),
                config.retained_buffers / 16,
            ),
            typical: RefCell::new(Typical::new()),
            anchor: Cell::new((clock.raw(), time_of_day())),
            cursor: Cell::new(0),
            closed: Cell::new(false),
            clock,
            shared: Arc::clone(shared),
        };
        Self { owner: Rc::new(Owner { worker: Rc::new(worker) }) }
    }

    pub fn now(&self) -> Moment {
        Moment(self.owner.worker.clock.raw())
    }

    /// Begins the record of a request.
    pub fn begin(&self, begin: Begin) -> Record {
        Record { slot: self.owner.worker.begin(begin) }
    }

    /// Cuts what has been open for too long, takes the buffers of what has become a stream, and sets
    /// the clock. Once per second; a call looks at no
    /// more than 1,024 requests and goes on from there the next time.
    pub fn sweep(&self, now: Moment) {
        self.owner.worker.sweep(now);
    }

    /// Requests in flight.
    pub fn live(&self) -> usize {
        self.owner.worker.live.borrow().len()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.worker.closed.set(true);
        let free = self.worker.free.take();
        self.worker.shared.slots.give_back(free.len() * size_of::<Slot>());
    }
}

// === impl Worker ===

impl Worker {
    fn begin(self: &Rc<Self>, begin: Begin) -> Rc<Slot> {
        let Begin { request_id, protocol, tls, method, parent, link, now } = begin;
        let free = self.free.borrow_mut().pop();
        let slot = free.unwrap_or_else(|| Slot::new(self));

        let (trace, span, dice) = {
            let mut random = self.random.borrow_mut();
            let trace = parent.map_or_else(|| random.trace(), |(parent, _)| parent.trace);
            (trace, random.span(), random.next() >> 32)
        };
        let continued = parent.is_some_and(|(_, sampled)| sampled);
        let buffer = if self.shared.exports_wanted() { self.take_buffer() } else { None };
        let verbosity = if buffer.is_some() { Verbosity::Normal } else { Verbosity::Wide };

        slot.log.borrow_mut().begin(buffer, self.shared.config.entries_max);
        *slot.wide.borrow_mut() = Wide {
            parent: parent.map(|(parent, _)| parent),
            link,
            began: self.time_of(now.0),
            request_id,
            verbosity,
            method,
            protocol,
            tls,
            ..Wide::new(trace, span)
        };
        slot.trace.set(trace);
        slot.span.set(span);
        slot.verbosity.set(verbosity);
        slot.has_verbose_buffer.set(false);
        slot.verbose_asked.set(false);
        slot.sampled.set(continued || dice < self.sample_below);
        slot.continued.set(continued);
        slot.kept.set(None);
        slot.segment.set(0);
        slot.began.set(now.0);
        slot.latest.set(0);
        slot.segment_ends.set(self.segment_after);

        let mut live = self.live.borrow_mut();
        slot.place.set(live.len());
        live.push(Rc::clone(&slot));
        self.shared.counters.live.add(1);
        slot
    }

    /// A buffer of the usual size; counted when there is none.
    pub(super) fn take_buffer(&self) -> Option<Box<[u8]>> {
        let buffer = self.buffers.take();
        if buffer.is_none() {
            self.shared.counters.no_buffer.increment();
        }
        buffer
    }

    pub(super) fn outbox(&self) -> &Outbox {
        self.shared.outbox(self.index)
    }

    fn sweep(&self, now: Moment) {
        self.anchor.set((self.clock.raw(), time_of_day()));
        let mut live = self.live.borrow_mut();
        if live.capacity() > LIST_KEPT.max(live.len() * 4) {
            live.shrink_to(LIST_KEPT);
        }
        let len = live.len();
        let start = self.cursor.get();
        for at in (start..start + len.min(SWEEP_MAX)).map(|at| at % len) {
            let since_begin = live[at].since_begin(now.0);
            live[at].cut_when_due(since_begin);
            live[at].release_when_streaming(since_begin);
        }
        self.cursor.set((start + len.min(SWEEP_MAX)).checked_rem(len).unwrap_or_default());
    }

    /// Takes a slot out of use.
    pub(super) fn retire(&self, slot: &Rc<Slot>) {
        let retired = {
            let mut live = self.live.borrow_mut();
            let place = slot.place.get();
            let retired = live.swap_remove(place);
            if let Some(moved) = live.get(place) {
                moved.place.set(place);
            }
            retired
        };
        debug_assert!(Rc::ptr_eq(&retired, slot), "a slot knows its place");
        self.shared.counters.live.add(-1);
        let mut free = self.free.borrow_mut();
        // Slots are small beside buffers, so more of them are kept.
        if !self.closed.get() && free.len() < self.shared.config.retained_buffers * 4 {
            free.push(retired);
        } else {
            self.shared.slots.give_back(size_of::<Slot>());
        }
    }

    fn time_of(&self, raw: u64) -> Duration {
        let (anchor, time) = self.anchor.get();
        let after = Duration::from_nanos(self.clock.delta_as_nanos(anchor, raw));
        let before = Duration::from_nanos(self.clock.delta_as_nanos(raw, anchor));
        (time + after).saturating_sub(before)
    }
}

fn time_of_day() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}
