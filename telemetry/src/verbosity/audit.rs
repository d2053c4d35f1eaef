//! Who asked for verbosity, why, and when: the last 256 changes, each also a line of the log.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ledger::Account;
use crate::lock::Mutex;

/// Changes that are remembered; older ones are in the log only.
pub(super) const ENTRIES_MAX: usize = 256;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    pub what: What,
    /// Absent where a token was signed, for nobody counts those.
    pub rule: Option<u64>,
    /// Who asked; the node itself where time or use ended it.
    pub who: String,
    pub why: String,
}

/// What happened to a rule or a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Added,
    Removed,
    Expired,
    /// Its uses or bytes were spent.
    UsedUp,
    TokenSigned,
}

pub(super) struct Audit {
    entries: Mutex<VecDeque<Entry>>,
    account: Account,
}

// === impl What ===

impl What {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Expired => "expired",
            Self::UsedUp => "used up",
            Self::TokenSigned => "token signed",
        }
    }
}

// === impl Audit ===

impl Audit {
    pub(super) fn new(account: Account) -> Self {
        Self { entries: Mutex::new("audit of verbosity", VecDeque::new()), account }
    }

    pub(super) fn note(&self, what: What, rule: Option<u64>, who: &str, why: &str, now: Duration) {
        let done = what.as_str();
        match rule {
            Some(rule) => tracing::info!(rule, who, why, "verbosity rule {done}"),
            None => tracing::info!(who, why, "verbosity {done}"),
        }
        let at_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let entry = Entry { at_unix_ms, what, rule, who: who.to_owned(), why: why.to_owned() };
        let mut entries = self.entries.lock();
        if entries.len() == ENTRIES_MAX {
            entries.pop_front();
        } else {
            self.account.take(1);
        }
        entries.push_back(entry);
    }

    /// Oldest first.
    pub(super) fn read(&self) -> Vec<Entry> {
        self.entries.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, Unit};
    use crate::metrics::Registry;

    #[test]
    fn the_oldest_entry_makes_room() {
        let ledger = Ledger::new(Registry::new(1, 10));
        let audit = Audit::new(ledger.open("trace_audit", Unit::Entries, ENTRIES_MAX as u64));
        for rule in 0..300 {
            audit.note(What::Added, Some(rule), "uid 0", "a test", Duration::from_millis(rule));
        }
        let entries = audit.read();
        assert_eq!(entries.len(), ENTRIES_MAX);
        assert_eq!((entries[0].rule, entries[255].rule), (Some(44), Some(299)));
        assert_eq!(entries[0].at_unix_ms, 44);
        assert_eq!(ledger.read()[0].current, ENTRIES_MAX as i64);
    }
}
