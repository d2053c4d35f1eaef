use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;
use crate::metrics::{Config, Counter, Histogram, Kind, Metric, Value, catalogue};

static TOTAL: Metric = Metric::counter("ferrule_t_total", &[], "Things.");
static BUSY: Metric = Metric::counter("ferrule_busy_seconds_total", &[], "Busy.").in_microseconds();
static PER_APP: Metric =
    Metric::counter("ferrule_app_things_total", &["app", "class"], "Things.").per("app");
static WAITS: Metric =
    Metric::histogram("ferrule_wait_seconds", &["app"], &[0.1, 1.0], "Waits.").per("app");
static OPEN: Metric = Metric::gauge("ferrule_open", &["kind"], "Open.").adding_up();
static AGE: Metric = Metric::gauge("ferrule_age_seconds", &[], "Age.");
static KERNEL: Metric = Metric::counter("ferrule_kernel_total", &[], "Kernel's.").kept_outside();
static READ: Metric = Metric::counter("ferrule_read_total", &[], "Read.");
static IN_FLIGHT: Metric = Metric::gauge("ferrule_in_flight", &[], "In flight.").adding_up();

static OWN: &[&Metric] =
    &[&TOTAL, &BUSY, &PER_APP, &WAITS, &OPEN, &AGE, &KERNEL, &READ, &IN_FLIGHT];

const IDLE: Duration = Duration::from_secs(60);

fn process() -> Registry {
    bounded(Config { idle: IDLE, ..Config::default() })
}

fn bounded(config: Config) -> Registry {
    Registry::open(1, config, &[catalogue::ALL, OWN])
}

#[track_caller]
fn shows(registry: &Registry, lines: &[&str]) {
    let text = registry.render();
    for line in lines {
        assert!(text.lines().any(|shown| shown == *line), "{line} is missing in\n{text}");
    }
}

#[track_caller]
fn hides(registry: &Registry, text: &str) {
    let rendered = registry.render();
    assert!(!rendered.contains(text), "{rendered}");
}

/// A process in which everything was counted once or more.
fn busy() -> Registry {
    let registry = process();
    TOTAL.counter_in(&registry, &[]).add(10);
    BUSY.counter_in(&registry, &[]).add_duration(Duration::from_millis(1500));
    PER_APP.counter_in(&registry, &["a", "2xx"]).add(3);
    WAITS.histogram_in(&registry, &["a"]).record(Duration::from_millis(500));
    OPEN.gauge_in(&registry, &["tcp"]).add(4);
    AGE.gauge_in(&registry, &[]).add(99);
    KERNEL.counter_in(&registry, &[]).add(1000);
    READ.counter_read_in(&registry, &[], || 7);
    IN_FLIGHT.gauge_read_in(&registry, &[], || 2.0);
    registry
}

const COUNTED: [&str; 9] = [
    "ferrule_t_total 20",
    "ferrule_busy_seconds_total 3",
    "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 6",
    "ferrule_wait_seconds_bucket{app=\"a\",le=\"0.1\"} 0",
    "ferrule_wait_seconds_bucket{app=\"a\",le=\"1\"} 2",
    "ferrule_wait_seconds_count{app=\"a\"} 2",
    "ferrule_wait_seconds_sum{app=\"a\"} 1",
    "ferrule_read_total 14",
    "ferrule_kernel_total 1000",
];

#[test]
fn while_two_run_all_that_adds_up_is_shown_as_one_and_gauges_go_with_the_first() {
    let (before, after) = (busy(), busy());
    for _ in 0..3 {
        after.carry(1, &before.tell()).unwrap(); // told anew, not added anew
        shows(&after, &COUNTED);
        let gauges =
            ["ferrule_open{kind=\"tcp\"} 8", "ferrule_in_flight 4", "ferrule_age_seconds 99"];
        shows(&after, &gauges);
    }
    for _ in 0..2 {
        after.carry_ended();
        shows(&after, &COUNTED);
        let gauges =
            ["ferrule_open{kind=\"tcp\"} 4", "ferrule_in_flight 2", "ferrule_age_seconds 99"];
        shows(&after, &gauges);
    }
}

