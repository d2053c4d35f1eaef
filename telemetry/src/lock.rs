//! A mutex that says when it is held for too long.
//!
//! Whoever holds one notes in the slot of its thread which lock that is and since when. The thread
//! that watches the others looks at all slots ([`held_for`]), so a lock that is never given back is
//! found as well as one that comes back late. A thread notes the outermost lock that it holds: the
//! others wait for that one longest.
//!
//! Taking one costs three stores and a reading of the coarse clock (4 ms) more than a mutex without.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::watchdog::capture;

/// Mutual exclusion that is noticed when it lasts. Never held across an await.
pub struct Mutex<T> {
    name: u32,
    inner: parking_lot::Mutex<T>,
}

/// The right to what is inside, until dropped.
pub struct Guard<'a, T> {
    // Given back before the note is taken away: what is noted was held.
    inner: parking_lot::MutexGuard<'a, T>,
    _note: Note,
}

/// A lock that a thread has held for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub lock: &'static str,
    pub thread: capture::Thread,
    pub lasted: Duration,
    /// Tells one holding from the next.
    pub turn: Turn,
}

/// One holding of a lock by one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    slot: usize,
    number: u64,
}

/// What one thread holds. Only its thread writes it.
struct Slot {
    /// 0 while it belongs to no thread.
    thread: AtomicI32,
    name: AtomicU32,
    turn: AtomicU64,
    /// Milliseconds of the coarse clock; 0 while nothing is held.
    since: AtomicU64,
}

/// Of the thread that has it, until the thread ends.
struct Own(Option<&'static Slot>);

/// Taken away when what was noted has been given back; empty for a lock within a lock.
struct Note(Option<&'static Slot>);

/// Threads that can be watched at a time; locks of more are not.
const THREADS_MAX: usize = 64;

static SLOTS: [Slot; THREADS_MAX] = [const { Slot::new() }; THREADS_MAX];

/// Names by their numbers. There are as many as places in the code that make a lock.
static NAMES: parking_lot::Mutex<Vec<&'static str>> = parking_lot::Mutex::new(Vec::new());

thread_local! {
    static OWN: Own = Own::claim();
}

/// Every lock that has been held for `limit` or longer, by the threads that hold them.
pub fn held_for(limit: Duration) -> impl Iterator<Item = Held> {
    let now = now_ms();
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    SLOTS.iter().enumerate().filter_map(move |(slot, noted)| {
        let since = noted.since.load(Acquire);
        let lasted = now.saturating_sub(since);
        if since == 0 || lasted < limit {
            return None;
        }
        let (name, number) = (noted.name.load(Relaxed), noted.turn.load(Relaxed));
        let thread = capture::Thread::of(noted.thread.load(Relaxed));
        // Another holding may have begun meanwhile.
        if noted.since.load(Acquire) != since {
            return None;
        }
        let lock = NAMES.lock().get(name as usize).copied().unwrap_or_default();
        let (lasted, turn) = (Duration::from_millis(lasted), Turn { slot, number });
        Some(Held { lock, thread, lasted, turn })
    })
}

fn number_of(name: &'static str) -> u32 {
    let mut names = NAMES.lock();
    let known = names.iter().position(|known| *known == name);
    let number = known.unwrap_or_else(|| {
        names.push(name);
        names.len() - 1
    });
    u32::try_from(number).expect("as many as places in the code")
}

/// Never 0.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    1 + now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

// === impl Mutex, Guard ===

impl<T> Mutex<T> {
    /// `name` says in reports what is locked.
    pub fn new(name: &'static str, inner: T) -> Self {
        Self { name: number_of(name), inner: parking_lot::Mutex::new(inner) }
    }

    /// Waits until nobody else has it.
    pub fn lock(&self) -> Guard<'_, T> {
        let inner = self.inner.lock();
        Guard { inner, _note: Note::of(self.name) }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

// === impl Slot, Own, Note ===

impl Slot {
    const fn new() -> Self {
        Self {
            thread: AtomicI32::new(0),
            name: AtomicU32::new(0),
            turn: AtomicU64::new(0),
            since: AtomicU64::new(0),
        }
    }
}

impl Own {
    fn claim() -> Self {
        let thread = capture::Thread::current().id();
        let is_ours =
            |slot: &&Slot| slot.thread.compare_exchange(0, thread, Relaxed, Relaxed).is_ok();
        Self(SLOTS.iter().find(is_ours))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.thread.store(0, Relaxed);
        }
    }
}

impl Note {
    fn of(name: u32) -> Self {
        // A thread that is ending has given its slot back.
        let slot = OWN.try_with(|own| own.0).ok().flatten();
        let slot = slot.filter(|slot| slot.since.load(Relaxed) == 0);
        if let Some(slot) = slot {
            slot.name.store(name, Relaxed);
            slot.turn.store(slot.turn.load(Relaxed).wrapping_add(1), Relaxed);
            slot.since.store(now_ms(), Release);
        }
        Self(slot)
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.since.store(0, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    fn held(name: &str, limit: Duration) -> Option<Held> {
        held_for(limit).find(|held| held.lock == name)
    }

    #[test]
    fn a_lock_that_is_held_is_seen_with_its_name_and_thread_until_it_is_given_back() {
        let lock = Arc::new(Mutex::new("of a test", 1));
        let (say, said) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let holder = thread::spawn({
            let lock = lock.clone();
            move || {
                let outer = lock.lock();
                let within = Mutex::new("within it", ());
                let inner = within.lock();
                say.send(capture::Thread::current()).unwrap();
                gone.recv().unwrap();
                drop(inner);
                assert_eq!(*outer, 1);
                gone.recv().unwrap();
            }
        });
        let thread = said.recv().unwrap();
        let first = held("of a test", Duration::ZERO).expect("it is held");
        assert_eq!(first.thread, thread);
        assert_eq!(held("within it", Duration::ZERO), None, "the outermost counts");
        assert_eq!(held("of a test", Duration::from_secs(60)), None);
        go.send(()).unwrap();
        go.send(()).unwrap();
        holder.join().unwrap();
        assert_eq!(held("of a test", Duration::ZERO), None);
        let again = lock.lock();
        let second = held("of a test", Duration::ZERO).expect("it is held again");
        assert_ne!(first.turn, second.turn);
        drop(again);
    }

    #[test]
    fn slots_of_threads_that_ended_are_used_again() {
        let lock = Arc::new(Mutex::new("of many", 0));
        for _ in 0..THREADS_MAX + 10 {
            let lock = lock.clone();
            thread::spawn(move || {
                let mut guard = lock.lock();
                *guard += 1;
                assert!(held("of many", Duration::ZERO).is_some());
            })
            .join()
            .unwrap();
        }
        assert_eq!(*lock.lock(), THREADS_MAX + 10);
    }
}
