//! Samples, and what their medians and ratios say.

use std::time::Duration;

use serde::Serialize;

use super::scenario::{Load, Scenario};
use crate::histogram::Quantiles;
use crate::suite::{Part, Plot, Table};
use crate::verdict::Check;

/// One measurement of one peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub scenario: Scenario,
    pub peer: String,
    /// CPU microseconds of the proxy per request, handshake or MiB.
    pub user: f64,
    pub system: f64,
    pub per_second: f64,
    pub latency: Option<Quantiles>,
    /// Share of one CPU that the proxy used; below about 0.95 the load was the limit.
    pub utilisation: f64,
    /// CPUs that processes outside the run used meanwhile.
    pub others: f64,
}

/// KiB per idle connection of one peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Memory {
    pub scenario: Scenario,
    pub peer: String,
    pub kib: f64,
    pub connections: usize,
}

/// What may be, as a ratio to whom.
struct Bar {
    scenario: Scenario,
    ratio: f64,
    to: To,
}

#[derive(Clone, Copy)]
enum To {
    /// The cheaper of nginx and HAProxy.
    Best,
    Nginx,
}

const BARS: [Bar; 8] = [
    Bar { scenario: Scenario::H1, ratio: 1.0, to: To::Best },
    Bar { scenario: Scenario::H1tls, ratio: 0.9, to: To::Best },
    Bar { scenario: Scenario::H2, ratio: 0.95, to: To::Best },
    Bar { scenario: Scenario::Grpc, ratio: 1.0, to: To::Best },
    // Debian's nginx has OpenSSL 3.0.
    Bar { scenario: Scenario::Handshakes, ratio: 0.5, to: To::Nginx },
    Bar { scenario: Scenario::Resumptions, ratio: 0.5, to: To::Nginx },
    Bar { scenario: Scenario::Download, ratio: 0.7, to: To::Nginx },
    Bar { scenario: Scenario::Upload, ratio: 0.7, to: To::Nginx },
];

const MEMORY_BARS: [(Scenario, f64); 3] =
    [(Scenario::H1, 1.0), (Scenario::H1tls, 8.5), (Scenario::H2, 28.0)];

// === impl Sample ===

impl Sample {
    pub(crate) fn of(
        scenario: Scenario,
        peer: &str,
        load: &Load,
        (user, system): (Duration, Duration),
        others: f64,
    ) -> Self {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / load.units;
        Self {
            scenario,
            peer: peer.to_owned(),
            user: each(user),
            system: each(system),
            per_second: load.units / load.seconds,
            latency: load.latency,
            utilisation: (user + system).as_secs_f64() / load.seconds,
            others,
        }
    }

    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

/// One scenario's part of the report.
pub(crate) fn show(
    part: &mut Part,
    scenario: Scenario,
    peers: &[String],
    samples: &[Sample],
    syscalls: &[(String, f64)],
) {
    let unit = scenario.unit();
    let columns = [
        "proxy".to_owned(),
        format!("CPU µs/{unit} (min–max)"),
        "user / system".to_owned(),
        format!("{unit}s/s"),
        format!("{unit}s per CPU-second"),
        "p50 / p99 / p99.9 ms".to_owned(),
        "CPU used".to_owned(),
        "× nginx (spread)".to_owned(),
        "× haproxy (spread)".to_owned(),
        format!("syscalls/{unit}"),
    ];
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new(scenario.name(), &columns);
    let of = |peer: &str| -> Vec<&Sample> {
        samples.iter().filter(|sample| sample.peer == peer).collect()
    };
    for peer in peers {
        let own = of(peer);
        if own.is_empty() {
            continue;
        }
        let cpu = || own.iter().map(|sample| sample.cpu());
        let middle = |value: fn(&Sample) -> f64| median(own.iter().map(|sample| value(sample)));
        let latency = |value: fn(&Quantiles) -> f64| {
            number(median(own.iter().filter_map(|sample| Some(value(&sample.latency?)))), 2)
        };
        let to = |other: &str| spread(&ratios(&own, &of(other)));
        let calls = syscalls.iter().find(|(name, _)| name == peer);
        table.row([
            peer.clone(),
            format!(
                "{} ({:.1}–{:.1})",
                number(median(cpu()), 1),
                cpu().fold(f64::INFINITY, f64::min),
                cpu().fold(0.0, f64::max)
            ),
            format!("{} / {}", number(middle(|s| s.user), 1), number(middle(|s| s.system), 1)),
            number(middle(|s| s.per_second), 0),
            number(1e6 / median(cpu()), 0),
            [latency(|q| q.p50), latency(|q| q.p99), latency(|q| q.p999)].join(" / "),
            number(middle(|s| s.utilisation), 2),
            to("nginx"),
            to("haproxy"),
            calls.map_or_else(|| "–".to_owned(), |(_, calls)| number(*calls, 2)),
        ]);
    }
    part.tables.push(table);
    let line = |peer: &String| {
        let points = of(peer).iter().enumerate().map(|(n, s)| (n as f64, s.cpu())).collect();
        (peer.clone(), points)
    };
    let mut plot = Plot::new(format!("CPU per {unit}, sample by sample"), "repetition", "µs");
    for (peer, points) in peers.iter().map(line) {
        plot = plot.line(peer, points);
    }
    part.plots.push(plot);
    bar(part, scenario, &of);
    let others = median(samples.iter().map(|sample| sample.others));
    part.check(Check::told("CPUs that other processes used", number(others, 2)));
}

fn bar<'s>(part: &mut Part, scenario: Scenario, of: &dyn Fn(&str) -> Vec<&'s Sample>) {
    let Some(bar) = BARS.iter().find(|bar| bar.scenario == scenario) else { return };
    let own = of("ferrule");
    if own.is_empty() {
        return;
    }
    let cost = |peer: &str| median(of(peer).iter().map(|sample| sample.cpu()));
    let other = match bar.to {
        To::Nginx => "nginx",
        To::Best if cost("haproxy") < cost("nginx") || cost("nginx").is_nan() => "haproxy",
        To::Best => "nginx",
    };
    let what = format!("CPU per {} × {other}", scenario.unit());
    let ratios = ratios(&own, &of(other));
    if ratios.is_empty() {
        part.check(Check::skipped(what, format!("{other} took no part")));
        return;
    }
    let middle = median(ratios.iter().copied());
    let best = if matches!(bar.to, To::Best) { "the cheaper of both" } else { "" };
    part.check(
        Check::that(what, format!("≤ {}", bar.ratio), spread(&ratios), middle <= bar.ratio)
            .because(best)
            .timed(),
    );
}

