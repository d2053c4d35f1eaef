use std::sync::atomic::AtomicU64;

use super::*;
use crate::record::model::TraceId;

#[test]
fn a_family_is_capped_and_the_rest_is_counted_as_other() {
    let registry = Registry::new(1, 3);
    for app in 0..10 {
        let app = format!("app-{app}");
        registry.counter("ferrule_requests_total", "", &[("app", &app)]).increment();
    }
    let text = registry.render();
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 4);
    assert!(text.contains("ferrule_requests_total{app=\"__other__\"} 7"), "{text}");
}

#[test]
fn a_forgotten_label_makes_room() {
    let registry = Registry::new(1, 1);
    registry.counter("ferrule_requests_total", "", &[("app", "a")]).increment();
    registry.forget("app", "a");
    registry.counter("ferrule_requests_total", "", &[("app", "b")]).add(2);
    assert!(registry.render().contains("ferrule_requests_total{app=\"b\"} 2"));
}

#[test]
fn shards_add_up() {
    let registry = Registry::new(2, 10);
    let counter = registry.counter("ferrule_things_total", "", &[]);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let counter = counter.clone();
            scope.spawn(move || {
                if worker < 2 {
                    crate::shard::claim(worker);
                }
                (0..1000).for_each(|_| counter.increment());
            });
        }
    });
    assert_eq!(counter.value(), 4000);
}

