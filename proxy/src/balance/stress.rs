//! Several threads that take, wait for, give up and give back permits at random.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use telemetry::metrics::Registry;
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::*;
use crate::config;
use crate::inventory::tests::{app, instances, inventory_with, limited, upsert};

const THREADS: u64 = 4;
const TASKS: u64 = 16;
const ROUNDS: usize = 150;
const HARD: u32 = 3;

#[derive(Default)]
struct Seen {
    in_use: [AtomicU32; 2],
    served: AtomicU64,
    waited: AtomicU64,
    given_up: AtomicU64,
}

/// One client: over and over, with the patience and cancellations of chance.
async fn client(entry: Arc<Entry>, seen: Arc<Seen>, seed: u64) {
    let rng = Rng::seeded(seed);
    for _ in 0..ROUNDS {
        let patience = Duration::from_secs(60);
        let tried = Tried::default();
        let waits = entry.queue(0).expect("there is one service").waiting() != 0;
        let assigning = assign(&entry, 0, &tried, Origin::Client, patience, &rng);
        let assigned = if rng.below(3) == 0 {
            let cancelled = Duration::from_micros(rng.below(3_000) as u64);
            timeout(cancelled, assigning).await.ok()
        } else {
            Some(assigning.await)
        };
        let Some(assignment) = assigned else {
            seen.given_up.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let assignment = assignment.expect("nothing but time ends a wait here");
        let instance = usize::from(assignment.candidate.instance.id.as_str() == "y");
        let before = seen.in_use[instance].fetch_add(1, Ordering::SeqCst);
        assert!(before < HARD, "the hard limit was passed");
        for _ in 0..rng.below(4) {
            yield_now().await;
        }
        seen.in_use[instance].fetch_sub(1, Ordering::SeqCst);
        drop(assignment);
        seen.served.fetch_add(1, Ordering::Relaxed);
        seen.waited.fetch_add(u64::from(waits), Ordering::Relaxed);
    }
}

#[test]
fn no_permit_is_lost_or_given_twice_and_nobody_waits_for_ever() {
    let registry = Registry::new(1, 10);
    let inventory = inventory_with(&config::Limits::default(), &registry);
    let service = limited(1, Some(HARD));
    let entry = upsert(&inventory, app("a", vec![service], instances("x@own y@own")));
    let seen = Arc::new(Seen::default());
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (entry, seen) = (entry.clone(), seen.clone());
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build_local(tokio::runtime::LocalOptions::default())
                    .expect("a runtime");
                let clients = TaskTracker::new();
                runtime.block_on(async {
                    let tasks: Vec<_> = (0..TASKS)
                        .map(|task| {
                            let seed = thread * TASKS + task;
                            clients.spawn_local(client(entry.clone(), seen.clone(), seed))
                        })
                        .collect();
                    for task in tasks {
                        task.await.expect("no client panics");
                    }
                });
            });
        }
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(count(&seen.served) + count(&seen.given_up), THREADS * TASKS * ROUNDS as u64);
    // The control: all three kinds of thing happened.
    assert!(count(&seen.waited) > 0 && count(&seen.given_up) > 0 && count(&seen.served) > 0);

    for candidate in &entry.candidates {
        assert_eq!(candidate.load(0).expect("there is one service").in_flight(), 0);
    }
    assert_eq!(entry.queue(0).expect("there is one service").waiting(), 0);
    let text = registry.render();
    for line in ["ferrule_permits_in_use 0\n", "ferrule_queue_length 0\n"] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}
