//! How often each token was used here, so that one that leaks is of use to nobody for long.

use std::collections::HashMap;

use super::Outcome;
use crate::ledger::Account;
use crate::lock::Mutex;

/// Tokens in use at a time. More would be a mistake in somebody's script.
pub(super) const TOKENS_MAX: usize = 4_096;

/// Uses by nonce.
///
/// The lock is taken for tokens that were found genuine, which is at most as often as tokens are
/// verified at all; a request without one never sees it.
pub(super) struct Uses {
    table: Mutex<HashMap<u128, Use, foldhash::fast::RandomState>>,
    account: Account,
}

struct Use {
    /// Seconds since the Unix epoch, after which the token is worth nothing.
    expires: u64,
    used: u32,
}

// === impl Uses ===

impl Uses {
    pub(super) fn new(account: Account) -> Self {
        Self { table: Mutex::new("uses of tokens", HashMap::default()), account }
    }

    /// Counts one of `max` uses of a token, if `affordable` then says that it can be had; what is
    /// refused costs nothing.
    pub(super) fn spend(
        &self,
        nonce: u128,
        expires: u64,
        max: u32,
        now: u64,
        affordable: impl FnOnce() -> bool,
    ) -> Result<(), Outcome> {
        let mut table = self.table.lock();
        let used = table.get(&nonce).map(|entry| entry.used);
        if used.is_some_and(|used| used >= max) {
            return Err(Outcome::UsedUp);
        }
        if used.is_none() && table.len() >= TOKENS_MAX {
            self.forget_expired(&mut table, now);
            if table.len() >= TOKENS_MAX {
                self.account.drop_one();
                return Err(Outcome::TableFull);
            }
        }
        if !affordable() {
            return Err(Outcome::Suppressed);
        }
        let entry = table.entry(nonce).or_insert_with(|| {
            self.account.take(1);
            Use { expires, used: 0 }
        });
        entry.used += 1;
        Ok(())
    }

    /// Forgets tokens that nobody can use any more.
    pub(super) fn sweep(&self, now: u64) {
        self.forget_expired(&mut self.table.lock(), now);
    }

    fn forget_expired(
        &self,
        table: &mut HashMap<u128, Use, foldhash::fast::RandomState>,
        now: u64,
    ) {
        let before = table.len();
        table.retain(|_, entry| entry.expires > now);
        self.account.give_back(before - table.len());
        if table.is_empty() {
            table.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, Unit};
    use crate::metrics::Registry;

    fn uses() -> (Uses, Ledger) {
        let ledger = Ledger::new(Registry::new(1, 10));
        let account = ledger.open("trace_tokens", Unit::Entries, TOKENS_MAX as u64);
        (Uses::new(account), ledger)
    }

    #[test]
    fn a_token_is_used_as_often_as_it_says() {
        let (uses, _) = uses();
        for _ in 0..3 {
            assert_eq!(uses.spend(7, 100, 3, 10, || true), Ok(()));
        }
        assert_eq!(uses.spend(7, 100, 3, 10, || true), Err(Outcome::UsedUp));
        assert_eq!(uses.spend(8, 100, 3, 10, || true), Ok(()), "another token has its own");
    }

    #[test]
    fn what_cannot_be_afforded_is_no_use() {
        let (uses, ledger) = uses();
        for _ in 0..3 {
            assert_eq!(uses.spend(7, 100, 1, 10, || false), Err(Outcome::Suppressed));
        }
        assert_eq!(ledger.read()[0].current, 0);
        assert_eq!(uses.spend(7, 100, 1, 10, || true), Ok(()));
        let never = || unreachable!("a spent token must not cost the node anything");
        assert_eq!(uses.spend(7, 100, 1, 10, never), Err(Outcome::UsedUp));
    }

    #[test]
    fn the_table_is_bounded_and_expiry_makes_room() {
        let (uses, ledger) = uses();
        for nonce in 0..TOKENS_MAX as u128 {
            assert_eq!(uses.spend(nonce, 100, 1, 10, || true), Ok(()));
        }
        let next = TOKENS_MAX as u128;
        assert_eq!(uses.spend(next, 200, 1, 99, || true), Err(Outcome::TableFull));
        let line = ledger.read().remove(0);
        assert_eq!((line.current, line.drops), (TOKENS_MAX as i64, 1));
        assert_eq!(uses.spend(next, 200, 1, 100, || true), Ok(()), "the others have expired");
        assert_eq!(ledger.read()[0].current, 1);
        uses.sweep(200);
        assert_eq!(ledger.read()[0].current, 0);
    }
}