#[test]
fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
    let registry = Registry::new(1, 10);
    let histogram = registry.histogram("ferrule_wait_seconds", "", &[], &[0.1, 1.0]);
    for milliseconds in [50, 500, 5000] {
        histogram.record(Duration::from_millis(milliseconds));
    }
    let text = registry.render();
    for line in [
        "ferrule_wait_seconds_bucket{le=\"0.1\"} 1",
        "ferrule_wait_seconds_bucket{le=\"1\"} 2",
        "ferrule_wait_seconds_bucket{le=\"+Inf\"} 3",
        "ferrule_wait_seconds_sum 5.55",
        "ferrule_wait_seconds_count 3",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[test]
fn label_values_are_escaped() {
    let registry = Registry::new(1, 10);
    registry.counter("ferrule_odd_total", "", &[("app", "a\"b\\c\nd")]).increment();
    assert!(registry.render().contains(r#"ferrule_odd_total{app="a\"b\\c\nd"} 1"#));
}

static PER_APP: Metric =
    Metric::counter("ferrule_app_things_total", &["app", "class"], "Things.").per("app");
static PER_APP_WAITS: Metric =
    Metric::histogram("ferrule_app_wait_seconds", &["app"], &[0.1, 1.0], "Waits.").per("app");
static PER_APP_OPEN: Metric = Metric::gauge("ferrule_app_open", &["app"], "Open.").per("app");

const IDLE: Duration = Duration::from_secs(60);

fn evicting(labels_max: usize, series_max: usize) -> Registry {
    Registry::build(1, Config { labels_max, series_max, idle: IDLE }, None)
}

/// Lets `idle` pass: the first sweep sees what changed, the second that nothing did since.
fn idle(registry: &Registry, start: Instant) -> Instant {
    registry.sweep(start);
    registry.sweep(start + IDLE);
    start + IDLE
}

#[track_caller]
fn shows(registry: &Registry, line: &str) -> bool {
    registry.render().lines().any(|shown| shown == line)
}

#[test]
fn overflow_keeps_the_labels_that_the_code_bounds() {
    let registry = evicting(1, 100);
    PER_APP.counter_in(&registry, &["a", "2xx"]).increment();
    for app in ["b", "c"] {
        PER_APP.counter_in(&registry, &[app, "5xx"]).increment();
    }
    assert!(shows(&registry, "ferrule_app_things_total{app=\"__other__\",class=\"5xx\"} 2"));
}

#[test]
fn all_series_together_are_capped_and_every_refusal_is_counted() {
    let metrics: &[&[&'static Metric]] = &[catalogue::ALL, &[&PER_APP, &PER_APP_WAITS]];
    let config = Config { series_max: 20, ..Config::default() };
    let registry = Registry::open(1, config, metrics);
    let own = registry.snapshot().families.iter().map(|family| family.points.len()).sum::<usize>();
    for app in 0..100 {
        let app = app.to_string();
        PER_APP_WAITS.histogram_in(&registry, &[&app]).record(IDLE);
        PER_APP.counter_in(&registry, &[&app, "2xx"]).increment();
    }
    let text = registry.render();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    // The two sets of `__other__`, and the first without labels, are beyond the cap.
    assert!((16..=20 + own + 5 + 1).contains(&series), "{series} in\n{text}");
    assert!(shows(&registry, &format!("ferrule_metrics_series {series}")), "{text}");
    assert!(shows(&registry, "ferrule_app_wait_seconds_bucket{app=\"0\",le=\"+Inf\"} 1"));
    let refused = registry.inner.totals.beyond_series.load(Relaxed);
    assert!(shows(
        &registry,
        &format!("ferrule_metrics_overflow_total{{cap=\"series\"}} {refused}")
    ));
    // Nothing is lost: what is not shown by itself is in the overflow set.
    let count: u64 = registry.snapshot().families.iter().fold(0, |sum, family| {
        let of = |point: &Point| match point.value {
            Value::Number(Number::Unsigned(n)) if family.name == PER_APP.name => n,
            _ => 0,
        };
        sum + family.points.iter().map(of).sum::<u64>()
    });
    assert_eq!(count, 100);
}

#[test]
fn a_series_that_idles_is_evicted_and_comes_back_with_all_it_counted() {
    let registry = evicting(10, 100);
    let counter = PER_APP.counter_in(&registry, &["a", "2xx"]);
    let histogram = PER_APP_WAITS.histogram_in(&registry, &["a"]);
    counter.add(5);
    histogram.record(Duration::from_millis(500));
    let now = idle(&registry, Instant::now());
    assert!(!registry.render().contains("app=\"a\""), "{}", registry.render());

    counter.increment();
    histogram.record(Duration::from_millis(50));
    for line in [
        "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 6",
        "ferrule_app_wait_seconds_bucket{app=\"a\",le=\"0.1\"} 1",
        "ferrule_app_wait_seconds_bucket{app=\"a\",le=\"1\"} 2",
        "ferrule_app_wait_seconds_sum{app=\"a\"} 0.55",
    ] {
        assert!(shows(&registry, line), "{line} is missing in\n{}", registry.render());
    }
    // The same after its cells were freed: this sweep counts them up.
    let now = idle(&registry, now);
    registry.sweep(now);
    counter.increment();
    assert!(shows(&registry, "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 7"));
    // Asking by name finds the same one.
    PER_APP.counter_in(&registry, &["a", "2xx"]).increment();
    assert_eq!(counter.value(), 8);
}

#[test]
fn what_is_used_or_stands_at_something_is_not_evicted() {
    let registry = evicting(10, 100);
    let counter = PER_APP.counter_in(&registry, &["a", "2xx"]);
    PER_APP_OPEN.gauge_in(&registry, &["a"]).add(1);
    PER_APP_OPEN.gauge_in(&registry, &["b"]).add(0);
    registry.counter("ferrule_things_total", "", &[("app", "a")]).increment();
    let mut now = Instant::now();
    for _ in 0..5 {
        counter.increment();
        now = idle(&registry, now);
        counter.increment();
        registry.sweep(now);
    }
    assert!(shows(&registry, "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 10"));
    assert!(shows(&registry, "ferrule_app_open{app=\"a\"} 1"));
    assert!(!registry.render().contains("ferrule_app_open{app=\"b\"}"));
    // Not declared as labelled from outside, so it stays.
    assert!(shows(&registry, "ferrule_things_total{app=\"a\"} 1"));
}

#[test]
fn who_counts_as_other_moves_to_a_place_of_its_own_when_there_is_one() {
    let registry = evicting(1, 100);
    let first = PER_APP.counter_in(&registry, &["a", "2xx"]);
    let second = PER_APP.counter_in(&registry, &["b", "2xx"]);
    first.increment();
    second.increment();
    assert!(shows(&registry, "ferrule_app_things_total{app=\"__other__\",class=\"2xx\"} 1"));
    idle(&registry, Instant::now());
    second.increment();
    assert!(shows(&registry, "ferrule_app_things_total{app=\"b\",class=\"2xx\"} 1"));
    // Now the first is too late, and says so where the rest is.
    first.increment();
    assert!(shows(&registry, "ferrule_app_things_total{app=\"__other__\",class=\"2xx\"} 2"));
    registry.forget("app", "b");
    first.increment();
    assert!(shows(&registry, "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 2"));
}

#[test]
fn two_handles_of_one_label_set_never_show_twice() {
    let registry = evicting(2, 100);
    for app in ["a", "c"] {
        PER_APP.counter_in(&registry, &[app, "2xx"]).increment();
    }
    let handles = [0, 1].map(|_| PER_APP.counter_in(&registry, &["b", "2xx"]));
    ["a", "c"].iter().for_each(|app| registry.forget("app", app)); // room for both
    handles.iter().for_each(Counter::increment);
    handles.iter().for_each(Counter::increment);
    let shown = registry.render().matches("app=\"b\"").count();
    assert_eq!(shown, 1);
    assert!(shows(&registry, "ferrule_app_things_total{app=\"b\",class=\"2xx\"} 2"));
    assert!(shows(&registry, "ferrule_app_things_total{app=\"__other__\",class=\"2xx\"} 2"));
}

#[test]
fn a_forgotten_series_does_not_come_back() {
    let registry = evicting(10, 100);
    let [shown, evicted] = ["a", "b"].map(|app| PER_APP.counter_in(&registry, &[app, "2xx"]));
    evicted.increment();
    let now = idle(&registry, Instant::now());
    shown.increment();
    for app in ["a", "b"] {
        registry.forget("app", app);
    }
    shown.increment();
    evicted.increment();
    registry.sweep(now);
    assert_eq!(registry.snapshot().families.len(), 0, "{}", registry.render());
    assert_eq!(registry.inner.totals.series.load(Relaxed), 0);
    // A new app of the same name begins at zero.
    PER_APP.counter_in(&registry, &["a", "2xx"]).increment();
    assert!(shows(&registry, "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 1"));
}

#[test]
fn no_count_is_lost_while_series_are_evicted_under_the_writers() {
    const EACH: u64 = 200_000;
    let registry =
        Registry::build(2, Config { labels_max: 2, series_max: 100, idle: Duration::ZERO }, None);
    let counters = ["a", "b"].map(|app| PER_APP.counter_in(&registry, &[app, "2xx"]));
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let (counters, done) = (&counters, &done);
            scope.spawn(move || {
                if worker < 2 {
                    crate::shard::claim(worker);
                }
                for n in 0..EACH {
                    counters[usize::from(n % 64 == 0)].increment();
                    if n % 1024 == 0 {
                        std::thread::yield_now();
                    }
                }
                done.fetch_add(1, Relaxed);
            });
        }
        let mut shown = BTreeMap::new();
        while done.load(Relaxed) < 3 {
            registry.sweep(Instant::now());
            for point in registry.snapshot().families.into_iter().flat_map(|f| f.points) {
                let Value::Number(number) = point.value else { unreachable!("a counter") };
                let before = shown.insert(point.labels, number.as_f64()).unwrap_or_default();
                assert!(number.as_f64() >= before, "{number} after {before}");
            }
        }
    });
    counters.iter().for_each(Counter::increment); // shows both
    let sum: u64 = counters.iter().map(Counter::value).sum();
    assert!(registry.inner.totals.evicted.load(Relaxed) > 0, "nothing was evicted");
    assert_eq!(sum, 3 * EACH + 2);
}

#[test]
fn an_exemplar_goes_to_openmetrics_and_to_nobody_else() {
    static WAITS: Metric =
        Metric::histogram("ferrule_wait_seconds", &[], &[0.1, 1.0], "Waits.").with_exemplars();
    let registry = Registry::new(2, 10);
    let histogram = WAITS.histogram_in(&registry, &[]);
    let at = Duration::from_millis(1_700_000_000_123);
    let seen = Duration::from_micros(100_001);
    histogram.record_traced(seen, TraceId(0xabc), at - Duration::from_secs(1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            crate::shard::claim(1);
            histogram.record_traced(seen, TraceId(0xdef), at);
        });
    });
    histogram.record(Duration::from_secs(5));
    let text = registry.render_as(Format::OpenMetrics);
    let line = "ferrule_wait_seconds_bucket{le=\"1.0\"} 2 \
         # {trace_id=\"00000000000000000000000000000def\"} 0.100001 1700000000.123\n";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("ferrule_wait_seconds_bucket{le=\"+Inf\"} 3\n"), "{text}");
    assert!(text.contains(
        "# TYPE ferrule_wait_seconds histogram\n# UNIT ferrule_wait_seconds seconds\n# HELP"
    ));
    assert!(text.ends_with("# EOF\n"), "{text}");
    let text = registry.render();
    assert!(
        !text.contains("trace_id") && !text.contains("EOF") && !text.contains("UNIT"),
        "{text}"
    );
}

