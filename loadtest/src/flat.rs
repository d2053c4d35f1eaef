//! Whether a node's memory grows with the requests it answers: bytes allocated against requests, in
//! windows between which nothing is in flight, with every part of its telemetry at work.
//!
//! The method and what its verdict means: `README.md` beside this crate.

mod client;
mod node;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tempfile::TempDir;

use crate::servers::{Collector, Origin};
use crate::slope::{Slope, theil_sen};
use client::Client;
use node::{Node, Scraper};

/// Memory against requests: flat, or growing.
#[derive(Debug, Clone, Args)]
pub(crate) struct Flat {
    /// The binary under test.
    #[arg(long, default_value = "target/release/ferrule")]
    ferrule: PathBuf,
    /// Requests, each with a path, host and user agent of its own.
    #[arg(long, default_value_t = 1_000_000)]
    requests: u64,
    /// More of them, up to so many, while the verdict is open.
    #[arg(long, default_value_t = 2_000_000)]
    requests_max: u64,
    /// How often memory is read.
    #[arg(long, default_value_t = 50)]
    windows: u32,
    /// Connections that send one request after the other.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Where the node's telemetry goes.
    #[arg(long, value_enum, default_value_t = Collects::Answering)]
    collector: Collects,
    /// Scrapes per second beside those that read the memory.
    #[arg(long, default_value_t = 0)]
    scrapes: u32,
    /// Which fault a binary that leaks on purpose has.
    #[arg(long, value_enum)]
    leak: Option<Leak>,
    /// Bytes per request that it may grow by.
    #[arg(long, default_value_t = 1.0)]
    at_most: f64,
}

/// What the collector does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Collects {
    /// Takes everything.
    Answering,
    /// Takes the connection and never answers.
    Hanging,
    /// There is none, and nothing is exported.
    None,
}

/// The faults of `ferrule-leaky`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Leak {
    Children,
    Queue,
}

/// What a run says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It grows by no more than it may, with confidence.
    Flat,
    /// It grows by more, with confidence.
    Grows,
    /// The noise is larger than the difference.
    Open,
}

/// One reading, at a time when nothing was in flight.
#[derive(Debug, Clone, Copy, Serialize)]
struct Reading {
    requests: u64,
    allocated: u64,
    resident: u64,
}

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub verdict: Verdict,
    pub slope: Slope,
    readings: Vec<Reading>,
    /// Series of the last scrape.
    series: usize,
    seconds: f64,
}

/// The part of a run at its beginning in which caches and queues fill to their bounds.
const WARM_UP: f64 = 0.2;

// === impl Flat ===

impl Flat {
    /// Runs, prints, and fails unless memory is flat.
    ///
    /// # Errors
    ///
    /// When something it needs cannot be had, a request is answered wrongly, or memory grows.
    pub(crate) fn run(&self) -> Result<()> {
        let outcome = self.measure()?;
        #[expect(clippy::print_stdout, reason = "the outcome is this program's answer")]
        {
            println!("{outcome}");
        }
        if outcome.verdict != Verdict::Flat {
            bail!("memory is not shown to be flat: {:?}", outcome.verdict);
        }
        Ok(())
    }

    pub(crate) fn measure(&self) -> Result<Outcome> {
        ensure!(self.windows >= 10 && self.connections > 0, "too few windows or connections");
        let began = Instant::now();
        let home = TempDir::with_prefix("ferrule-flat-")?;
        let origin = Origin::start()?;
        let collector = match self.collector {
            Collects::None => None,
            other => Some(Collector::start(other == Collects::Answering)?),
        };
        let endpoint = collector.as_ref().map(Collector::endpoint);
        let node = Node::start(self, home.path(), origin.address(), endpoint.as_deref())?;
        let scraper = Scraper::start(node.admin(), self.scrapes);
        let clients = (0..self.connections).map(|_| Client::new(node.http()));
        let mut clients: Vec<Client> = clients.collect();
        let each = (self.requests / u64::from(self.windows)).max(1);
        let mut readings = Vec::new();
        let mut sent = 0;
        loop {
            client::window(&mut clients, sent..sent + each)?;
            sent += each;
            readings.push(node.read(sent)?);
            if sent < self.requests {
                continue;
            }
            let Some(slope) = slope(&readings) else { bail!("too few readings for a slope") };
            let verdict = self.verdict(slope);
            if verdict != Verdict::Open || sent >= self.requests_max {
                let series = node.series()?;
                drop(clients);
                scraper.end()?;
                let seconds = began.elapsed().as_secs_f64();
                return Ok(Outcome { verdict, slope, readings, series, seconds });
            }
        }
    }

    fn verdict(&self, slope: Slope) -> Verdict {
        if slope.high <= self.at_most {
            Verdict::Flat
        } else if slope.low > self.at_most {
            Verdict::Grows
        } else {
            Verdict::Open
        }
    }
}

/// Of what comes after the warm-up.
fn slope(readings: &[Reading]) -> Option<Slope> {
    let warm = (readings.len() as f64 * WARM_UP).ceil() as usize;
    let point = |reading: &Reading| (reading.requests as f64, reading.allocated as f64);
    theil_sen(&readings[warm..].iter().map(point).collect::<Vec<_>>())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KIB: f64 = 1024.0;
        let Self { verdict, slope, readings, series, seconds } = self;
        writeln!(f, "| requests | allocated, KiB | resident, KiB |")?;
        writeln!(f, "|---:|---:|---:|")?;
        for Reading { requests, allocated, resident } in readings {
            let (allocated, resident) = (*allocated as f64 / KIB, *resident as f64 / KIB);
            writeln!(f, "| {requests} | {allocated:.1} | {resident:.1} |")?;
        }
        let requests = readings.last().map_or(0, |reading| reading.requests);
        let per_second = Duration::from_secs_f64(*seconds).as_secs_f64().recip() * requests as f64;
        write!(
            f,
            "\n{verdict:?}: {slope}; {requests} requests at {per_second:.0} per second, \
             {series} series"
        )
    }
}
