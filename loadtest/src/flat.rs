//! Whether a node's memory grows with the work it does: bytes against requests, in windows between
//! which nothing is in flight.
//!
//! The method and what its verdict means: `README.md` beside this crate.

mod drivers;
mod measure;
mod profile;
mod control;

#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};
use clap::Args;

use crate::options::{Common, Selection};
use crate::suite::{Part, Suite};
pub(crate) use drivers::{
    Bodies, Errors, Grpc, Records, Resets, SlowReader, Target, Tcp, Team, WebSockets, Worker, host,
    random, timed,
};
pub(crate) use measure::{Load, Outcome, Plan, Window, measure};
use profile::Profile;

/// Memory against requests: flat, or growing.
#[derive(Debug, Clone, Args)]
pub(crate) struct Flat {
    #[command(flatten)]
    pub selection: Selection,
    /// Requests of a profile, in thousands, instead of its own number.
    #[arg(long)]
    pub thousands: Option<u64>,
    /// How often memory is read; the first fifth is warm-up.
    #[arg(long, default_value_t = 50)]
    pub windows: u32,
    /// Bytes per request that it may grow by, instead of the profile's own number.
    #[arg(long)]
    pub at_most: Option<f64>,
}

impl Default for Flat {
    fn default() -> Self {
        Self { selection: Selection::default(), thousands: None, windows: 50, at_most: None }
    }
}

const ABOUT: &str = "Each profile sends its kind of work in windows and reads memory between them. \
    Its slope over the last four fifths must be at most 1 B per request (256 B for large bodies, of \
    which nothing smaller than a buffer can stay; 16 B in the short form, which resolves no less), \
    with 99 % confidence, for \
    what the allocator has handed out and for what the ledger says; resident memory must be back \
    within 10 % + 2 MiB of the warm idle level 60 s after; nothing may be left in flight. The \
    controls are binaries that leak on purpose, and must fail the same assertion.";

impl Flat {
    pub(crate) fn run(&self, common: &Common) -> Result<Suite> {
        ensure!(self.windows >= 10, "too few windows");
        let mut suite = Suite::new("flat", ABOUT);
        for profile in profile::ALL {
            if self.selection.has(profile.name) && (!common.short || profile.in_short) {
                suite.part(profile.name, profile.about, |part| self.profile(common, profile, part));
            }
        }
        for control in control::ALL {
            let name = format!("control-{}", control.fault);
            if self.selection.has(&name) && (!common.short || control.in_short) {
                suite.part(name, control::ABOUT, |part| control.run(self, common, part));
            }
        }
        Ok(suite)
    }

    fn profile(&self, common: &Common, profile: &Profile, part: &mut Part) -> Result<()> {
        if let Some(why) = profile.lacks(&common.ferrule) {
            part.check(crate::verdict::Check::skipped("memory is flat", why));
            return Ok(());
        }
        let plan = profile.plan(self, common.short);
        let outcome = profile.measure(&common.ferrule, &plan)?;
        outcome.show(part, &plan);
        Ok(())
    }
}