#[test]
fn what_was_counted_before_is_shown_before_anything_is_counted_here() {
    let (before, after) = (busy(), process());
    after.carry(1, &before.tell()).unwrap();
    let lines = [
        "ferrule_t_total 10",
        "ferrule_busy_seconds_total 1.5",
        "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 3",
        "ferrule_wait_seconds_sum{app=\"a\"} 0.5",
        "ferrule_open{kind=\"tcp\"} 4",
        "ferrule_in_flight 2",
        "ferrule_read_total 7",
    ];
    shows(&after, &lines);
    hides(&after, "ferrule_age_seconds");
    hides(&after, "ferrule_kernel_total");
    after.carry_ended();
    shows(&after, &lines[..4]);
    hides(&after, "ferrule_open");
    // Since when, as OTLP tells it: since the first process began to count.
    let began = |registry: &Registry| {
        let families = registry.snapshot().families;
        families.iter().find(|family| family.name == TOTAL.name).unwrap().points[0].began
    };
    let late = began(&after).as_millis();
    assert_eq!(late, began(&before).as_millis());
}

#[test]
fn a_file_says_the_same_and_no_more_of_it_is_read_than_may_be() {
    let (before, after) = (busy(), busy());
    for _ in 0..2 {
        after.carry_file(1, before.tell_file().unwrap()).unwrap();
        shows(&after, &COUNTED);
    }
    let long = tempfile::tempfile().unwrap();
    long.set_len(1 << 40).unwrap();
    let refused = after.carry_file(1, long.into()).unwrap_err();
    assert!(matches!(refused, CarryError::Size { bytes } if bytes == BYTES_MAX + 1));
    let file = tempfile::NamedTempFile::new().unwrap();
    let unreadable = File::options().write(true).open(file.path()).unwrap();
    assert!(matches!(after.carry_file(1, unreadable.into()), Err(CarryError::Read(_))));
    shows(&after, &COUNTED);
}

#[test]
fn a_generation_that_has_ended_is_not_carried_again_and_the_next_one_is() {
    let (first, second, third) = (busy(), busy(), busy());
    second.carry(1, &first.tell()).unwrap();
    second.carry_ended();
    assert!(matches!(second.carry(1, &first.tell()), Err(CarryError::Ended { generation: 1 })));
    third.carry(2, &second.tell()).unwrap();
    shows(&third, &["ferrule_t_total 30", "ferrule_open{kind=\"tcp\"} 8"]);
    // Without a word of its end: that another one tells says so.
    let fourth = busy();
    third.carry(3, &fourth.tell()).unwrap();
    shows(&third, &["ferrule_t_total 40", "ferrule_open{kind=\"tcp\"} 8"]);
    assert!(matches!(third.carry(2, &second.tell()), Err(CarryError::Ended { .. })));
}

#[test]
fn what_cannot_be_read_or_counts_otherwise_changes_nothing() {
    static RENAMED: Metric = Metric::gauge("ferrule_t_total", &[], "No counter.");
    static LABELLED: Metric = Metric::counter("ferrule_busy_seconds_total", &["app"], "Labels.");
    static BUCKETS: Metric = Metric::histogram("ferrule_wait_seconds", &["app"], &[0.1, 2.0], "");
    static KERNEL_INSIDE: Metric = Metric::counter("ferrule_kernel_total", &[], "Inside.");
    static NEW: Metric = Metric::counter("ferrule_new_total", &[], "Unknown there.");
    let others: &[&Metric] = &[&RENAMED, &LABELLED, &BUCKETS, &KERNEL_INSIDE, &NEW, &PER_APP];
    let other = Registry::open(1, Config::default(), &[others, catalogue::ALL]);
    RENAMED.gauge_in(&other, &[]).add(1);
    LABELLED.counter_in(&other, &["a"]).add(1);
    BUCKETS.histogram_in(&other, &["a"]).record(IDLE);
    KERNEL_INSIDE.counter_in(&other, &[]).add(1);
    NEW.counter_in(&other, &[]).add(1);
    PER_APP.counter_in(&other, &["a", "2xx"]).add(1);

    let registry = busy();
    let text = registry.render();
    let broken = [
        Vec::new(),
        b"{}".to_vec(),
        b"null".to_vec(),
        b"{\"version\":1}".to_vec(),
        b"{\"version\":1,\"families\":[{}]}".to_vec(),
        vec![b'['; 100_000],
        vec![b' '; BYTES_MAX + 1],
        b"{\"version\":2,\"families\":[]}".to_vec(),
    ];
    for broken in broken {
        assert!(registry.carry(1, &broken).is_err());
    }
    let error = registry.carry(1, b"{\"version\":2}").unwrap_err().to_string();
    assert_eq!(error, "the metrics are written in version 2, this process knows 1");
    assert_eq!(registry.render(), text);
    // The control: of the same process what is the same here is taken.
    registry.carry(1, &other.tell()).unwrap();
    let expected = text.replace(
        "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 3",
        "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 4",
    );
    assert_eq!(registry.render(), expected);
}

