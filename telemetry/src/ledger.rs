//! The list of everything that may hold memory: name, current, high-water, cap, drops.
//!
//! An owner opens an [`Account`] once and books what it takes and gives back; the cap it names is
//! the one it enforces itself. Booking is a sharded add, so it is cheap enough for buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::metrics::{Counter, Gauge, Registry};

/// Every account of the process.
#[derive(Clone)]
pub struct Ledger {
    registry: Registry,
    accounts: Arc<Mutex<Vec<Account>>>,
}

/// What one owner holds. Cloning shares it.
#[derive(Clone)]
pub struct Account {
    name: &'static str,
    unit: Unit,
    cap: u64,
    current: Gauge,
    drops: Counter,
    high: Arc<AtomicI64>,
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
    /// Highest value any reading has seen.
    pub high: i64,
    pub cap: u64,
    pub drops: u64,
}

// === impl Ledger ===

impl Ledger {
    pub fn new(registry: Registry) -> Self {
        Self { registry, accounts: Arc::default() }
    }

    /// Opens the account `name`, whose owner never holds more than `cap`.
    pub fn open(&self, name: &'static str, unit: Unit, cap: u64) -> Account {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.iter().find(|account| account.name == name) {
            return account.clone();
        }
        let labels = [("owner", name)];
        let current = match unit {
            Unit::Bytes => {
                self.registry.gauge("ferrule_ledger_bytes", "Bytes held, by owner.", &labels)
            }
            Unit::Entries => {
                self.registry.gauge("ferrule_ledger_entries", "Entries held, by owner.", &labels)
            }
        };
        let drops = self.registry.counter(
            "ferrule_ledger_drops_total",
            "What an owner turned away at its cap.",
            &labels,
        );
        let account = Account { name, unit, cap, current, drops, high: Arc::default() };
        accounts.push(account.clone());
        account
    }

    /// Reads every account and moves the high-water marks.
    pub fn read(&self) -> Vec<Line> {
        self.accounts.lock().iter().map(Account::line).collect()
    }
}

// === impl Account ===

impl Account {
    pub fn take(&self, n: usize) {
        self.current.add(n as i64);
    }

    pub fn give_back(&self, n: usize) {
        self.current.add(-(n as i64));
    }

    /// Something was turned away because the owner is at its cap.
    pub fn drop_one(&self) {
        self.drops.increment();
    }

    pub fn current(&self) -> i64 {
        self.current.value()
    }

    fn line(&self) -> Line {
        let current = self.current.value();
        let high = self.high.fetch_max(current, Relaxed).max(current);
        let (name, unit, cap, drops) = (self.name, self.unit, self.cap, self.drops.value());
        Line { name, unit, current, high, cap, drops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_remembers_its_highest_reading() {
        let ledger = Ledger::new(Registry::new(1, 10));
        let account = ledger.open("pool", Unit::Bytes, 100);
        account.take(70);
        ledger.read();
        account.give_back(60);
        account.drop_one();
        let line = ledger.read().remove(0);
        assert_eq!((line.current, line.high, line.cap, line.drops), (10, 70, 100, 1));
    }
}
