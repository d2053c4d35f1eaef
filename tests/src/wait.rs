//! Waiting for a condition, with an end.

use std::time::{Duration, Instant};

/// How long a condition may take to come true when the test has no deadline of its own to prove.
/// Long, because the machine may be busy; a condition that holds is seen within milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
///
/// # Panics
/// After [`PATIENCE`], with `what`.
#[track_caller]
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    within(PATIENCE, what, condition);
}

/// Waits until `condition` holds and returns how long that took.
///
/// # Panics
/// After `limit`, with `what`.
#[track_caller]
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        if condition() {
            return start.elapsed();
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
