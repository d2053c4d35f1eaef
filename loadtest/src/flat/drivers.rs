//! Work of each kind: a few workers, each with what it keeps open.

mod bodies;
mod errors;
mod grpc;
mod oha;
mod records;
mod resets;
mod sockets;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub(crate) use bodies::{Bodies, SlowReader};
pub(crate) use errors::Errors;
pub(crate) use grpc::Grpc;
pub(crate) use oha::OhaLoad;
pub(crate) use records::Records;
pub(crate) use resets::Resets;
pub(crate) use sockets::{Tcp, WebSockets};

use super::measure::{Load, Window};
use crate::client::tls;
use crate::histogram::Histogram;
use crate::node::Node;
use crate::node::config::DOMAIN;

/// Where the node is met, and with which TLS.
#[derive(Clone)]
pub(crate) struct Target {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub tcp: SocketAddr,
    pub http1: tls::Config,
    pub http2: tls::Config,
}

/// One of those who do the work.
pub(crate) trait Worker: Send {
    /// One unit, which the node should answer as it is expected to.
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()>;

    /// Closes what it keeps open.
    fn rest(&mut self);

    /// Whether what it keeps open holds a permit, so that something is in flight until it rests.
    fn holds_permits(&self) -> bool {
        false
    }
}

/// Workers that share the numbers of a window.
pub(crate) struct Team<W> {
    workers: Vec<W>,
    sent: u64,
    wrong: BTreeMap<String, u64>,
}

/// More wrong answers than this end a run: it measures something else then.
const WRONG_MAX: u64 = 200;

impl Target {
    pub(crate) fn of(node: &Node) -> Result<Self> {
        Ok(Self {
            http: node.http(),
            https: node.https(),
            tcp: node.tcp(),
            http1: node.tls(&["http/1.1"])?,
            http2: node.tls(&["h2"])?,
        })
    }

    /// In a thread's turn: cleartext, then TLS.
    pub(crate) fn stream(&self, number: u64, host: &str) -> Result<crate::client::Stream> {
        match number % 2 {
            0 => crate::client::Stream::clear(self.http),
            _ => crate::client::Stream::tls(self.https, host, &self.http1),
        }
    }
}

pub(crate) fn host(app: &str) -> String {
    format!("{app}.{DOMAIN}")
}

impl<W: Worker> Team<W> {
    pub(crate) fn new(size: usize, worker: impl FnMut(usize) -> W) -> Self {
        Self { workers: (0..size).map(worker).collect(), sent: 0, wrong: BTreeMap::new() }
    }
}

impl<W: Worker> Load for Team<W> {
    fn window(&mut self, count: u64) -> Result<Window> {
        let numbers = self.sent..self.sent + count;
        self.sent += count;
        let began = Instant::now();
        let size = self.workers.len();
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = self
                .workers
                .iter_mut()
                .enumerate()
                .map(|(index, worker)| {
                    let numbers = numbers.clone().skip(index).step_by(size);
                    scope.spawn(move || turn(worker, numbers))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        self.workers.iter_mut().filter(|worker| worker.holds_permits()).for_each(Worker::rest);
        let mut histogram = Histogram::default();
        for result in results {
            let (of_worker, wrong) = result.expect("workers do not panic");
            histogram.merge(&of_worker);
            for (what, count) in wrong {
                *self.wrong.entry(what).or_default() += count;
            }
        }
        let wrong: u64 = self.wrong.values().sum();
        if wrong > WRONG_MAX {
            bail!("{wrong} wrong answers: {:?}", self.wrong);
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Window { done: count, seconds, latency: histogram.quantiles() })
    }

    fn rest(&mut self) {
        self.workers.iter_mut().for_each(Worker::rest);
    }

    fn wrong(&self) -> Vec<(String, u64)> {
        self.wrong.clone().into_iter().collect()
    }
}

/// One worker's part of a window.
fn turn<W: Worker>(
    worker: &mut W,
    numbers: impl Iterator<Item = u64>,
) -> (Histogram, BTreeMap<String, u64>) {
    let mut histogram = Histogram::default();
    let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
    for number in numbers {
        if let Err(error) = worker.once(number, &mut histogram) {
            *wrong.entry(format!("{error:#}")).or_default() += 1;
            worker.rest();
            if wrong.values().sum::<u64>() > WRONG_MAX {
                break;
            }
        }
    }
    (histogram, wrong)
}

/// Runs `what`, and adds how long it took.
pub(crate) fn timed<T>(histogram: &mut Histogram, what: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let result = what()?;
    histogram.add(began.elapsed());
    Ok(result)
}

/// A number that looks random and is the same in every run (SplitMix64).
pub(crate) fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// So short that a run's many pauses do not make it long, so long that the other side waits.
const PAUSE: Duration = Duration::from_millis(2);
