//! What verbosity costs in memory: nothing for a request without it, and nothing that stays.
//!
//! A binary of its own, for it counts every byte of its process.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use telemetry::ledger::Ledger;
use telemetry::memory;
use telemetry::metrics::Registry;
use telemetry::verbosity::{Config, Facts, Keys, Level, NewRule, NewToken, Now, Scope, Verbosity};
use tikv_jemalloc_ctl::thread;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SHOP: Facts<'_> = Facts {
    app: "shop",
    host: "shop.example",
    path: "/cart",
    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
};

fn of_shop() -> Scope {
    Scope { app: Some("shop".to_owned()), ..Scope::default() }
}

fn rule() -> NewRule {
    NewRule { scope: of_shop(), why: "a test of memory".to_owned(), ..NewRule::default() }
}

fn verbosity() -> (Verbosity, Ledger) {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let config = Config { tokens_per_second_max: 1_000_000, ..Config::default() };
    let keys = Keys::random().expect("random bytes");
    (Verbosity::new(&config, keys, &registry, &ledger), ledger)
}

/// Bytes that `count` times `toggle` leave behind.
fn left_by(count: u64, mut toggle: impl FnMut(u64)) -> i64 {
    let warm = count / 100;
    (0..warm).for_each(&mut toggle);
    let before = memory::read().allocated;
    (warm..warm + count).for_each(&mut toggle);
    memory::read().allocated as i64 - before as i64
}

/// What this thread has asked the allocator for since it began.
fn asked() -> u64 {
    thread::allocatedp::read().expect("jemalloc is the allocator").get()
}

/// Everything in one test: two at once would count each other's bytes.
#[test]
fn a_million_toggles_leave_nothing_and_a_request_without_them_costs_nothing() {
    let start = Now::read();
    let at = |n: u64| {
        let after = Duration::from_millis(n);
        Now { instant: start.instant + after, unix: start.unix + after }
    };

    let (node, ledger) = verbosity();
    let left = left_by(1_000_000, |n| {
        let id = node.add_rule(rule(), "uid 7", at(n)).expect("there is room");
        drop(black_box(node.from_rules(&SHOP, at(n).instant)));
        if n % 2 == 0 {
            assert!(node.remove_rule(id, "uid 7", at(n)));
        } else {
            node.tick(Now { instant: at(n).instant + Duration::from_secs(600), ..at(n) }, n);
        }
    });
    assert!(left < 64 * 1024, "a million rules left {left} bytes");
    let lines: Vec<_> = ledger.read().iter().map(|line| (line.name, line.current)).collect();
    assert_eq!(lines, [("trace_tokens", 0), ("trace_rules", 0), ("trace_audit", 256)]);
    assert_eq!(node.armed(), 0);

    let (node, ledger) = verbosity();
    let asked_for = NewToken {
        level: Level::Verbose,
        scope: of_shop(),
        ttl: Duration::from_secs(1),
        uses: 1,
        report: false,
    };
    let left = left_by(50_000, |n| {
        let token = node.sign(&asked_for, "uid 7", at(n)).expect("within the bounds").token;
        drop(black_box(node.from_token(token.as_bytes(), &SHOP, at(n))));
        if n % 100 == 0 {
            node.tick(at(n), 1_000_000 * n);
        }
    });
    assert!(left < 64 * 1024, "fifty thousand tokens left {left} bytes");
    let tokens = ledger.read().remove(0);
    assert!(tokens.high > 100 && tokens.high <= 4_096, "they were used: {tokens:?}");

    // The control: what keeps a few bytes of each is found.
    let mut kept = Vec::new();
    let left = left_by(100_000, |_| kept.push(Box::new([0_u8; 16])));
    assert!(left > 1_000_000, "a leak of 16 bytes each left {left} bytes");

    let (node, _) = verbosity();
    let forged = format!("v1.{}.e30.{}", node.list(start.instant).keys[0], "A".repeat(43));
    node.from_token(forged.as_bytes(), &SHOP, start); // whatever is made once
    let before = asked();
    for _ in 0..1_000 {
        assert!(black_box(node.from_rules(&SHOP, start.instant)).is_none());
        assert!(black_box(node.from_token(forged.as_bytes(), &SHOP, start)).is_none());
    }
    assert_eq!(asked() - before, 0, "bytes for requests that get nothing");
    node.add_rule(rule(), "uid 7", start).expect("there is room");
    let before = asked();
    for _ in 0..1_000 {
        drop(black_box(node.from_rules(&SHOP, start.instant)));
    }
    assert_eq!(asked() - before, 0, "a grant is made of what is there");
}