#[test]
fn every_set_must_have_the_values_and_cells_of_its_family() {
    let registry = busy();
    let told = String::from_utf8(busy().tell()).unwrap();
    let wrong = told
        .replace("\"l\":[\"a\",\"2xx\"]", "\"l\":[\"a\"]")
        .replace("\"n\":[10]", "\"n\":[10,10]")
        .replace("\"n\":[1500000]", "\"n\":[]");
    registry.carry(1, wrong.as_bytes()).unwrap();
    let lines = [
        "ferrule_t_total 10",
        "ferrule_busy_seconds_total 1.5",
        "ferrule_app_things_total{app=\"a\",class=\"2xx\"} 3",
        "ferrule_read_total 14", // the control
    ];
    shows(&registry, &lines);
}

#[test]
fn series_that_idle_are_hidden_here_as_there_and_nothing_of_them_is_lost() {
    let before = process();
    let counter = PER_APP.counter_in(&before, &["a", "2xx"]);
    counter.add(5);
    let start = Instant::now();
    before.sweep(start);
    before.sweep(start + IDLE);
    hides(&before, "app=\"a\"");
    // Hidden there, so hidden here, until it is counted in either.
    let after = process();
    after.carry(1, &before.tell()).unwrap();
    hides(&after, "app=\"a\"");
    counter.add(1);
    after.carry(1, &before.tell()).unwrap();
    shows(&after, &["ferrule_app_things_total{app=\"a\",class=\"2xx\"} 6"]);
    // It idles here, with and without a series of our own; the next generation knows of it.
    let own = PER_APP.counter_in(&after, &["a", "2xx"]);
    own.add(1);
    after.carry_ended();
    let start = Instant::now();
    after.sweep(start);
    after.sweep(start + IDLE);
    hides(&after, "app=\"a\"");
    let next = process();
    next.carry(2, &after.tell()).unwrap();
    hides(&next, "app=\"a\"");
    own.add(1);
    shows(&after, &["ferrule_app_things_total{app=\"a\",class=\"2xx\"} 8"]);
    PER_APP.counter_in(&next, &["a", "2xx"]).add(1);
    shows(&next, &["ferrule_app_things_total{app=\"a\",class=\"2xx\"} 8"]);
    next.carry(2, &after.tell()).unwrap();
    shows(&next, &["ferrule_app_things_total{app=\"a\",class=\"2xx\"} 9"]);
}

#[test]
fn our_own_that_was_evicted_is_shown_with_what_another_process_still_counts() {
    let (before, after) = (process(), process());
    let theirs = PER_APP.counter_in(&before, &["a", "2xx"]);
    let own = PER_APP.counter_in(&after, &["a", "2xx"]);
    own.add(100);
    let start = Instant::now();
    after.sweep(start);
    after.sweep(start + IDLE);
    hides(&after, "app=\"a\"");
    theirs.add(1);
    after.carry(1, &before.tell()).unwrap();
    shows(&after, &["ferrule_app_things_total{app=\"a\",class=\"2xx\"} 101"]);
    own.add(1);
    shows(&after, &["ferrule_app_things_total{app=\"a\",class=\"2xx\"} 102"]);
}

#[test]
fn a_forgotten_app_is_forgotten_in_what_is_carried() {
    let (before, after) = (busy(), process());
    after.carry(1, &before.tell()).unwrap();
    assert!(after.carries() && !before.carries());
    after.forget("app", "a");
    hides(&after, "app=\"a\"");
    assert!(!String::from_utf8(after.tell()).unwrap().contains("\"a\""));
    // One that comes back there with less does not go back here.
    let (before, after) = (process(), process());
    PER_APP.counter_in(&before, &["a", "2xx"]).add(5);
    after.carry(1, &before.tell()).unwrap();
    before.forget("app", "a");
    after.carry(1, &before.tell()).unwrap();
    PER_APP.counter_in(&before, &["a", "2xx"]).add(2);
    after.carry(1, &before.tell()).unwrap();
    shows(&after, &["ferrule_app_things_total{app=\"a\",class=\"2xx\"} 5"]);
}

