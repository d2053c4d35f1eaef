//! What a request pays for each step.
//!
//! `cargo bench -p proxy --bench micro --features micro` times them; `make instructions` counts their
//! instructions (`instructions` beside this file), which no busy machine disturbs.

use divan::Bencher;
use proxy::micro::{Step, steps};

fn main() {
    telemetry::shard::claim(0);
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("--names"), ..) => steps().iter().for_each(|step| println!("{}", step.name)),
        (Some("--times"), Some(name), Some(times)) => {
            let times: u64 = times.parse().expect("--times NAME NUMBER");
            let mut step = named(&name);
            // Tables are made, buffers taken, branches learnt.
            (0..100).for_each(|_| (step.run)());
            counted(&mut step, times);
        }
        _ => divan::main(),
    }
}

/// All that `instructions` counts, by this name.
#[inline(never)]
fn counted(step: &mut Step, times: u64) {
    (0..times).for_each(|_| (step.run)());
}

fn named(name: &str) -> Step {
    steps().into_iter().find(|step| step.name == name).expect("a name that --names lists")
}

fn names() -> Vec<&'static str> {
    steps().into_iter().map(|step| step.name).collect()
}

#[divan::bench(args = names())]
fn step(bencher: Bencher<'_, '_>, name: &str) {
    let mut step = named(name);
    bencher.bench_local(move || (step.run)());
}
