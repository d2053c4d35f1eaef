//! The real binary is flat, and the leaky ones are caught.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use super::*;

/// One node at a time: memory does not mind company, the time a test takes does.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A binary that was built beside the running test.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join(name);
    assert!(binary.is_file(), "{} is missing: run `make build`", binary.display());
    binary
}

fn short(binary: &str) -> Flat {
    Flat {
        ferrule: built(binary),
        requests: 20_000,
        requests_max: 200_000,
        windows: 40,
        connections: 8,
        collector: Collects::Answering,
        scrapes: 0,
        leak: None,
        at_most: 1.0,
    }
}

#[track_caller]
fn is_flat(flat: &Flat) {
    let outcome = flat.measure().unwrap();
    assert_eq!(outcome.verdict, Verdict::Flat, "{outcome}");
}

/// Fifty bytes per request is less than any span, record or line that somebody would forget.
#[track_caller]
fn is_caught(leak: Leak, collector: Collects) {
    let leaky = Flat { requests: 8_000, leak: Some(leak), collector, ..short("ferrule-leaky") };
    let outcome = leaky.measure().unwrap();
    assert_eq!(outcome.verdict, Verdict::Grows, "{outcome}");
    assert!(outcome.slope.low >= 50.0, "{outcome}");
}

#[test]
fn memory_is_flat_while_a_collector_takes_everything_and_many_scrape() {
    let _alone = alone();
    is_flat(&Flat { scrapes: 100, ..short("ferrule") });
}

#[test]
fn memory_is_flat_while_a_collector_hangs_and_nobody_scrapes() {
    let _alone = alone();
    is_flat(&Flat { collector: Collects::Hanging, ..short("ferrule") });
}

#[test]
fn a_layer_that_keeps_children_with_their_parent_is_caught() {
    let _alone = alone();
    is_caught(Leak::Children, Collects::Answering);
}

#[test]
fn an_exporter_whose_queue_has_no_bound_is_caught() {
    let _alone = alone();
    is_caught(Leak::Queue, Collects::Hanging);
}