#[test]
fn carried_sets_are_capped_and_what_is_beyond_is_counted_as_other_once() {
    let before = process();
    let counters: Vec<_> =
        (0..20).map(|app| PER_APP.counter_in(&before, &[&app.to_string(), "2xx"])).collect();
    counters.iter().for_each(|counter| counter.add(10));
    let after = bounded(Config { labels_max: 5, ..Config::default() });
    for round in 0..3 {
        after.carry(1, &before.tell()).unwrap();
        let expected =
            format!("ferrule_app_things_total{{app=\"__other__\",class=\"2xx\"}} {}", 150 + round);
        shows(&after, &[&expected]);
        counters[19].increment(); // "9", which is beyond the first five in order
    }
    assert_eq!(after.render().matches("ferrule_app_things_total{").count(), 6);
    // Room does not move anything while they tell, for it would be counted twice.
    after.forget("app", "0");
    after.carry(1, &before.tell()).unwrap();
    let sum = sum(&after, &PER_APP);
    assert_eq!(sum, 203, "all but what was forgotten and came back as other");
    let text = after.render();
    let shown = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(text.contains(&format!("ferrule_metrics_series {shown}\n")), "{shown}\n{text}");

    let small = bounded(Config { series_max: 20, ..Config::default() });
    small.carry(1, &before.tell()).unwrap();
    assert!(small.inner.totals.carried.load(Relaxed) <= 20);
    let bytes = small.bytes();
    small.carry(1, &before.tell()).unwrap();
    assert_eq!(small.bytes(), bytes, "telling again takes no memory");
    small.carry_ended();
    for app in 0..20 {
        small.forget("app", &app.to_string());
    }
    assert_eq!(small.inner.totals.carried.load(Relaxed), 0);
    assert!(small.bytes() < bytes);
}

fn sum(registry: &Registry, metric: &Metric) -> u64 {
    let families = registry.snapshot().families;
    let family = families.iter().find(|family| family.name == metric.name);
    let points = family.iter().flat_map(|family| &family.points);
    let number = |value: &Value| match value {
        Value::Number(number) => number.cell() as u64,
        Value::Distribution(distribution) => distribution.count,
    };
    points.map(|point| number(&point.value)).sum()
}

#[test]
fn what_is_told_is_bounded() {
    let before = bounded(Config { labels_max: 1_000_000, series_max: 10_000_000, idle: IDLE });
    for app in 0..45_000 {
        PER_APP.counter_in(&before, &[&format!("{app:0>128}"), "2xx"]).increment();
    }
    let told = before.tell();
    assert!((BYTES_MAX / 2..=BYTES_MAX).contains(&told.len()), "{}", told.len());
    bounded(Config::default()).carry(1, &told).unwrap();
}

/// What happens to a node over its generations.
#[derive(Debug, Clone)]
enum Step {
    Count {
        app: usize,
        n: u64,
        old: bool,
    },
    Observe {
        app: usize,
        millis: u64,
        old: bool,
    },
    Open {
        more: bool,
        old: bool,
    },
    /// The old process tells, if there is one.
    Tell,
    /// A new process starts and the one before begins to drain.
    Upgrade,
    /// The old process tells for the last time and ends.
    End,
    /// Time passes without anything being counted.
    Idle,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 1..5_u64, any::<bool>())
            .prop_map(|(app, n, old)| Step::Count { app, n, old }),
        3 => (0..3_usize, 1..3_000_u64, any::<bool>())
            .prop_map(|(app, millis, old)| Step::Observe { app, millis, old }),
        3 => any::<(bool, bool)>().prop_map(|(more, old)| Step::Open { more, old }),
        2 => Just(Step::Tell),
        1 => Just(Step::Upgrade),
        1 => Just(Step::End),
        1 => Just(Step::Idle),
    ]
}

/// One process with what it holds.
struct Process {
    registry: Registry,
    /// By app; kept, because what is evicted is gone with its last handle.
    counters: BTreeMap<usize, Counter>,
    histograms: BTreeMap<usize, Histogram>,
    open: i64,
    start: Instant,
}

impl Process {
    fn new() -> Self {
        let (counters, histograms) = (BTreeMap::new(), BTreeMap::new());
        Self { registry: process(), counters, histograms, open: 0, start: Instant::now() }
    }

    fn count(&mut self, app: usize, n: u64) {
        let new = || PER_APP.counter_in(&self.registry, &[APPS[app], "2xx"]);
        self.counters.entry(app).or_insert_with(new).add(n);
    }

