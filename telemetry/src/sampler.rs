//! How full memory is, every 10 ms, from a thread that waits for nobody.
//!
//! The sampler is a plain OS thread: no lock that a worker could hold, no allocation, no runtime. It
//! publishes plain atomics ([`Readings`]) and writes each tick to the black box. What costs more or
//! may wait (the allocator's totals, the kernel's sums) is read once a second by a second thread.
//!
//! | figure | source | cost |
//! |---|---|---|
//! | resident | `/proc/self/statm` | one `pread` |
//! | used of the cgroup | `memory.current`, `memory.usage_in_bytes` | one `pread` |
//! | active | jemalloc, without its epoch | no system call |

mod meter;
mod readings;
mod seconds;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use rustix::process::setpriority_process;
use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::black_box::{BlackBox, Tick};
use crate::clock;
use meter::Meter;
use readings::Slope;
use seconds::Seconds;

pub use meter::{Limit, Sample, Source};
pub use readings::{Readings, Traffic};

/// What the sampler holds memory against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// Default: `auto`.
    pub limit: Limit,
}

/// The running threads; dropping it ends them.
#[derive(Debug)]
pub struct Sampler {
    readings: Arc<Readings>,
    stop: Arc<AtomicBool>,
    threads: [Option<JoinHandle<()>>; 2],
}

/// From one tick to the next.
pub const TICK_NANOSECONDS: u64 = 10_000_000;

/// Its nice value: before all that computes. It needs some 10 µs at a time.
const PRIORITY: i32 = -10;

/// How often the sampler says what it costs itself, which is a system call, in ticks.
const CPU_TICKS: u64 = 100;

/// A share of the limit from which on the page cache is not taken as it was a second ago.
const DOUBT_PERCENT: u64 = 60;

/// The least time between two looks at the page cache, in ticks.
const DOUBT_TICKS: u64 = 10;

// === impl Sampler ===

impl Sampler {
    /// Starts the threads; the readings are true from here on.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub fn start(config: &Config, black_box: Option<Arc<BlackBox>>) -> io::Result<Self> {
        let meter = Arc::new(Meter::open(config));
        let readings = Arc::new(Readings::new(meter.clone()));
        if let Some(black_box) = &black_box {
            black_box.limit(meter.limit(), meter.source());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let seconds = Seconds::new(readings.clone(), meter, black_box.clone());
        seconds.look(clock::now());
        let mut ticker = Ticker::new(readings.clone(), black_box);
        ticker.tick(clock::now());
        let mut sampler = Self { readings, stop: stop.clone(), threads: [None, None] };
        let ended = stop.clone();
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        let seconds = thread("gauges").spawn(move || seconds.run(&ended))?;
        sampler.threads[1] = Some(seconds);
        let ticks = thread("sampler").spawn(move || ticker.run(&stop))?;
        sampler.threads[0] = Some(ticks);
        Ok(sampler)
    }

    /// What was last read. Cheap to keep and to look at.
    pub fn readings(&self) -> &Arc<Readings> {
        &self.readings
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.iter_mut().filter_map(Option::take) {
            thread.thread().unpark();
            // A thread that panicked has said so already.
            drop(thread.join());
        }
    }
}

/// One tick after the other.
struct Ticker {
    readings: Arc<Readings>,
    black_box: Option<Arc<BlackBox>>,
    slope: Slope,
    since_doubt: u64,
}

impl Ticker {
    fn new(readings: Arc<Readings>, black_box: Option<Arc<BlackBox>>) -> Self {
        Self { readings, black_box, slope: Slope::default(), since_doubt: 0 }
    }

    fn run(&mut self, stop: &AtomicBool) {
        // The thread that knows has to run when everybody wants to; refused without CAP_SYS_NICE.
        let _refused = setpriority_process(None, PRIORITY);
        // Absolute times, so that ticks do not drift by what a tick costs.
        let mut next = monotonic();
        for tick in 0_u64.. {
            if stop.load(Relaxed) {
                return;
            }
            self.tick(clock::now());
            if tick.is_multiple_of(CPU_TICKS) {
                self.readings.set_cpu(clock::thread_cpu());
            }
            next += TICK_NANOSECONDS;
            let now = monotonic();
            if now > next {
                next = now; // the machine slept, or was too busy: no hurry to catch up
            }
            let at = Timespec {
                tv_sec: (next / 1_000_000_000) as i64,
                tv_nsec: (next % 1_000_000_000) as i64,
            };
            // Woken by a signal, the next tick is early.
            let _woken = clock_nanosleep_absolute(ClockId::Monotonic, &at);
        }
    }

    /// Reads, publishes, and writes down. Allocates nothing.
    fn tick(&mut self, now: u64) {
        let readings = &self.readings;
        let Some(mut sample) = readings.look_now() else { return };
        self.since_doubt += 1;
        let is_doubtful =
            sample.used.saturating_mul(100) >= sample.limit.saturating_mul(DOUBT_PERCENT);
        if is_doubtful && self.since_doubt >= DOUBT_TICKS && readings.refresh_cache() {
            self.since_doubt = 0;
            sample = readings.look_now().unwrap_or(sample);
        }
        let projected = self.slope.project(now, sample.used);
        readings.publish(now, &sample, projected);
        if let Some(black_box) = &self.black_box {
            let traffic = readings.traffic();
            black_box.tick(&Tick {
                time: now,
                active: readings.active(),
                resident: sample.resident,
                used: sample.used,
                limit: sample.limit,
                in_flight: traffic.requests,
                pressure: readings.pressure_thousandths(),
            });
        }
    }
}

fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests;
