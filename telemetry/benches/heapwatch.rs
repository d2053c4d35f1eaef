//! What watching the heap costs. `cargo bench -p telemetry --bench heapwatch`.
//!
//! The bar: at most 0.5 % of a core at 1 GB/s of allocation. Allocating and freeing is measured with
//! sampling off and on in turn, as CPU time of this thread, below a stack of forty frames; what one
//! sample costs is the difference over the share of allocations that is sampled.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use telemetry::heapwatch::{self, Config, Context, Heapwatch, Mode, Query};
use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use tikv_jemalloc_ctl::raw;

#[global_allocator]
static ALLOCATOR: heapwatch::Allocator = heapwatch::Allocator;

const INTERVAL: f64 = (1 << 19) as f64;
const ROUNDS: usize = 31;

#[allow(unsafe_code, reason = "a setting of the allocator")]
fn sample(active: bool) {
    // SAFETY: prof.active is a bool.
    unsafe { raw::write(b"prof.active\0", active) }.expect("sampling is compiled in");
}

fn cpu_time() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Calls `run` from `depth` frames further down.
#[inline(never)]
fn below(depth: usize, run: &mut dyn FnMut()) {
    if depth == 0 {
        run();
    } else {
        below(depth - 1, run);
    }
    black_box(depth);
}

/// Nanoseconds of one allocation and its end.
fn pair(bytes: usize, pairs: usize) -> f64 {
    let mut took = 0.0;
    below(35, &mut || {
        let began = cpu_time();
        for _ in 0..pairs {
            black_box(Vec::<u8>::with_capacity(black_box(bytes)));
        }
        took = cpu_time() - began;
    });
    took / pairs as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let context = Context {
        registry: &registry,
        ledger: &ledger,
        requests: Box::new(|| 0),
        app_names: Box::new(|_| Default::default()),
        limit: Box::new(|| None),
    };
    let heapwatch = Heapwatch::start(&Config::default(), context);
    assert_eq!(heapwatch.mode(), Mode::Hooks);

    println!("one sample in 512 KiB; medians of {ROUNDS} rounds in turn");
    println!(
        "{:>9} {:>9} {:>9} {:>7} {:>12} {:>14}",
        "bytes", "off ns", "on ns", "ratio", "ns/sample", "% at 1 GB/s"
    );
    for bytes in [64, 512, 4_096, 16_384, 65_536] {
        let pairs = if bytes > 8_192 { 400_000 } else { 2_000_000 };
        let (mut off, mut on, mut more) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            sample(false);
            let without = pair(bytes, pairs);
            sample(true);
            let with = pair(bytes, pairs);
            off.push(without);
            on.push(with);
            more.push(with - without);
        }
        let sampled = 1.0 - (-(bytes as f64) / INTERVAL).exp();
        let each = median(&mut more) / sampled;
        // So many samples in a gigabyte, each of which costs so much.
        let share = 1e9 / bytes as f64 * sampled * each / 1e9 * 100.0;
        let (off, on) = (median(&mut off), median(&mut on));
        println!("{bytes:>9} {off:>9.2} {on:>9.2} {:>7.3} {each:>12.0} {share:>14.3}", on / off);
    }

    // A heap of 8 GiB, as far as the tables can tell: blocks that are never touched.
    let held: Vec<Vec<u8>> = (0..16_384).map(|_| Vec::with_capacity(black_box(1 << 19))).collect();
    let mut ticks: Vec<f64> = (0..101)
        .map(|_| {
            let began = Instant::now();
            heapwatch.tick();
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    let report = heapwatch.report(&Query { totals: false, ..Query::default() });
    println!("tick with {} live samples: {:.0} µs", report.tables.samples, median(&mut ticks));
    let began = Instant::now();
    black_box(heapwatch.report(&Query::default()));
    println!("report: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1));
    drop(held);
}
