//! Binaries that leak on purpose: what finds leaks must find these.

use anyhow::Result;

use super::Flat;
use super::measure::{Plan, Verdict};
use super::profile::{Collects, Profile};
use crate::options::Common;
use crate::suite::Part;
use crate::verdict::Check;

/// One fault of one binary.
pub(super) struct Control {
    pub fault: &'static str,
    binary: &'static str,
    variable: &'static str,
    collector: Collects,
    /// Requests on a connection: some faults end with it.
    each: u32,
    pub in_short: bool,
}

pub(super) const ABOUT: &str = "Leaks on purpose, by at least 50 B per request: less than any span, \
    record or line that somebody would forget. The assertion of the profiles must fail.";

/// Bytes per request that each of them leaves behind at least.
const LEAST: f64 = 50.0;

const fn leaky(fault: &'static str, collector: Collects) -> Control {
    let (binary, variable) = ("ferrule-leaky", "FERRULE_LEAK");
    Control { fault, binary, variable, collector, each: 100, in_short: true }
}

const fn seeded(fault: &'static str) -> Control {
    let (binary, variable, collector) = ("ferrule-seeded", "FERRULE_SEED", Collects::Absent);
    Control { fault, binary, variable, collector, each: 100, in_short: false }
}

pub(super) const ALL: &[Control] = &[
    leaky("children", Collects::Everything),
    leaky("queue", Collects::Nothing),
    seeded("vec"),
    seeded("map"),
    seeded("channel"),
    seeded("task"),
    Control { each: u32::MAX, in_short: true, ..seeded("pin") },
    seeded("histogram"),
];

impl Control {
    #[cfg(test)]
    pub(super) fn named(fault: &str) -> Option<&'static Self> {
        ALL.iter().find(|control| control.fault == fault)
    }

    pub(super) fn run(&self, flat: &Flat, common: &Common, part: &mut Part) -> Result<()> {
        let Some(binary) = common.leaky(self.binary) else {
            let place = common.leaky.join(self.binary);
            part.check(Check::skipped("it is caught", format!("{} is not built", place.display())));
            return Ok(());
        };
        let outcome = self.measure(&binary, &Self::plan(flat))?;
        let caught = outcome.verdict == Verdict::Grows && outcome.allocated.low >= LEAST;
        let bar = format!("grows by ≥ {LEAST} B per request");
        part.check(Check::that("it is caught", bar, outcome.allocated, caught));
        let points = |reading: &super::measure::Reading| {
            (reading.requests as f64, reading.allocated as f64 / f64::from(1 << 20))
        };
        let line = outcome.readings.iter().map(points).collect();
        part.plots.push(
            crate::suite::Plot::new("Memory between windows", "requests", "MiB")
                .line("allocated", line),
        );
        Ok(())
    }

    pub(super) fn plan(flat: &Flat) -> Plan {
        // A leak needs no minute to come back from: it does not.
        let recovery = std::time::Duration::ZERO;
        Plan {
            requests: 8_000,
            requests_max: 80_000,
            time: None,
            grows_is_enough: true,
            windows: 40,
            at_most: flat.at_most.unwrap_or(1.0),
            standing: 0,
            recovery,
        }
    }

    pub(super) fn measure(
        &self,
        binary: &std::path::Path,
        plan: &Plan,
    ) -> Result<super::measure::Outcome> {
        // The exporter of `queue` has no other way to learn where to send.
        let place = ("OTEL_EXPORTER_OTLP_ENDPOINT", "{collector}");
        let environment = [(self.variable, self.fault), place];
        let given =
            if self.collector == Collects::Absent { &environment[..1] } else { &environment };
        Profile::records(self.collector).measure_with(binary, plan, given, self.each)
    }
}
