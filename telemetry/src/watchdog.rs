//! Notices a worker that does not come back from a poll, and what is to be done about it.
//!
//! Pure: it is given each worker's pulse and the time, and says what it found. Who reads the
//! pulses, takes the stack ([`capture`]) and acts is the thread that ticks.
//!
//! A runtime shows three numbers that only its own thread moves: how often it parked, whether it is
//! parked, and how long it was busy, which moves whenever it has polled a batch of tasks. A worker
//! that is awake while none of them moves is inside one poll, however busy the others are; a
//! saturated worker is not mistaken for it.

pub mod capture;
mod threads;

use std::time::Duration;

use tokio::runtime::RuntimeMetrics;
use tokio::time::Instant;

pub use threads::{Threads, Watched as Thread};

/// From when on a worker is blocked, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A poll that lasts longer than this is reported with its stack. Default: 200 ms.
    pub blocked: Duration,
    /// One that lasts longer than this drains the node, whose other workers are well. Default: 10 s.
    pub drain: Option<Duration>,
    /// One that lasts longer than this ends the process with a core, if the system keeps cores.
    /// Default: 60 s.
    pub abort: Option<Duration>,
}

/// What moves when a runtime does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    pub parked: bool,
    pub parks: u64,
    pub busy: Duration,
}

/// What a tick found about one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It has been inside one poll for this long: take its stack.
    Blocked { worker: usize, lasted: Duration },
    /// It came back after this long.
    Recovered { worker: usize, lasted: Duration },
    /// It has been blocked for so long that the node should drain.
    Drain { worker: usize, lasted: Duration },
    /// It has been blocked for so long that the process should end.
    Abort { worker: usize, lasted: Duration },
}

/// Watches any number of workers.
pub struct Watchdog {
    config: Config,
    workers: Vec<Watched>,
}

struct Watched {
    pulse: Pulse,
    /// Since when nothing has moved.
    since: Instant,
    step: Step,
}

/// How far the ladder was climbed for one poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Well,
    Reported,
    Draining,
    Aborting,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            blocked: Duration::from_millis(200),
            drain: Some(Duration::from_secs(10)),
            abort: Some(Duration::from_secs(60)),
        }
    }
}

// === impl Pulse ===

impl Pulse {
    /// Reads the pulse of a runtime with one worker, from any thread.
    pub fn of(runtime: &RuntimeMetrics) -> Self {
        let parks = runtime.worker_park_unpark_count(0);
        // It counts going to sleep and waking up, so an odd number is a worker that sleeps.
        Self { parked: parks % 2 == 1, parks, busy: runtime.worker_total_busy_duration(0) }
    }
}

// === impl Watchdog ===

impl Watchdog {
    pub fn new(config: Config, workers: usize, now: Instant) -> Self {
        let pulse = Pulse { parked: true, parks: 0, busy: Duration::ZERO };
        let watched = || Watched { pulse, since: now, step: Step::Well };
        Self { config, workers: (0..workers).map(|_| watched()).collect() }
    }

    /// Whether `worker` with this pulse has hung for long enough to be reported.
    pub fn would_report(&self, worker: usize, pulse: Pulse, now: Instant) -> bool {
        self.workers.get(worker).is_some_and(|watched| {
            !pulse.parked && pulse == watched.pulse && now - watched.since >= self.config.blocked
        })
    }

    /// For how long the worker that hangs longest has not come back, as of the last pulse of each.
    pub fn longest(&self, now: Instant) -> Duration {
        let hangs = self.workers.iter().filter(|watched| !watched.pulse.parked);
        hangs.map(|watched| now - watched.since).max().unwrap_or_default()
    }

    /// Takes the pulse of `worker`; at most one finding, each once for one blocked poll.
    pub fn observe(&mut self, worker: usize, pulse: Pulse, now: Instant) -> Option<Finding> {
        let Config { blocked, drain, abort } = self.config;
        let watched = self.workers.get_mut(worker)?;
        let lasted = now - watched.since;
        if pulse != watched.pulse || pulse.parked {
            let was = std::mem::replace(watched, Watched { pulse, since: now, step: Step::Well });
            return (was.step > Step::Well).then_some(Finding::Recovered { worker, lasted });
        }
        let over = |after: Option<Duration>| after.is_some_and(|after| lasted >= after);
        let (step, finding) = if over(abort) {
            (Step::Aborting, Finding::Abort { worker, lasted })
        } else if over(drain) {
            (Step::Draining, Finding::Drain { worker, lasted })
        } else if lasted >= blocked {
            (Step::Reported, Finding::Blocked { worker, lasted })
        } else {
            return None;
        };
        (step > watched.step).then(|| {
            watched.step = step;
            finding
        })
    }
}

#[cfg(test)]
mod tests;
