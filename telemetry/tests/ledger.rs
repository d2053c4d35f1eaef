//! The ledger against the real allocator: what is booked is what is held, once.

use std::hint::black_box;

use telemetry::heapwatch;
use telemetry::ledger::scope::{ADMIN, HEALTH, INVENTORY, WORKERS};
use telemetry::ledger::{Ledger, Unit};
use telemetry::metrics::Registry;
use tokio_util::task::TaskTracker;

#[global_allocator]
static ALLOCATOR: heapwatch::Allocator = heapwatch::Allocator;

fn block(bytes: usize) -> Box<[u8]> {
    black_box(vec![1; black_box(bytes)].into_boxed_slice())
}

/// One test, for the scopes are the process's.
#[test]
fn what_is_held_is_booked_once_and_given_back() {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::of_process(registry.clone());
    let account = ledger.open("blocks", Unit::Bytes, 1 << 20);

    let working = ADMIN.enter();
    let (own, inner, taken) = (
        block(4_096),
        {
            let _working = HEALTH.enter();
            block(8_192)
        },
        block(1_024),
    );
    account.take(1_024);
    drop(working);
    assert_eq!((ADMIN.bytes(), HEALTH.bytes(), account.current()), (4_096, 8_192, 1_024));

    // Freed elsewhere, outside of any scope: the line stays, which is why owners free what is theirs.
    drop(own);
    assert_eq!(ADMIN.bytes(), 4_096);
    {
        let _working = HEALTH.enter();
        drop(inner);
    }
    assert_eq!(HEALTH.bytes(), 0);
    drop(taken);
    account.give_back(1_024);

    let entries = ledger.open_entries("pairs", 10, 100);
    entries.take(3);
    let lines = ledger.read();
    let line = lines.iter().find(|line| line.name == "pairs").expect("it was opened");
    assert_eq!((line.current, line.bytes), (3, 300));
    entries.give_back(3);

    // A task is measured in its polls and at its end, however that comes about.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it starts");
    let before = INVENTORY.bytes();
    let tasks = TaskTracker::new();
    runtime.block_on(async {
        let held = async {
            let held = block(16_384);
            std::future::pending::<()>().await;
            drop(held);
        };
        let task = INVENTORY.task(held, |task| tasks.spawn(task));
        tokio::task::yield_now().await;
        assert!((16_384..17_500).contains(&(INVENTORY.bytes() - before)), "{}", INVENTORY.bytes());
        task.abort();
        drop(task.await);
    });
    assert_eq!(INVENTORY.bytes(), before);

    // A thread as a whole, whoever frees what when.
    std::thread::spawn(|| {
        WORKERS.take_what_is_there();
        let at_first = WORKERS.bytes();
        let held = block(32_768);
        WORKERS.take_what_is_there();
        assert_eq!(WORKERS.bytes() - at_first, 32_768);
        drop(held);
        WORKERS.take_what_is_there();
        assert_eq!(WORKERS.bytes(), at_first);
    })
    .join()
    .expect("it counts");
}
