//! The real binary is flat, and the leaky ones are caught.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use super::control::Control;
use super::measure::Verdict;
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

#[track_caller]
fn is_flat(profile: &str) {
    let _alone = alone();
    let flat = Flat { at_most: Some(1.0), ..Flat::default() };
    let profile = Profile::named(profile).unwrap();
    let outcome = profile.measure(&built("ferrule"), &profile.plan(&flat, true)).unwrap();
    assert_eq!(outcome.verdict, Verdict::Flat, "{outcome:?}");
}

/// Fifty bytes per request is less than any span, record or line that somebody would forget.
#[track_caller]
fn is_caught(fault: &str) {
    let _alone = alone();
    let control = Control::named(fault).unwrap();
    let plan = Control::plan(&Flat::default());
    let outcome = control.measure(&built("ferrule-leaky"), &plan).unwrap();
    assert_eq!(outcome.verdict, Verdict::Grows, "{outcome:?}");
    assert!(outcome.allocated.low >= 50.0, "{outcome:?}");
}

#[test]
fn memory_is_flat_while_a_collector_takes_everything_and_many_scrape() {
    is_flat("records-scraped");
}

#[test]
fn memory_is_flat_while_a_collector_hangs_and_nobody_scrapes() {
    is_flat("records-collector-hangs");
}

#[test]
fn a_layer_that_keeps_children_with_their_parent_is_caught() {
    is_caught("children");
}

#[test]
fn an_exporter_whose_queue_has_no_bound_is_caught() {
    is_caught("queue");
}
