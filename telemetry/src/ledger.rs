//! The list of everything that may hold memory: name, current, high-water, cap, drops.
//!
//! An owner opens an [`Account`] once and books what it takes and gives back; the cap it names is
//! the one it enforces itself. Booking is a sharded add, so it is cheap enough for buffers. What
//! keeps count of itself already is watched instead ([`Ledger::watch`]). What is made of many small
//! blocks, such as a connection, is measured while it is at work ([`scope`]).
//!
//! No byte is booked twice: what an account takes is no longer the scope's in which it was allocated.

pub mod scope;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

use crate::lock::Mutex;
use crate::metrics::{Counter, Gauge, Registry, catalogue};
use crate::{memory, shard};
use scope::Scope;

/// Every account of the process.
#[derive(Clone)]
pub struct Ledger {
    registry: Registry,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// What one owner holds. Cloning shares it.
#[derive(Clone)]
pub struct Account {
    name: &'static str,
    unit: Unit,
    /// Bytes of each of what it counts; 0 when somebody else books them.
    each: i64,
    cap: u64,
    current: Gauge,
    drops: Counter,
    high: Arc<High>,
}

/// What an account counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Entries,
}

/// One line of the ledger, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub name: &'static str,
    pub unit: Unit,
    pub current: i64,
    /// What that is in bytes; 0 of entries whose bytes are in another line.
    pub bytes: i64,
    /// Highest value so far. Of an account it may be too low by a 64th of the cap for each worker,
    /// of what is watched it is the highest that any reading has seen.
    pub high: i64,
    pub cap: u64,
    pub drops: u64,
    pub place: Place,
}

/// Whose memory it is that a line tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The allocator's, which counts it as allocated.
    Heap,
    /// Part of the program's image, mapped by itself, or of the C library's allocator.
    Outside,
}

enum Entry {
    Account(Account),
    Watched { name: &'static str, unit: Unit, cap: u64, read: Read, high: AtomicI64, place: Place },
}

type Read = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The high-water mark of an account.
///
/// The current value is spread over shards, and adding them up with each booking would have every
/// worker read every other's cache line. So a worker looks each time it has taken `step` since it
/// last did: the mark misses at most `step` for each worker.
struct High {
    mark: AtomicI64,
    step: u64,
    /// What each shard took since it looked.
    taken: Box<[CachePadded<AtomicU64>]>,
}

/// Parts of the cap after which a worker looks.
const STEPS: u64 = 64;

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

// === impl Ledger ===

impl Ledger {
    /// An empty ledger, which exports its lines through `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { registry, entries: Arc::new(Mutex::new("ledger", Vec::new())) }
    }

    /// The ledger of a process: its first lines are the registry itself and the scopes.
    pub fn of_process(registry: Registry) -> Self {
        let ledger = Self::new(registry.clone());
        let cap = registry.bytes_max();
        ledger.watch("metrics", Unit::Bytes, cap, move || registry.bytes());
        for scope in Scope::ALL {
            ledger.list(scope.name(), Unit::Bytes, u64::MAX, Place::Heap, || scope.bytes());
        }
        ledger.watch("allocator_caches", Unit::Bytes, u64::MAX, memory::cached);
        ledger.watch_outside("c_libraries", u64::MAX, memory::c_libraries);
        ledger
    }

    /// Opens the account `name`, whose owner never holds more than `cap`.
    pub fn open(&self, name: &'static str, unit: Unit, cap: u64) -> Account {
        let each = if unit == Unit::Bytes { 1 } else { 0 };
        self.open_each(name, unit, cap, each)
    }

    /// Opens the account `name` of at most `cap` entries that hold `each` bytes of the heap.
    pub fn open_entries(&self, name: &'static str, cap: u64, each: usize) -> Account {
        self.open_each(name, Unit::Entries, cap, signed(each as u64))
    }

    fn open_each(&self, name: &'static str, unit: Unit, cap: u64, each: i64) -> Account {
        let mut entries = self.entries.lock();
        let same = entries.iter().find_map(|entry| match entry {
            Entry::Account(account) if account.name == name => Some(account.clone()),
            _ => None,
        });
        if let Some(account) = same {
            return account;
        }
        let current = unit.metric().gauge_in(&self.registry, &[name]);
        let drops = catalogue::LEDGER_DROPS.counter_in(&self.registry, &[name]);
        let high = Arc::new(High::new(self.registry.shards(), cap));
        let account = Account { name, unit, each, cap, current, drops, high };
        entries.push(Entry::Account(account.clone()));
        account
    }

    /// Lists something that keeps count of itself and never holds more than `cap`.
    pub fn watch(
        &self,
        name: &'static str,
        unit: Unit,
        cap: u64,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.list(name, unit, cap, Place::Heap, move || signed(read()));
    }

    /// Lists bytes that the allocator knows nothing of.
    pub fn watch_outside(
        &self,
        name: &'static str,
        cap: u64,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.list(name, Unit::Bytes, cap, Place::Outside, move || signed(read()));
    }

    fn list(
        &self,
        name: &'static str,
        unit: Unit,
        cap: u64,
        place: Place,
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) {
        let read: Read = Arc::new(read);
        let shown = read.clone();
        unit.metric().gauge_read_in(&self.registry, &[name], move || shown() as f64);
        let high = AtomicI64::new(0);
        self.entries.lock().push(Entry::Watched { name, unit, cap, read, high, place });
    }

