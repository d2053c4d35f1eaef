//! What telemetry costs the requests: the same node with a collector and without one, and with each
//! kind of collector that does not do its work.

use anyhow::{Context as _, Result};
use clap::Args;

use super::scenario::Scenario;
use super::table::{self, Sample, median};
use super::{Peers, Scene};
use crate::options::Common;
use crate::suite::{Part, Suite, Table};
use crate::verdict::Check;

#[derive(Debug, Clone, Args)]
pub(crate) struct Telemetry {
    /// Seconds of load per sample.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Samples of each; the verdicts are of medians.
    #[arg(long, default_value_t = 15)]
    repetitions: usize,
}

const ABOUT: &str = "One node has no collector, the others export as by default; they take turns like \
    peers. Ratios are of samples that were taken one after the other, and their median is the verdict.";

/// CPU of a request with telemetry, to one without.
const CPU: f64 = 1.02;

/// p99 of 4,000 requests per second: while a collector takes everything, and while it does not.
const P99: f64 = 1.03;
const P99_HOSTILE: f64 = 1.05;

const WITHOUT: &str = "ferrule";
const WITH: &str = "observed";
const HOSTILE: [&str; 5] = ["refused", "hanging", "busy", "closing", "trickling"];

type Cost = fn(&Sample) -> Option<f64>;

impl Default for Telemetry {
    fn default() -> Self {
        Self { seconds: 2, repetitions: 15 }
    }
}

impl Telemetry {
    pub(crate) fn run(&self, common: &Common) -> Result<Suite> {
        let mut suite = Suite::new("telemetry", ABOUT);
        let cpu: Cost = |sample| Some(sample.cpu());
        let p99: Cost = |sample| Some(sample.latency?.p99);
        for scenario in [Scenario::H1, Scenario::H1tls, Scenario::H2] {
            suite.part(format!("cost of {}", scenario.name()), scenario.about(), |part| {
                self.compare(common, scenario, &[(WITH, CPU)], ("CPU per request", cpu), part)
            });
        }
        let hostile = HOSTILE.map(|name| (name, P99_HOSTILE));
        let all = [&[(WITH, P99)], &hostile[..]].concat();
        suite.part("latency beside each collector", Scenario::Latency.about(), |part| {
            self.compare(common, Scenario::Latency, &all, ("p99", p99), part)
        });
        Ok(suite)
    }

    fn compare(
        &self,
        common: &Common,
        scenario: Scenario,
        with: &[(&str, f64)],
        (what, cost): (&str, Cost),
        part: &mut Part,
    ) -> Result<()> {
        let names = [WITHOUT].into_iter().chain(with.iter().map(|(name, _)| *name));
        let peers = Peers {
            seconds: self.seconds,
            repetitions: self.repetitions,
            idle: 0,
            peers: names.map(str::to_owned).collect(),
            ..Peers::default()
        };
        let scene = Scene::start(&peers, &common.ferrule)?;
        let samples = peers.samples(scenario, &scene.peers()?)?;
        let of = |name: &str| -> Result<Vec<f64>> {
            let own = samples.iter().filter(|sample| sample.peer == name).map(cost);
            own.collect::<Option<_>>().with_context(|| format!("{name} has no {what}"))
        };
        let without = of(WITHOUT)?;
        let mut table = Table::new(what, &["node", "median", "× without a collector (spread)"]);
        table.row([
            WITHOUT.to_owned(),
            format!("{:.3}", median(without.iter().copied())),
            "–".into(),
        ]);
        for (name, bar) in with {
            let own = of(name)?;
            let ratios: Vec<f64> = own.iter().zip(&without).map(|(one, base)| one / base).collect();
            let shown = table::spread(&ratios);
            let holds = median(ratios.iter().copied()) <= *bar;
            let name = (*name).to_owned();
            part.check(
                Check::that(format!("{what}, {name}"), format!("≤ {bar}"), &shown, holds).timed(),
            );
            table.row([name, format!("{:.3}", median(own.iter().copied())), shown]);
        }
        part.tables.push(table);
        let others = median(samples.iter().map(|sample| sample.others));
        part.check(Check::told("CPUs that other processes used", format!("{others:.2}")));
        Ok(())
    }
}
