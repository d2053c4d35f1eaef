//! What a node uses, read in the background while something is done to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::machine;
use crate::node::{Node, Scrape, get};
use crate::suite::Plot;

/// Reads until it is told to end.
pub(crate) struct Sampler {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Samples>,
}

/// By what was read: seconds since the start, and the value.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    lines: BTreeMap<&'static str, Vec<(f64, f64)>>,
}

/// Scrapes at a rate, as monitoring does, until it is told to end.
pub(crate) struct Scraper {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Result<u64>>,
}

pub(crate) const RESIDENT: &str = "resident";
/// Resident, but for the program itself.
pub(crate) const OWN: &str = "own";
pub(crate) const ALLOCATED: &str = "allocated";
pub(crate) const LEDGER: &str = "ledger";
pub(crate) const CONNECTIONS: &str = "connections";
pub(crate) const IN_FLIGHT: &str = "requests in flight";
pub(crate) const REQUESTS: &str = "requests";
/// Stacks that the node calls a probable leak or one.
pub(crate) const SUSPECTS: &str = "suspects";
pub(crate) const CPU: &str = "CPU";

const MIB: f64 = (1 << 20) as f64;

impl Sampler {
    /// The kernel is asked every 50 ms, the node every 250 ms.
    pub(crate) fn start(node: &Node) -> Result<Self> {
        const PAUSE: Duration = Duration::from_millis(50);
        const SCRAPES: u32 = 5;
        let (pid, admin) = (node.pid()?, node.admin());
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut samples = Samples::default();
            let began = Instant::now();
            let mut round = 0;
            while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                let at = began.elapsed().as_secs_f64();
                // A process that is gone has no memory; a node that is busy dying does not answer.
                samples.kernel(at, pid);
                if round % SCRAPES == 0 {
                    samples.node(at, admin);
                }
                round += 1;
            }
            samples
        });
        Ok(Self { stop, thread })
    }

    pub(crate) fn end(self) -> Samples {
        drop(self.stop);
        self.thread.join().expect("the sampler does not panic")
    }
}

impl Samples {
    fn kernel(&mut self, at: f64, pid: u32) {
        if let Ok(kib) = machine::resident_of(pid) {
            self.put(RESIDENT, at, kib as f64 / 1024.0);
        }
        if let Ok(kib) = machine::own_of(pid) {
            self.put(OWN, at, kib as f64 / 1024.0);
        }
        if let Ok(cpu) = machine::cpu_of(pid) {
            self.put(CPU, at, cpu.as_secs_f64());
        }
    }

    fn node(&mut self, at: f64, admin: SocketAddr) {
        let Ok(page) = get(admin, "/metrics") else { return };
        let scrape = Scrape::parse(&page);
        self.put(ALLOCATED, at, scrape.memory("allocated").unwrap_or_default() as f64 / MIB);
        self.put(LEDGER, at, scrape.sum("ferrule_ledger_bytes") / MIB);
        self.put(CONNECTIONS, at, scrape.value("ferrule_downstream_connections"));
        self.put(IN_FLIGHT, at, scrape.value("ferrule_requests_in_flight"));
        let suspects = ["probable", "leak"]
            .map(|state| scrape.value(&format!("ferrule_leak_suspects{{state=\"{state}\"}}")));
        self.put(SUSPECTS, at, suspects.iter().sum());
        self.put(REQUESTS, at, scrape.value("ferrule_requests_received_total"));
    }

    fn put(&mut self, line: &'static str, at: f64, value: f64) {
        self.lines.entry(line).or_default().push((at, value));
    }

    pub(crate) fn of(&self, line: &str) -> &[(f64, f64)] {
        self.lines.get(line).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn max(&self, line: &str) -> f64 {
        self.of(line).iter().map(|point| point.1).fold(0.0, f64::max)
    }

    /// What a growing line grew by, per second.
    pub(crate) fn rate(&self, line: &str) -> Vec<(f64, f64)> {
        let pairs = self.of(line).windows(2);
        pairs
            .filter(|pair| pair[1].0 > pair[0].0 && pair[1].1 >= pair[0].1)
            .map(|pair| (pair[1].0, (pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0)))
            .collect()
    }

    pub(crate) fn memory(&self, title: &str) -> Plot {
        let line = |name: &str| self.of(name).to_vec();
        Plot::new(title, "s", "MiB")
            .line(RESIDENT, line(RESIDENT))
            .line(ALLOCATED, line(ALLOCATED))
            .line(LEDGER, line(LEDGER))
    }

    pub(crate) fn load(&self, title: &str) -> Plot {
        let line = |name: &str| self.of(name).to_vec();
        Plot::new(title, "s", "")
            .line(CONNECTIONS, line(CONNECTIONS))
            .line(IN_FLIGHT, line(IN_FLIGHT))
    }
}

// === impl Scraper ===

impl Scraper {
    pub(crate) fn start(admin: SocketAddr, per_second: u32) -> Self {
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            let mut count = 0;
            let Some(pause) = Duration::from_secs(1).checked_div(per_second) else { return Ok(0) };
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                get(admin, "/metrics")?;
                count += 1;
            }
            Ok(count)
        };
        Self { stop, thread: thread::spawn(run) }
    }

    /// How many there were.
    pub(crate) fn end(self) -> Result<u64> {
        let Self { stop, thread } = self;
        drop(stop);
        thread.join().expect("the scraper does not panic")
    }
}