#[test]
fn a_sum_of_microseconds_keeps_every_one_of_them() {
    static BUSY: Metric =
        Metric::counter("ferrule_busy_seconds_total", &[], "Busy.").in_microseconds();
    let registry = Registry::new(1, 10);
    let counter = BUSY.counter_in(&registry, &[]);
    counter.add(1 << 53);
    counter.add_duration(Duration::from_micros(1));
    assert!(shows(&registry, "ferrule_busy_seconds_total 9007199254.740993"));
    let histogram = registry.histogram("ferrule_wait_seconds", "", &[], &[1.0]);
    histogram.record(Duration::from_micros(1 << 53));
    histogram.record(Duration::from_micros(1));
    assert!(shows(&registry, "ferrule_wait_seconds_sum 9007199254.740993"));
}

#[test]
#[cfg_attr(not(debug_assertions), allow(unused, reason = "release builds do not check"))]
fn what_no_catalogue_lists_cannot_be_registered() {
    let registry = Registry::open(1, Config::default(), &[catalogue::ALL]);
    registry.gauge("ferrule_ledger_bytes", "", &[("owner", "pool")]);
    let refused = |register: &dyn Fn()| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(register)).is_err()
    };
    if cfg!(debug_assertions) {
        assert!(refused(&|| drop(registry.counter("ferrule_unknown_total", "", &[]))));
        assert!(refused(&|| drop(registry.gauge("ferrule_ledger_bytes", "", &[("who", "pool")]))));
        assert!(refused(&|| drop(registry.counter("ferrule_ledger_bytes", "", &[("owner", "x")]))));
    }
}

#[test]
fn long_label_values_are_cut_at_a_character() {
    let registry = Registry::new(1, 10);
    let long = "ä".repeat(100);
    registry.counter("ferrule_odd_total", "", &[("app", &format!("x{long}"))]).increment();
    let cut = format!("x{}", "ä".repeat(63));
    assert!(shows(&registry, &format!("ferrule_odd_total{{app=\"{cut}\"}} 1")));
}

#[test]
fn a_reader_may_use_the_registry_it_is_read_from() {
    let registry = Registry::new(1, 10);
    let inner = registry.clone();
    registry.gauge_read("ferrule_odd", "", &[], move || {
        inner.counter("ferrule_odd_total", "", &[]).increment();
        1.0
    });
    registry.render();
    assert!(shows(&registry, "ferrule_odd_total 2"));
}
