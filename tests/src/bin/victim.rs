//! A process that ends in a way its arguments choose, and keeps a black box: `victim STORAGE HOW`.
//!
//! It prints `NAME ADDRESS` for functions that stacks are searched for, then does what it was told.

#![allow(clippy::unwrap_used, reason = "a program of the tests")]
#![allow(clippy::print_stdout, reason = "what it prints is what the test reads")]

use std::env;
use std::hint::black_box;
use std::io::{Write as _, stdout};
use std::path::Path;
use std::process::abort;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use telemetry::black_box::{self, BlackBox, Ending, Opened, Request, open};
use telemetry::metrics::Registry;
use telemetry::sampler::{Config, Limit, Readings, Sampler, Traffic};
use telemetry::{backtrace_guard, log, panic};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MIB: usize = 1 << 20;

fn main() {
    backtrace_guard::arm().unwrap();
    let mut arguments = env::args().skip(1);
    let (storage, how) = (arguments.next().unwrap(), arguments.next().unwrap());
    log::open("info", log::Format::Text).unwrap();
    panic::install();
    let Opened { black_box, last } = open(Path::new(&storage), "victim-1", "0.0.0").unwrap();
    let black_box = Arc::new(black_box);
    black_box.install();
    let ending = Ending::new(black_box.clone());
    println!("last {}", last.verdict.label());
    let limit = match arguments.next() {
        Some(bytes) => Limit::Bytes(bytes.parse().unwrap()),
        None => Limit::Auto,
    };
    let sampler = Sampler::start(&Config { limit }, Some(black_box.clone())).unwrap();
    let readings = sampler.readings().clone();
    readings.watch_traffic(|| Traffic { connections: 3, requests: 2 });
    black_box::watch_allocations(black_box.clone(), readings.clone()).unwrap();
    black_box.largest_requests(&[Request {
        id: "01JVICTIM".to_owned(),
        app: "shop".to_owned(),
        state: "response".to_owned(),
        bytes: 4096,
        age_ms: 70,
    }]);
    println!("devour {}", devour as fn() as usize);
    println!("stumble {}", stumble as fn() as usize);
    println!("large {}", large as fn() as usize);
    stdout().flush().unwrap();
    match how.as_str() {
        "devour" => thread::Builder::new().name("worker-0".to_owned()).spawn(devour),
        "large" => thread::Builder::new().name("worker-0".to_owned()).spawn(large),
        "stumble" => thread::Builder::new().name("worker-1".to_owned()).spawn(stumble),
        "wait" | "panic" | "abort" | "clean" | "spike" => thread::Builder::new().spawn(|| ()),
        other => panic!("cannot {other}"),
    }
    .unwrap()
    .join()
    .ok(); // a panic of a thread is contained, as one of a worker's task is
    match how.as_str() {
        "panic" => stumble(),
        "abort" => {
            let _second = Stumbles;
            stumble();
        }
        "spike" => spike(&sampler),
        "wait" | "stumble" => wait(&black_box, &readings),
        _ => {}
    }
    drop(sampler);
    ending.clean();
}

/// Allocates and touches as fast as it can, and keeps all of it.
#[inline(never)]
fn devour() {
    let mut held = Vec::new();
    loop {
        held.push(vec![1_u8; 64 * 1024]);
        black_box(&held);
    }
}

/// One block that is larger than the limit: no second allocation would tell who it was.
#[inline(never)]
fn large() {
    let mut block: Vec<u8> = Vec::with_capacity(1024 * MIB);
    block.resize(1024 * MIB, 1);
    black_box(&block);
}

#[inline(never)]
fn stumble() {
    tracing::warn!(client = "198.51.100.7", "about to stumble");
    // What it says must appear nowhere.
    panic!("the password is hunter2");
}

struct Stumbles;

impl Drop for Stumbles {
    fn drop(&mut self) {
        stumble();
        abort();
    }
}

/// Says that it is ready, once the sampler has seen all there is, and does nothing until its end.
fn wait(black_box: &BlackBox, readings: &Readings) {
    for _ in 0..2 {
        let heartbeat = readings.heartbeat();
        while readings.heartbeat() == heartbeat {
            thread::sleep(Duration::from_millis(1));
        }
    }
    black_box.line(telemetry::clock::now(), black_box::Level::Warn, "waiting");
    println!("ready");
    stdout().flush().unwrap();
    thread::sleep(Duration::from_secs(600));
}

/// Scrapes, holds 200 MiB for 300 ms, and scrapes at the end of the interval, as does a control that
/// looks at what is resident at these two moments only.
fn spike(sampler: &Sampler) {
    const INTERVAL: Duration = Duration::from_secs(15);
    let registry = Registry::new(1, 100);
    sampler.readings().export(&registry);
    let scrape = || {
        let text = registry.render();
        let line = text.lines().find(|line| line.starts_with("ferrule_memory_resident_max_bytes "));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    let polled = || telemetry::process::Process::open().resident().unwrap();
    scrape();
    println!("before {} {}", scrape(), polled());
    let half = INTERVAL / 2;
    thread::sleep(half);
    let block = black_box(vec![1_u8; 200 * MIB]);
    thread::sleep(Duration::from_millis(300));
    drop(block);
    thread::sleep(half);
    println!("after {} {}", scrape(), polled());
}
