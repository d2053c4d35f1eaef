//! Every suite, one after the other, and one report.

use clap::Args;

use anyhow::{Result, ensure};

use crate::attacks::Attacks;
use crate::faults::Faults;
use crate::flat::Flat;
use crate::options::Common;
use crate::peers::{Peers, Telemetry};
use crate::report::Report;
use crate::soak::Soak;

#[derive(Debug, Clone, Args)]
pub(crate) struct Proof {
    /// Of `flat`, `attacks`, `faults`, `soak`, `telemetry`, `peers`; by default all, in the short form
    /// all but the last two.
    #[arg(long, value_delimiter = ',')]
    suites: Vec<String>,
}

const SUITES: [&str; 6] = ["flat", "attacks", "faults", "soak", "telemetry", "peers"];

/// What compares times, for which a short form has too few.
const TIMED: [&str; 2] = ["telemetry", "peers"];

impl Proof {
    /// The report is written after each suite: what was found out before a fault is not lost.
    pub(crate) fn run(&self, common: &Common, report: &mut Report) -> Result<()> {
        for suite in &self.suites {
            ensure!(SUITES.contains(&suite.as_str()), "no suite is called {suite}");
        }
        for name in SUITES {
            let chosen = if self.suites.is_empty() {
                !(common.short && TIMED.contains(&name))
            } else {
                self.suites.iter().any(|suite| suite == name)
            };
            if !chosen {
                continue;
            }
            report.add(match name {
                "flat" => Flat::default().run(common)?,
                "attacks" => Attacks::default().run(common)?,
                "faults" => Faults::default().run(common)?,
                "soak" => Soak::new().run(common)?,
                "telemetry" => Telemetry::default().run(common)?,
                _ => Peers::default().run(common)?,
            });
            report.write(&common.output)?;
        }
        Ok(())
    }
}
