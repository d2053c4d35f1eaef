//! Metrics do not grow with what strangers write, with time, or when nobody scrapes.
//!
//! Measured by the allocator that the node runs on. Each case has a control beside it: the same
//! work on the structure one would write first, which the same assertion catches.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use telemetry::metrics::{Config, Counter, Metric, Registry, SECONDS, Snapshot, Value};
use telemetry::record::model::TraceId;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

telemetry::catalogue! {
    /// What strangers multiply.
    STRANGERS;
    PATHS: Metric::counter("ferrule_path_requests_total", &["path"], "By path.").per("path");
    HOSTS: Metric::histogram("ferrule_host_wait_seconds", &["host"], SECONDS, "By host.")
        .per("host")
        .at_most(100);
    AGENTS: Metric::gauge("ferrule_agent_open", &["agent"], "By user agent.");
    APPS: Metric::counter("ferrule_app_requests_total", &["app"], "By app.").per("app");
    WAITS: Metric::histogram("ferrule_wait_seconds", &[], SECONDS, "Waits.").with_exemplars();
}

const LABELS_MAX: usize = 1_000;
const SERIES_MAX: usize = 3_000;

/// What the allocator may hold more after the work than before: its own caches of freed memory.
const SLACK: usize = 256 * 1024;

/// One measurement at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Bytes by which `work` makes the process grow.
fn growth(work: impl FnOnce()) -> usize {
    let before = telemetry::memory::read().allocated;
    assert!(before > 0, "jemalloc is the allocator");
    work();
    telemetry::memory::read().allocated.saturating_sub(before)
}

fn registry(idle: Duration) -> Registry {
    let config = Config { labels_max: LABELS_MAX, series_max: SERIES_MAX, idle };
    Registry::open(2, config, &[telemetry::metrics::catalogue::ALL, STRANGERS])
}

/// Time series as a scrape shows them.
fn series(snapshot: &Snapshot) -> usize {
    let of = |value: &Value| match value {
        Value::Number(_) => 1,
        Value::Distribution(distribution) => distribution.counts.len() + 2,
    };
    snapshot.families.iter().flat_map(|family| &family.points).map(|point| of(&point.value)).sum()
}

/// So many requests, no two of which have the same path, host or user agent.
fn strangers(registry: &Registry, requests: std::ops::Range<u32>) {
    for n in requests {
        let (path, host, agent) = (format!("/{n}/x"), format!("h{n}.example"), format!("bot/{n}"));
        PATHS.counter_in(registry, &[&path]).increment();
        HOSTS.histogram_in(registry, &[&host]).record(Duration::from_millis(3));
        AGENTS.gauge_in(registry, &[&agent]).add(1);
    }
}

#[test]
fn a_million_paths_hosts_and_user_agents_are_a_few_thousand_series() {
    let _alone = alone();
    let registry = registry(Duration::from_secs(1800));
    strangers(&registry, 0..20_000); // every cap is reached
    let full = series(&registry.snapshot());
    let grown = growth(|| strangers(&registry, 20_000..1_000_000));
    assert!(grown < SLACK, "{grown} bytes");

    let snapshot = registry.snapshot();
    // Beyond the cap are what has no labels and the sets of `__other__`.
    assert!((SERIES_MAX / 2..SERIES_MAX + 50).contains(&series(&snapshot)), "{full}");
    assert_eq!(series(&snapshot), full);
    // And nothing was lost.
    let count = |name: &str| -> u64 {
        let family = snapshot.families.iter().find(|family| family.name == name).unwrap();
        let of = |value: &Value| match value {
            Value::Number(number) => number.as_f64() as u64,
            Value::Distribution(distribution) => distribution.count,
        };
        family.points.iter().map(|point| of(&point.value)).sum()
    };
    for metric in [&PATHS, &HOSTS, &AGENTS] {
        assert_eq!(count(metric.name), 1_000_000, "{}", metric.name);
    }
}

#[test]
fn the_control_without_a_cap_is_caught() {
    let _alone = alone();
    let mut uncapped = BTreeMap::<String, u64>::new();
    let grown = growth(|| {
        for n in 0..100_000 {
            *uncapped.entry(format!("h{n}.example")).or_default() += 1;
        }
    });
    assert!(grown > SLACK, "{grown} bytes for {} labels", uncapped.len());
}

#[test]
fn an_hour_without_a_scrape_holds_what_a_minute_does() {
    const PER_MINUTE: u64 = 60_000;
    let _alone = alone();
    let registry = registry(Duration::from_secs(1800));
    let waits = WAITS.histogram_in(&registry, &[]);
    let start = Instant::now();
    let minute = |minute: u64| {
        for n in 0..PER_MINUTE {
            let (n, at) = (minute * PER_MINUTE + n, Duration::from_millis(n));
            waits.record_traced(Duration::from_micros(n % 9_999_999), TraceId(n.into()), at);
            waits.record(Duration::from_micros(n % 7));
        }
        strangers(&registry, 0..100);
        registry.sweep(start + Duration::from_secs(60 * minute));
    };
    minute(0);
    let grown = growth(|| (1..60).for_each(minute));
    assert!(grown < SLACK, "{grown} bytes");
    let snapshot = registry.snapshot();
    let family = snapshot.families.iter().find(|family| family.name == WAITS.name).unwrap();
    let Value::Distribution(distribution) = &family.points[0].value else { panic!("no histogram") };
    assert_eq!(distribution.count, 60 * 2 * PER_MINUTE);
    assert!(distribution.exemplars.len() > 10);
}

#[test]
fn the_control_that_keeps_samples_for_the_next_scrape_is_caught() {
    let _alone = alone();
    let mut samples = Vec::new();
    let grown = growth(|| (0..60_000).for_each(|n| samples.push(Duration::from_micros(n))));
    assert!(grown > SLACK, "{grown} bytes for {} samples", samples.len());
}

/// What a quiet app costs whose handle is held, beside one that is asked now.
#[test]
fn apps_that_went_quiet_hold_no_cells() {
    const COUNT: usize = 20_000;
    let _alone = alone();
    let idle = Duration::from_secs(60);
    let registry = registry(idle);
    let mut now = Instant::now();
    let mut handles: Vec<Counter> = Vec::with_capacity(COUNT);
    let grown = growth(|| {
        for apps in 0..COUNT / LABELS_MAX {
            for app in apps * LABELS_MAX..(apps + 1) * LABELS_MAX {
                let counter = APPS.counter_in(&registry, &[&format!("app-{app}")]);
                counter.increment();
                handles.push(counter);
            }
            for _ in 0..3 {
                registry.sweep(now);
                now += idle;
            }
        }
    });
    // Three shards of 128 bytes are what the cells alone would be.
    let each = grown / COUNT;
    assert!(each < 384, "{each} bytes for each handle");
    handles.iter().for_each(Counter::increment);
    assert!(handles.iter().all(|handle| handle.value() >= 2), "a count was lost");
    drop(handles);
}
