//! How much memory telemetry may hold in all, and who gets which part of it.
//!
//! One place decides, so that the parts cannot add up to more than an operator was told. Each owner
//! enforces its own share and shows it as its cap in the [`ledger`](crate::ledger).

/// Telemetry's memory, divided. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// The sum of all others.
    pub total: u64,
    /// Buffers of requests in flight, over all workers.
    pub records: u64,
    /// What waits to be exported, retries included.
    pub export_queue: u64,
    /// What was kept to be looked at on the node: finished records and log lines.
    pub rings: u64,
    /// Lines of the access log that wait to be written.
    pub access_log: u64,
}

const MIB: u64 = 1024 * 1024;

/// Five in a hundred of the process's memory, but enough to be of use and not more than helps.
const PERCENT: u64 = 5;
const TOTAL_MIN: u64 = 16 * MIB;
const TOTAL_MAX: u64 = 128 * MIB;

/// Some 600 lines. A log that is written slower than that is not helped by more.
const ACCESS_LOG: u64 = MIB / 4;

// === impl Shares ===

impl Shares {
    /// The shares of a process that may hold `limit` bytes.
    pub const fn of(limit: u64) -> Self {
        let wanted = limit / 100 * PERCENT;
        let total = if wanted < TOTAL_MIN {
            TOTAL_MIN
        } else if wanted > TOTAL_MAX {
            TOTAL_MAX
        } else {
            wanted
        };
        let rest = total - ACCESS_LOG;
        let records = rest / 2;
        // Less than the records: one batch is on its way while the next collects, and a collector
        // that stays away for long is not waited for.
        let export_queue = rest / 8 * 3;
        let rings = rest - records - export_queue;
        Self { total, records, export_queue, rings, access_log: ACCESS_LOG }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_total_is_five_percent_within_bounds() {
        for (limit, total) in [
            (0, 16 * MIB),
            (320 * MIB, 16 * MIB),
            (1024 * MIB, 1024 * MIB / 100 * 5),
            (1 << 40, 128 * MIB),
            (u64::MAX, 128 * MIB),
        ] {
            assert_eq!(Shares::of(limit).total, total, "{limit}");
        }
    }

    proptest! {
        #[test]
        fn the_shares_are_the_total(limit: u64) {
            let Shares { total, records, export_queue, rings, access_log } = Shares::of(limit);
            prop_assert_eq!(records + export_queue + rings + access_log, total);
            prop_assert!(records >= export_queue && export_queue >= rings && rings >= access_log);
        }
    }
}
