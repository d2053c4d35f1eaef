//! A process whose worker hangs for a while: `hang spin` or `hang sleep`.
//!
//! It is watched as a node watches its workers, and its log says when the hang begins.

#![allow(clippy::unwrap_used, reason = "a program of the tests")]

use std::env;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use telemetry::service::{self, Heartbeat};
use telemetry::symbols::child;
use telemetry::watchdog::{Config, Thread, Threads, capture};
use telemetry::{backtrace_guard, log};
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TICK: Duration = Duration::from_millis(10);

/// Before and after the hang.
const REST: Duration = Duration::from_millis(700);

const HANG: Duration = Duration::from_millis(1_500);

fn main() {
    backtrace_guard::arm().unwrap();
    let how = env::args().nth(1).unwrap();
    if how == child::COMMAND {
        return child::serve(io::stdin().lock(), io::stdout().lock()).unwrap();
    }
    log::open("info", log::Format::Text).unwrap();
    capture::install().unwrap();
    let ended = Arc::<AtomicBool>::default();
    let (shows, shown) = mpsc::channel();
    let worker = {
        let ended = ended.clone();
        thread::spawn(move || worker(&how, &shows, &ended))
    };
    let config = Config { drain: None, abort: None, ..Config::default() };
    let mut threads = Threads::new(config, vec![shown.recv().unwrap()], Instant::now());
    let mut heartbeat = Heartbeat::of_environment();
    service::ready("watching");
    while !ended.load(Relaxed) {
        let now = Instant::now();
        threads.look(now, |_| {});
        heartbeat.beat(threads.longest(now), now);
        thread::sleep(TICK);
    }
    worker.join().unwrap();
    service::stopping();
}

fn worker(how: &str, shows: &mpsc::Sender<Thread>, ended: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let thread = capture::Thread::current();
    let name = "worker-0".to_owned();
    shows.send(Thread { name, runtime: runtime.metrics(), thread }).unwrap();
    runtime.block_on(async {
        tokio::time::sleep(REST).await;
        tracing::info!("hangs");
        match how {
            "spin" => a_poll_that_computes(),
            "sleep" => a_poll_that_sleeps(),
            other => panic!("cannot {other:?}"),
        }
        tokio::time::sleep(REST).await;
    });
    ended.store(true, Relaxed);
}

#[inline(never)]
fn a_poll_that_computes() {
    compute();
    std::hint::black_box(()); // so that it is no tail call
}

/// A thread that is interrupted at the first instructions of a function has no frame of its caller
/// yet, so this one may be missing in its stack.
#[inline(never)]
fn compute() {
    let start = Instant::now();
    while start.elapsed() < HANG {
        std::hint::spin_loop();
    }
}

#[inline(never)]
fn a_poll_that_sleeps() {
    thread::sleep(HANG);
    std::hint::black_box(()); // so that the sleep is no tail call
}