    /// Workers that book here: what each may hold, they may hold together so many times.
    pub fn workers(&self) -> usize {
        self.registry.shards() - 1
    }

    /// Reads every account and moves the high-water marks.
    pub fn read(&self) -> Vec<Line> {
        self.entries.lock().iter().map(Entry::line).collect()
    }
}

// === impl Account ===

impl Account {
    pub fn take(&self, n: usize) {
        self.current.add(n as i64);
        scope::moved(n as i64 * self.each);
        if self.high.is_due(n as u64) {
            self.look();
        }
    }

    pub fn give_back(&self, n: usize) {
        self.current.add(-(n as i64));
        scope::moved(-(n as i64) * self.each);
    }

    /// Something was turned away because the owner is at its cap.
    pub fn drop_one(&self) {
        self.drops.increment();
    }

    pub fn current(&self) -> i64 {
        self.current.value()
    }

    #[cold]
    fn look(&self) -> (i64, i64) {
        let current = self.current.value();
        (current, self.high.mark.fetch_max(current, Relaxed).max(current))
    }

    fn line(&self) -> Line {
        let (current, high) = self.look();
        let (name, unit, cap, drops) = (self.name, self.unit, self.cap, self.drops.value());
        let bytes = current * self.each;
        Line { name, unit, current, bytes, high, cap, drops, place: Place::Heap }
    }
}

// === impl High ===

impl High {
    fn new(shards: usize, cap: u64) -> Self {
        let taken = (0..shards).map(|_| CachePadded::default()).collect();
        Self { mark: AtomicI64::new(0), step: (cap / STEPS).max(1), taken }
    }

    /// Whether this shard has taken enough to look. Threads that share a shard may overlook each
    /// other, which makes the mark less sharp and nothing worse.
    fn is_due(&self, n: u64) -> bool {
        let taken = &self.taken[shard::current(self.taken.len()).index()];
        let sum = taken.load(Relaxed).saturating_add(n);
        let due = sum >= self.step;
        taken.store(if due { 0 } else { sum }, Relaxed);
        due
    }
}

// === impl Entry, Unit ===

impl Entry {
    fn line(&self) -> Line {
        match self {
            Self::Account(account) => account.line(),
            Self::Watched { name, unit, cap, read, high, place } => {
                let current = read();
                let high = high.fetch_max(current, Relaxed).max(current);
                let bytes = if *unit == Unit::Bytes { current } else { 0 };
                Line { name, unit: *unit, current, bytes, high, cap: *cap, drops: 0, place: *place }
            }
        }
    }
}

impl Unit {
    fn metric(self) -> &'static crate::metrics::Metric {
        match self {
            Self::Bytes => &catalogue::LEDGER_BYTES,
            Self::Entries => &catalogue::LEDGER_ENTRIES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ledger: &Ledger, name: &str) -> Line {
        ledger.read().into_iter().find(|line| line.name == name).unwrap()
    }

    #[test]
    fn an_account_remembers_its_highest_value() {
        let ledger = Ledger::new(Registry::new(1, 10));
        let account = ledger.open("pool", Unit::Bytes, 100);
        account.take(70);
        account.give_back(60);
        account.drop_one();
        let line = line(&ledger, "pool");
        assert_eq!((line.current, line.high, line.cap, line.drops), (10, 70, 100, 1));
    }

    #[test]
    fn a_peak_that_nobody_read_is_missed_by_a_step_at_most() {
        let ledger = Ledger::new(Registry::new(2, 10));
        let account = ledger.open("pool", Unit::Bytes, 6_400);
        let peak: i64 = std::thread::scope(|scope| {
            let worker = |index| {
                let account = account.clone();
                move || {
                    shard::claim(index);
                    (0..700).for_each(|_| account.take(3));
                    700 * 3
                }
            };
            [0, 1].map(|index| scope.spawn(worker(index))).map(|t| t.join().unwrap()).iter().sum()
        });
        account.give_back(usize::try_from(peak).unwrap());
        let line = line(&ledger, "pool");
        assert_eq!(line.current, 0);
        assert!((peak - 2 * 102..=peak).contains(&line.high), "{} of {peak}", line.high);
    }

    #[test]
    fn the_registry_lists_itself_and_what_is_watched() {
        let registry = Registry::new(1, 10);
        let ledger = Ledger::of_process(registry.clone());
        let held = Arc::new(AtomicU64::new(7));
        let read = held.clone();
        ledger.watch("ring", Unit::Entries, 9, move || read.load(Relaxed));
        assert_eq!(line(&ledger, "ring").current, 7);
        held.store(3, Relaxed);
        let ring = line(&ledger, "ring");
        assert_eq!((ring.current, ring.high, ring.cap), (3, 7, 9));
        assert!(registry.render().contains("ferrule_ledger_entries{owner=\"ring\"} 3\n"));

        let before = line(&ledger, "metrics").current;
        let counter = registry.counter("ferrule_things_total", "", &[("app", "a")]);
        let held = line(&ledger, "metrics");
        assert!(held.current > before && held.cap > held.current as u64);
        drop(counter);
        registry.forget("app", "a");
        assert_eq!(line(&ledger, "metrics").current, before);
    }
}
