//! The last records that were kept, for `ferrule trace show`.

use std::collections::VecDeque;
use std::sync::Arc;

use super::source::Kept;
use crate::ledger::Account;
use crate::record::model::TraceId;

/// Bounded in bytes; forgets its oldest.
pub(super) struct Ring {
    records: VecDeque<Arc<Kept>>,
    bytes: usize,
    bytes_max: usize,
    account: Account,
}

const SLOT: usize = size_of::<Arc<Kept>>();

// === impl Ring ===

impl Ring {
    pub(super) fn new(bytes_max: usize, account: Account) -> Self {
        Self { records: VecDeque::new(), bytes: 0, bytes_max, account }
    }

    pub(super) fn push(&mut self, record: &Arc<Kept>) {
        let bytes = record.bytes + SLOT;
        if bytes > self.bytes_max {
            self.account.drop_one();
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= oldest.bytes + SLOT;
            self.account.give_back(SLOT);
            oldest.leave_ring(&self.account);
        }
        self.bytes += bytes;
        self.account.take(SLOT);
        record.enter_ring(&self.account);
        self.records.push_back(record.clone());
    }

    /// Everything there is of a trace, oldest first.
    pub(super) fn find(&self, trace: TraceId) -> Vec<Arc<Kept>> {
        self.records.iter().filter(|kept| kept.record.wide().trace == trace).cloned().collect()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for record in self.records.drain(..) {
            self.account.give_back(SLOT);
            record.leave_ring(&self.account);
        }
    }
}