    fn observe(&mut self, app: usize, took: Duration) {
        let new = || WAITS.histogram_in(&self.registry, &[APPS[app]]);
        self.histograms.entry(app).or_insert_with(new).record(took);
    }
}

const APPS: [&str; 3] = ["a", "b", "c"];

/// The nodes of a test: the one that is scraped, and the one before it while it drains.
struct Node {
    old: Option<Process>,
    new: Process,
    generation: u64,
}

impl Node {
    /// Where it happens: in the old process, if there is one.
    fn at(&mut self, old: bool) -> &mut Process {
        self.old.as_mut().filter(|_| old).unwrap_or(&mut self.new)
    }

    fn tell(&self) {
        if let Some(old) = &self.old {
            self.new.registry.carry(self.generation - 1, &old.registry.tell()).unwrap();
        }
    }

    fn end(&mut self) {
        self.tell();
        if self.old.take().is_some() {
            self.new.registry.carry_ended();
        }
    }
}

/// Every counter, bucket and sum that a scrape shows, without gauges.
fn scraped(registry: &Registry) -> BTreeMap<String, f64> {
    let mut shown = BTreeMap::new();
    for family in registry.snapshot().families {
        if family.kind == Kind::Gauge || !OWN.iter().any(|metric| metric.name == family.name) {
            continue;
        }
        for point in family.points {
            let name = format!("{} {:?}", family.name, point.labels);
            match point.value {
                Value::Number(number) => drop(shown.insert(name, number.as_f64())),
                Value::Distribution(of) => {
                    for (bucket, count) in of.counts.iter().enumerate() {
                        shown.insert(format!("{name} {bucket}"), *count as f64);
                    }
                    shown.insert(format!("{name} sum"), of.sum.as_f64());
                }
            }
        }
    }
    shown
}

proptest! {
    #[test]
    fn for_any_split_over_generations_sums_are_those_of_one_process_and_nothing_decreases(
        steps in prop::collection::vec(step(), 0..60)
    ) {
        let mut one = Process::new(); // the same without upgrades
        let mut node = Node { old: None, new: Process::new(), generation: 1 };
        let mut before = BTreeMap::new();
        for step in steps {
            match step {
                Step::Count { app, n, old } => {
                    one.count(app, n);
                    node.at(old).count(app, n);
                }
                Step::Observe { app, millis, old } => {
                    let took = Duration::from_millis(millis);
                    one.observe(app, took);
                    node.at(old).observe(app, took);
                }
                Step::Open { more, old } => {
                    let at = node.at(old);
                    let n = if more { 1 } else { -(at.open.min(1)) };
                    at.open += n;
                    OPEN.gauge_in(&at.registry, &["tcp"]).add(n);
                    OPEN.gauge_in(&one.registry, &["tcp"]).add(n);
                }
                Step::Tell => node.tell(),
                Step::Upgrade => {
                    node.end();
                    node.generation += 1;
                    node.old = Some(std::mem::replace(&mut node.new, Process::new()));
                    node.tell(); // before it is scraped
                }
                Step::End => node.end(),
                Step::Idle => {
                    let Process { registry, start, .. } = &mut node.new;
                    registry.sweep(*start);
                    *start += IDLE;
                    registry.sweep(*start);
                }
            }
            let now = scraped(&node.new.registry);
            for (name, value) in &now {
                let earlier = before.insert(name.clone(), *value).unwrap_or(0.0);
                prop_assert!(*value >= earlier, "{name}: {value} after {earlier}");
            }
        }
        node.tell();
        // What idled may be hidden, so what is shown is compared.
        let (now, expected) = (scraped(&node.new.registry), scraped(&one.registry));
        for (name, value) in &now {
            prop_assert!((value - expected[name]).abs() < 1e-9, "{name}: {value}");
        }
        let open = node.new.open + node.old.as_ref().map_or(0, |old| old.open);
        let gauge = |registry: &Registry| {
            registry.snapshot().families.iter().find(|family| family.name == OPEN.name).map_or(
                0,
                |family| match family.points[0].value {
                    Value::Number(number) => number.cell(),
                    Value::Distribution(_) => unreachable!("a gauge"),
                },
            )
        };
        prop_assert_eq!(gauge(&node.new.registry), open);
        node.end();
        prop_assert_eq!(gauge(&node.new.registry), node.new.open);
    }
}
