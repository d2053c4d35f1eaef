//! The kernel's counters as metrics, and how full its maps are as lines of the ledger.
//!
//! What the kernel counts outlives processes, so the first reading may be of what happened while
//! none ran. Counters of ours rise by the difference between readings.

use std::collections::HashMap;

use crate::metrics::catalogue;
use ebpf_filter::{Counters, Filter, Verdict};
use telemetry::ledger::{Account, Ledger, Unit};
use telemetry::metrics::{Counter, Gauge, Registry};

/// The series of the filter, and what the kernel said last.
pub(crate) struct Export {
    registry: Registry,
    ledger: Ledger,
    verdicts: HashMap<Verdict, Rising>,
    /// By app; at most as many as the kernel counts.
    apps: HashMap<String, AppSeries>,
    maps: HashMap<&'static str, Entries>,
    book: Account,
    behind: Gauge,
}

/// A counter of the kernel's and its series.
struct Rising {
    last: u64,
    series: Counter,
}

struct AppSeries {
    allowed: Rising,
    dropped: Rising,
}

/// The entries of a map: in a gauge, and in the ledger beside its capacity.
struct Entries {
    gauge: Gauge,
    account: Account,
}

// === impl Export ===

impl Export {
    /// `capacity` is how many addresses and ports there may be.
    pub(crate) fn new(registry: &Registry, ledger: &Ledger, filter: &Filter) -> Self {
        let verdict = |verdict: Verdict| {
            let series = catalogue::FILTER_PACKETS.counter_in(registry, &[verdict.as_str()]);
            (verdict, Rising { last: 0, series })
        };
        let behind = catalogue::FILTER_BEHIND.gauge_in(registry, &[]);
        catalogue::FILTER_MODE.gauge_read_in(registry, &[filter.mode().as_str()], || 1.0);
        // What the maps can hold bounds what is known of them: a list entry of about 100 bytes each.
        let entries: usize = filter.occupancy().iter().map(|(_, _, capacity)| capacity).sum();
        let book = ledger.open("filter_policies", Unit::Bytes, entries as u64 * 100);
        Self {
            registry: registry.clone(),
            ledger: ledger.clone(),
            verdicts: Verdict::ALL.into_iter().map(verdict).collect(),
            apps: HashMap::new(),
            maps: HashMap::new(),
            book,
            behind,
        }
    }

    pub(crate) fn counters(&mut self, counters: &Counters, shared: &str) {
        for (verdict, packets) in &counters.verdicts {
            if let Some(series) = self.verdicts.get_mut(verdict) {
                series.read(*packets);
            }
        }
        for (app, counted) in &counters.apps {
            let app = if app.is_empty() { shared } else { app };
            if !self.apps.contains_key(app) {
                // An app that is never asked for costs no series.
                if counted.allowed == 0 && counted.dropped == 0 {
                    continue;
                }
                self.apps.insert(app.to_owned(), AppSeries::new(&self.registry, app));
            }
            let series = self.apps.get_mut(app).expect("it has just been looked for");
            series.allowed.read(counted.allowed);
            series.dropped.read(counted.dropped);
        }
    }

    /// `filter` is what the maps hold now; `behind` what they should hold besides.
    pub(crate) fn occupancy(&mut self, filter: &Filter, behind: usize) {
        for (map, entries, capacity) in filter.occupancy() {
            let held = self.maps.entry(map).or_insert_with(|| {
                let gauge = catalogue::FILTER_ENTRIES.gauge_in(&self.registry, &[map]);
                let account = self.ledger.open(owner(map), Unit::Entries, capacity as u64);
                Entries { gauge, account }
            });
            held.gauge.add(entries as i64 - held.gauge.value());
            set(&held.account, entries);
        }
        set(&self.book, filter.bytes());
        self.behind.add(behind as i64 - self.behind.value());
    }

    /// The app is gone, and with it its series.
    pub(crate) fn forget(&mut self, app: &str) {
        if self.apps.remove(app).is_some() {
            self.registry.forget("app", app);
        }
    }
}

fn set(account: &Account, now: usize) {
    let before = usize::try_from(account.current()).unwrap_or(0);
    account.take(now.saturating_sub(before));
    account.give_back(before.saturating_sub(now));
}

/// What a map is called in the ledger.
fn owner(map: &str) -> &'static str {
    match map {
        "EXACT_V4" => "filter_exact_v4",
        "EXACT_V6" => "filter_exact_v6",
        "PREFIX_V4" => "filter_prefix_v4",
        "PREFIX_V6" => "filter_prefix_v6",
        "PORTS" => "filter_ports",
        _ => "filter_other",
    }
}

// === impl AppSeries ===

impl AppSeries {
    fn new(registry: &Registry, app: &str) -> Self {
        let rising = |verdict| {
            let series = catalogue::FILTER_APP_PACKETS.counter_in(registry, &[app, verdict]);
            Rising { last: 0, series }
        };
        Self { allowed: rising("allowed"), dropped: rising("dropped") }
    }
}

// === impl Rising ===

impl Rising {
    /// A reading below the last one is of another counter: it began at zero.
    fn read(&mut self, now: u64) {
        self.series.add(now.checked_sub(self.last).unwrap_or(now));
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_rises_by_what_is_new_and_begins_again_with_the_kernels() {
        let registry = Registry::new(1, 10);
        let series = registry.counter("ferrule_things_total", "", &[]);
        let mut rising = Rising { last: 0, series: series.clone() };
        for (reading, total) in [(7, 7), (7, 7), (10, 10), (2, 12)] {
            rising.read(reading);
            assert_eq!(series.value(), total);
        }
    }

    #[test]
    fn an_account_is_what_it_was_set_to() {
        let ledger = Ledger::new(Registry::new(1, 10));
        let account = ledger.open("filter_ports", Unit::Entries, 100);
        for now in [5, 9, 3, 0] {
            set(&account, now);
            assert_eq!(account.current(), now as i64);
        }
    }
}
