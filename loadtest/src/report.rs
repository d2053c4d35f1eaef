//! Samples, and the table of their medians and ratios.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::load::{Load, Scenario};
use crate::peer::Peer;

/// One measurement of one peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    scenario: Scenario,
    peer: String,
    /// CPU microseconds of the proxy per request, or KiB per idle connection.
    cost: f64,
    measure: Measure,
    requests_per_second: Option<f64>,
    p99_milliseconds: Option<f64>,
    /// Share of one CPU that the proxy used; below about 0.95 the load was the limit.
    utilisation: Option<f64>,
    /// CPUs that processes outside the run used meanwhile.
    others: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Measure {
    CpuMicrosecondsPerRequest,
    KibPerIdleConnection,
}

/// All samples of a run.
pub(crate) struct Report {
    peers: Vec<String>,
    samples: Vec<Sample>,
}

// === impl Sample ===

impl Sample {
    pub(crate) fn requests(
        scenario: Scenario,
        peer: &Peer,
        load: &Load,
        cpu: Duration,
        others: f64,
    ) -> Self {
        let seconds = load.succeeded as f64 / load.per_second;
        Self {
            scenario,
            peer: peer.name().to_owned(),
            cost: cpu.as_secs_f64() * 1e6 / load.succeeded as f64,
            measure: Measure::CpuMicrosecondsPerRequest,
            requests_per_second: Some(load.per_second),
            p99_milliseconds: load.p99.map(|seconds| seconds * 1e3),
            utilisation: Some(cpu.as_secs_f64() / seconds),
            others: Some(others),
        }
    }

    pub(crate) fn memory(
        scenario: Scenario,
        peer: &Peer,
        before: u64,
        after: u64,
        count: usize,
    ) -> Self {
        Self {
            scenario,
            peer: peer.name().to_owned(),
            cost: (after as f64 - before as f64) / count as f64,
            measure: Measure::KibPerIdleConnection,
            requests_per_second: None,
            p99_milliseconds: None,
            utilisation: None,
            others: None,
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scenario, peer, cost, measure, requests_per_second, utilisation, others, ..
        } = self;
        write!(f, "{:<12} {peer:<8} ", scenario.name())?;
        match measure {
            Measure::CpuMicrosecondsPerRequest => write!(
                f,
                "{cost:>6.1} µs/request  {:>7.0} requests/s  CPU {:.2}  others {:.2}",
                requests_per_second.unwrap_or_default(),
                utilisation.unwrap_or_default(),
                others.unwrap_or_default()
            ),
            Measure::KibPerIdleConnection => write!(f, "{cost:>6.1} KiB/idle connection"),
        }
    }
}

// === impl Report ===

impl Report {
    pub(crate) fn new(peers: Vec<String>) -> Self {
        Self { peers, samples: Vec::new() }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Every sample as JSON.
    pub(crate) fn samples(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.samples)? + "\n")
    }

    /// The medians as a Markdown table.
    pub(crate) fn table(&self) -> String {
        let others = median(self.samples.iter().filter_map(|sample| sample.others));
        let mut text = format!(
            "Peers: {}.\nOther processes used {others:.2} CPUs (median).\n\n",
            self.peers.join(", ")
        );
        let baseline = self.baseline();
        let columns = [
            "scenario",
            "proxy",
            "CPU µs/request (min–max)",
            "requests/s",
            "p99 ms",
            "CPU used",
            "KiB/idle connection",
            &format!("CPU × {baseline}"),
            &format!("p99 × {baseline}"),
            &format!("KiB × {baseline}"),
        ];
        text.push_str(&format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len())));
        for scenario in [Scenario::H1, Scenario::H1tls, Scenario::H2] {
            for peer in &self.peers {
                let peer = peer.split(' ').next().unwrap_or_default();
                self.row(&mut text, scenario, peer);
            }
        }
        text.push_str("\nDifferences below 10 % are not resolved by five samples; compare only inside one run.\n");
        text
    }

    fn row(&self, text: &mut String, scenario: Scenario, peer: &str) {
        let of = |peer: &str, measure: Measure| -> Vec<&Sample> {
            let matching = self.samples.iter().filter(|sample| {
                (sample.scenario, sample.measure) == (scenario, measure) && sample.peer == peer
            });
            matching.collect()
        };
        let cost = |samples: &[&Sample]| median(samples.iter().map(|sample| sample.cost));
        let cpu = of(peer, Measure::CpuMicrosecondsPerRequest);
        let memory = of(peer, Measure::KibPerIdleConnection);
        if cpu.is_empty() && memory.is_empty() {
            return;
        }
        let least = cpu.iter().map(|sample| sample.cost).fold(f64::INFINITY, f64::min);
        let most = cpu.iter().map(|sample| sample.cost).fold(0.0, f64::max);
        let rate = median(cpu.iter().filter_map(|sample| sample.requests_per_second));
        let used = median(cpu.iter().filter_map(|sample| sample.utilisation));
        let p99 = median(cpu.iter().filter_map(|sample| sample.p99_milliseconds));
        let base_cpu = of(self.baseline(), Measure::CpuMicrosecondsPerRequest);
        let base_memory = of(self.baseline(), Measure::KibPerIdleConnection);
        let cells = [
            scenario.name().to_owned(),
            peer.to_owned(),
            format!("{} ({least:.1}–{most:.1})", number(cost(&cpu), 1)),
            number(rate, 0),
            number(p99, 2),
            number(used, 2),
            number(cost(&memory), 1),
            number(paired(&cpu, &base_cpu, |sample| Some(sample.cost)), 3),
            number(paired(&cpu, &base_cpu, |sample| sample.p99_milliseconds), 3),
            number(cost(&memory) / cost(&base_memory), 2),
        ];
        writeln!(text, "| {} |", cells.join(" | ")).expect("a String takes everything");
    }

    /// Whom the others are compared with: nginx, or who comes first.
    fn baseline(&self) -> &str {
        let mut names = self.peers.iter().filter_map(|peer| peer.split(' ').next());
        names.clone().find(|name| *name == "nginx").or_else(|| names.next()).unwrap_or_default()
    }
}

/// The median of the ratios of samples that were taken one after the other, so that what changes
/// slowly on the machine is in both.
fn paired(samples: &[&Sample], baseline: &[&Sample], of: impl Fn(&Sample) -> Option<f64>) -> f64 {
    median(samples.iter().zip(baseline).filter_map(|(one, base)| Some(of(one)? / of(base)?)))
}

fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

/// Not a number when there is nothing.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => values[middle],
        (_, middle) => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }
}
