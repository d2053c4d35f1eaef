//! Ask, wait, insist: how a node stops getting work, and lets go of what it has.
//!
//! A node *drains* in one of two ways. For maintenance an operator asks, and may take it back: the
//! node says that it is not ready, its peers send elsewhere, connections are told politely to go, and
//! whoever comes all the same is served. For good, at SIGTERM or after a handoff: it stops accepting,
//! and what is left of each [`Class`] at its deadline is cut.
//!
//! What the node says of itself is a [`Drain`]. What a worker does is its [`Phase`];
//! how a connection is told depends on what is spoken, and is in its driver.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::alarm::{Alarm, Deadline};
use crate::config::Timeouts;
use crate::worker::{Phase, Worker};

/// What the node says of itself; whoever wants to know asks, or is told.
pub struct Drain {
    state: watch::Sender<State>,
    /// The same for every answer to a peer, without a lock.
    is_told: AtomicBool,
}

/// Whether new work should come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Serving,
    /// An operator wants it to go elsewhere, for now.
    Operator {
        since: SystemTime,
    },
    /// The node ends.
    Leaving {
        since: SystemTime,
    },
}

/// What a deadline of a drain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Requests, and connections that carry nothing else.
    Request,
    /// WebSockets, and whatever else a client upgraded to.
    WebSocket,
    /// Raw TCP.
    Tcp,
}

/// What was cut, by class.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Cuts([usize; Class::ALL.len()]);

/// How long each class may take, from the first word of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines([Duration; Class::ALL.len()]);

/// When a connection is told to go: drawn once per drain, so that all of them do not come back in
/// one burst.
#[derive(Debug, Default)]
pub struct Departure {
    at: Cell<Option<Deadline>>,
}

// === impl Drain ===

impl Drain {
    /// An operator asks; says whether that is news.
    pub fn begin(&self, now: SystemTime) -> bool {
        self.enter(|state| match state {
            State::Serving => Some(State::Operator { since: now }),
            State::Operator { .. } | State::Leaving { .. } => None,
        })
    }

    /// An operator takes it back; says whether that is news. A node that ends goes on to do so.
    pub fn end(&self) -> bool {
        self.enter(|state| match state {
            State::Operator { .. } => Some(State::Serving),
            State::Serving | State::Leaving { .. } => None,
        })
    }

    /// The node ends, and says so to whoever might send to it; says whether it looked otherwise before.
    /// Not for a node that has a successor at its place.
    pub fn leave(&self, now: SystemTime) -> bool {
        let mut was_serving = false;
        self.enter(|state| match state {
            State::Serving => {
                was_serving = true;
                Some(State::Leaving { since: now })
            }
            State::Operator { since } => Some(State::Leaving { since }),
            State::Leaving { .. } => None,
        });
        was_serving
    }

    /// A successor at the node's place speaks for it from now on.
    pub fn fall_silent(&self) {
        self.is_told.store(false, Relaxed);
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Every state from the present one on.
    pub fn states(&self) -> watch::Receiver<State> {
        let mut states = self.state.subscribe();
        states.mark_changed();
        states
    }

    /// Whether new work should go elsewhere.
    pub fn is_told(&self) -> bool {
        self.is_told.load(Relaxed)
    }

    fn enter(&self, next: impl FnOnce(State) -> Option<State>) -> bool {
        self.state.send_if_modified(|state| {
            let Some(next) = next(*state) else { return false };
            *state = next;
            self.is_told.store(next != State::Serving, Relaxed);
            true
        })
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::Serving), is_told: AtomicBool::new(false) }
    }
}

// === impl State ===

impl State {
    /// Since when it has not been serving.
    pub fn since(self) -> Option<SystemTime> {
        match self {
            Self::Serving => None,
            Self::Operator { since } | Self::Leaving { since } => Some(since),
        }
    }
}

// === impl Class ===

impl Class {
    pub const ALL: [Self; 3] = [Self::Request, Self::WebSocket, Self::Tcp];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::WebSocket => "websocket",
            Self::Tcp => "tcp",
        }
    }
}

