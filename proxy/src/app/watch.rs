//! The thread that watches the others: how short memory is, and whether every worker comes back.
//!
//! It is a plain OS thread that ticks every 10 ms, so it goes on when all runtimes hang. It reads
//! atomics, tells workers through their channels, and awaits nobody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::setpriority_process;
use telemetry::metrics::Counter;
use telemetry::pressure::{Ladder, Level, Step};
use telemetry::sampler::Readings;
use telemetry::service::{self, Heartbeat};
use telemetry::watchdog::{Finding, Thread, Threads, capture};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::threads::Remote;
use crate::edge::Edge;
use crate::metrics::catalogue;

/// The running thread; dropping it ends it.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is watched, and who is told.
pub(super) struct Subject {
    pub(super) edge: Arc<Edge>,
    /// Absent where nothing looks at memory.
    pub(super) readings: Option<Arc<Readings>>,
    /// The workers, then the control thread.
    pub(super) threads: Vec<Thread>,
    pub(super) remote: Remote,
    /// Writes down what the heap looks like; must not block.
    pub(super) snapshot: Box<dyn Fn(&'static str) + Send>,
    /// Drains the node.
    pub(super) drain: CancellationToken,
}

const TICK: Duration = Duration::from_millis(10);

/// Between two resets while memory is nearly gone: time for the tasks to end, for what they held to be
/// given back, and for the next reading to show it.
const RESET_PERIOD: Duration = Duration::from_millis(30);

/// The nice value of the thread: who acts has to run when everybody wants to, as who looks does.
const PRIORITY: i32 = -10;

// === impl Watch ===

impl Watch {
    pub(super) fn start(subject: Subject) -> io::Result<Self> {
        capture::install()?;
        let stop = Arc::<AtomicBool>::default();
        let (mut eyes, ended) = (Eyes::new(subject), stop.clone());
        let run = move || {
            let _refused = setpriority_process(None, PRIORITY); // without CAP_SYS_NICE
            while !ended.load(Relaxed) {
                eyes.tick(Instant::now());
                thread::sleep(TICK);
            }
        };
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(run)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join()); // a panic has been told by its hook
        }
    }
}

struct Eyes {
    subject: Subject,
    started: Instant,
    threads: Threads,
    heartbeat: Heartbeat,
    ladder: Ladder,
    last_reset: Instant,
    /// Since the last reset.
    purged: bool,
    blocked: Counter,
    /// Locks held for too long.
    locks: Counter,
}

// === impl Eyes ===

impl Eyes {
    fn new(mut subject: Subject) -> Self {
        let (edge, threads) = (&subject.edge, std::mem::take(&mut subject.threads));
        let now = Instant::now();
        let config = &edge.config.memory;
        let ladder = Ladder::new(config.pressure.clone(), edge.pressure.clone(), &edge.registry);
        let threads = Threads::new(config.watchdog.clone(), threads, now);
        let blocked = catalogue::WORKERS_BLOCKED.counter_in(&edge.registry, &[]);
        let locks = catalogue::LOCKS_HELD_TOO_LONG.counter_in(&edge.registry, &[]);
        Self {
            started: now,
            threads,
            heartbeat: Heartbeat::of_environment(),
            ladder,
            last_reset: now,
            purged: false,
            blocked,
            locks,
            subject,
        }
    }

    fn tick(&mut self, now: Instant) {
        self.subject.edge.board.set_clock(now - self.started);
        self.look_at_memory(now);
        let (blocked, drain) = (&self.blocked, &self.subject.drain);
        self.threads.look(now, |finding| match finding {
            Finding::Blocked { .. } => blocked.increment(),
            Finding::Recovered { .. } => {}
            Finding::Drain { .. } => drain.cancel(),
            Finding::Abort { .. } => std::process::abort(),
        });
        self.locks.add(self.threads.look_at_locks());
        let longest = self.threads.longest(now);
        self.subject.edge.hangs_ms.store(longest.as_millis() as u64, Relaxed);
        self.heartbeat.beat(longest, now);
    }

    fn look_at_memory(&mut self, now: Instant) {
        let Some(readings) = &self.subject.readings else { return };
        let percent = readings.pressure_thousandths() as f64 / 10.0;
        while let Some(step) = self.ladder.step(percent) {
            match step {
                Step::Enter(level) => self.enter(level, percent),
                Step::Leave(level) => {
                    tracing::info!(level = level.as_str(), percent, "memory pressure eases");
                }
            }
            let level = self.ladder.level();
            service::status(&format!("memory pressure: {}", level.as_str()));
        }
        if !self.subject.edge.pressure.is_at(Level::Reset) {
            return;
        }
        // What was freed is given back before the next reading, or it would cost another one.
        let since = now - self.last_reset;
        if !self.purged && since >= RESET_PERIOD / 3 {
            self.purged = true;
            telemetry::memory::purge();
        }
        if since >= RESET_PERIOD {
            (self.purged, self.last_reset) = (false, now);
            self.subject.remote.reset_largest();
        }
    }

    fn enter(&self, level: Level, percent: f64) {
        tracing::warn!(level = level.as_str(), percent, "memory pressure");
        self.subject.remote.give_way(level);
        match level {
            Level::Trim => telemetry::memory::purge(),
            Level::Close => (self.subject.snapshot)("pressure"),
            Level::Calm | Level::Shed | Level::Refuse | Level::Reset => {}
        }
    }
}