/// KiB per idle connection.
pub(crate) fn show_memory(part: &mut Part, peers: &[String], memory: &[Memory]) {
    let columns = ["connection", "proxy", "KiB", "× nginx", "connections"];
    let mut table = Table::new("Memory per idle connection", &columns);
    for (scenario, bar) in MEMORY_BARS {
        let of = |peer: &str| {
            let mut all = memory.iter();
            all.find(|memory| memory.scenario == scenario && memory.peer == peer)
        };
        for peer in peers {
            let Some(own) = of(peer) else { continue };
            let ratio = of("nginx").map_or(f64::NAN, |nginx| own.kib / nginx.kib);
            table.row([
                scenario.name().to_owned(),
                peer.clone(),
                number(own.kib, 1),
                number(ratio, 2),
                own.connections.to_string(),
            ]);
            if peer == "ferrule" {
                part.check(Check::at_most(scenario.name(), "KiB", bar, own.kib, 1));
            }
        }
    }
    part.tables.push(table);
}

/// Of samples that were taken one after the other, so that what changes slowly on the machine is in
/// both.
fn ratios(samples: &[&Sample], baseline: &[&Sample]) -> Vec<f64> {
    samples.iter().zip(baseline).map(|(one, base)| one.cpu() / base.cpu()).collect()
}

pub(super) fn spread(ratios: &[f64]) -> String {
    if ratios.is_empty() {
        return "–".to_owned();
    }
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2}–{most:.2})", median(ratios.iter().copied()))
}

fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

/// Not a number when there is nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
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

    #[test]
    fn the_cheaper_peer_is_the_one_to_beat() {
        let sample = |peer: &str, cost: f64| Sample {
            scenario: Scenario::H1,
            peer: peer.to_owned(),
            user: cost,
            system: 0.0,
            per_second: 1.0,
            latency: None,
            utilisation: 1.0,
            others: 0.0,
        };
        let all = [sample("ferrule", 12.0), sample("nginx", 20.0), sample("haproxy", 10.0)];
        let mut suite = crate::suite::Suite::new("peers", "");
        suite.part("h1", "", |part| {
            let peers = ["ferrule", "nginx", "haproxy"].map(str::to_owned);
            show(part, Scenario::H1, &peers, &all, &[]);
            Ok(())
        });
        let check = suite.checks().next().unwrap();
        assert_eq!(check.name, "CPU per request × haproxy");
        assert_eq!(check.verdict, crate::verdict::Verdict::Missed);
    }
}