// === impl Cuts ===

impl Cuts {
    pub fn of(&self, class: Class) -> usize {
        self.0[class as usize]
    }

    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }

    pub fn count(&mut self, class: Class) {
        self.0[class as usize] += 1;
    }

    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|class| self.0[class] + other.0[class]))
    }
}

// === impl Deadlines ===

impl Deadlines {
    pub fn new(timeouts: &Timeouts) -> Self {
        Self([timeouts.drain, timeouts.drain_websocket, timeouts.drain_tcp])
    }

    /// Everything is cut at once.
    pub fn none() -> Self {
        Self([Duration::ZERO; Class::ALL.len()])
    }

    /// When the last class is cut.
    pub fn longest(&self) -> Duration {
        self.0.into_iter().max().unwrap_or_default()
    }

    /// The classes in the order of their deadlines.
    pub fn in_order(&self) -> [(Class, Duration); Class::ALL.len()] {
        let mut all = Class::ALL.map(|class| (class, self.0[class as usize]));
        all.sort_by_key(|(_, after)| *after);
        all
    }
}

// === impl Departure ===

impl Departure {
    /// When the connection should be told; `None` while its worker serves. One that came during a drain
    /// has its own time from then on.
    pub fn at(&self, worker: &Worker, alarm: &Alarm) -> Option<Deadline> {
        if worker.phase() == Phase::Serving {
            self.at.set(None);
            return None;
        }
        let draw = || {
            let spread = worker.edge.config.timeouts.drain_spread;
            let milliseconds = usize::try_from(spread.as_millis()).unwrap_or(usize::MAX);
            let after = worker.rng.below(milliseconds.saturating_add(1));
            alarm.deadline_in(Duration::from_millis(after as u64))
        };
        let at = self.at.get().unwrap_or_else(draw);
        self.at.set(Some(at));
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_AGO: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_drain_can_be_taken_back_and_asked_for_again() {
        let drain = Drain::default();
        assert!(drain.begin(LONG_AGO) && drain.is_told());
        assert!(!drain.begin(SystemTime::now()), "asking twice is no news");
        assert_eq!(drain.state().since(), Some(LONG_AGO));
        assert!(drain.end() && !drain.is_told());
        assert!(!drain.end());
        assert!(drain.begin(SystemTime::now()));
    }

    #[test]
    fn an_end_is_for_good() {
        let drain = Drain::default();
        assert!(drain.leave(LONG_AGO), "nobody was told before");
        assert!(!drain.end() && drain.is_told());
        let drained = Drain::default();
        drained.begin(LONG_AGO);
        assert!(!drained.leave(SystemTime::now()), "everybody knows already");
        assert_eq!(drained.state(), State::Leaving { since: LONG_AGO });
    }

    #[tokio::test]
    async fn whoever_listens_hears_the_present_state_first() {
        let drain = Drain::default();
        let mut states = drain.states();
        states.changed().await.expect("the drain is there");
        assert_eq!(*states.borrow_and_update(), State::Serving);
        drain.begin(LONG_AGO);
        states.changed().await.expect("the drain is there");
        assert_ne!(*states.borrow_and_update(), State::Serving);
    }

    #[test]
    fn classes_are_cut_in_the_order_of_their_deadlines() {
        let seconds = Duration::from_secs;
        let deadlines = Deadlines([seconds(30), seconds(5), seconds(60)]);
        let order = deadlines.in_order().map(|(class, _)| class);
        assert_eq!(order, [Class::WebSocket, Class::Request, Class::Tcp]);
        assert_eq!(deadlines.longest(), seconds(60));
    }

    #[test]
    fn cuts_add_up() {
        let (mut one, mut other) = (Cuts::default(), Cuts::default());
        one.count(Class::Tcp);
        other.count(Class::Tcp);
        other.count(Class::Request);
        let sum = one.and(other);
        assert_eq!((sum.of(Class::Tcp), sum.of(Class::WebSocket), sum.total()), (2, 0, 3));
    }
}
