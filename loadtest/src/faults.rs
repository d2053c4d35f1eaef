//! What clients see while something breaks, and whether it is over when it is mended.

pub(crate) mod instance;
mod instances;
mod nodes;
mod relay;
mod system;

use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::beside::{Beside, Seen};
use crate::options::{Common, Selection};
use crate::suite::{Part, Suite, Table};
use crate::verdict::Check;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Faults {
    #[command(flatten)]
    selection: Selection,
}

/// One fault: what is done, and what may come of it.
struct Fault {
    name: &'static str,
    about: &'static str,
    run: fn(&Common, &mut Part) -> Result<()>,
    in_short: bool,
}

const ABOUT: &str = "Clients keep a rate of 200 requests per second while something breaks, is broken \
    for a while, and is mended. What they saw is counted by status and code, in each of three \
    phases: before (the control), during, after. A fault is undone, and that it is undone is \
    checked: the phase after must be without errors.";

/// Requests per second.
const RATE: u32 = 200;

/// What may be seen while it is broken.
struct Bar {
    /// Of all requests.
    errors_share_max: f64,
    /// After so many seconds there are no more of them.
    errors_end: Option<u64>,
    why: &'static str,
}

/// How long each phase lasts.
#[derive(Clone, Copy)]
struct Phases {
    before: Duration,
    during: Duration,
    /// Until clients are asked again.
    recovery: Duration,
    after: Duration,
}

impl Faults {
    pub(crate) fn run(&self, common: &Common) -> Result<Suite> {
        let mut suite = Suite::new("faults", ABOUT);
        for fault in instances::ALL.iter().chain(nodes::ALL).chain(system::ALL) {
            if self.selection.has(fault.name) && (!common.short || fault.in_short) {
                suite.part(fault.name, fault.about, |part| (fault.run)(common, part));
            }
        }
        Ok(suite)
    }
}

impl Phases {
    fn of(common: &Common) -> Self {
        let [before, during, recovery, after] =
            if common.short { [1, 4, 6, 2] } else { [3, 12, 10, 5] }.map(Duration::from_secs);
        Self { before, during, recovery, after }
    }

    /// Runs all three, and says what was seen in the second.
    fn run(
        self,
        part: &mut Part,
        bar: &Bar,
        beside: &dyn Fn() -> Result<Beside>,
        breaks: impl FnOnce() -> Result<()>,
        mends: impl FnOnce() -> Result<()>,
    ) -> Result<Seen> {
        let before = beside()?.for_a_while(self.before);
        let clients = beside()?;
        breaks()?;
        let during = clients.for_a_while(self.during);
        mends()?;
        thread::sleep(self.recovery);
        let after = beside()?.for_a_while(self.after);
        show(part, [("before", &before), ("during", &during), ("after", &after)]);
        let fine = |seen: &Seen| seen.errors() == 0 && seen.total() > 0;
        let of = |seen: &Seen| format!("{} of {}", seen.errors(), seen.total());
        part.check(Check::that("control: errors before", "0", of(&before), fine(&before)));
        let share = during.errors() as f64 / during.total().max(1) as f64;
        let most = bar.errors_share_max;
        part.check(
            Check::that(
                "errors during",
                format!("≤ {} %", 100.0 * most),
                format!("{} ({:.2} %): {}", of(&during), 100.0 * share, during.said()),
                share <= most && during.total() > 0,
            )
            .because(bar.why),
        );
        if let Some(end) = bar.errors_end {
            let last = during.last_error().unwrap_or_default();
            let measured =
                if during.errors() == 0 { "none".to_owned() } else { format!("{last} s") };
            part.check(Check::that(
                "the last error",
                format!("≤ {end} s after"),
                measured,
                last <= end,
            ));
        }
        part.check(Check::that(
            "errors after",
            "0",
            format!("{}: {}", of(&after), after.said()),
            fine(&after),
        ));
        part.plots.push(during.plot("Latency while it was broken"));
        Ok(during)
    }
}

fn show(part: &mut Part, phases: [(&str, &Seen); 3]) {
    let columns = ["phase", "requests", "what clients saw", "p50 ms", "p99 ms", "max ms"];
    let mut table = Table::new("What clients saw", &columns);
    for (name, seen) in phases {
        let latency = seen.latency();
        let millis = |value: f64| format!("{value:.1}");
        table.row([
            name.to_owned(),
            seen.total().to_string(),
            seen.said(),
            millis(latency.p50),
            millis(latency.p99),
            millis(latency.max),
        ]);
    }
    part.tables.push(table);
}
