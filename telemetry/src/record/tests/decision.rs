//! Which requests are kept.

use super::*;

fn kept(bench: &mut Bench, note: impl FnOnce(&Bench, &Record)) -> Option<Keep> {
    let record = bench.begin();
    note(bench, &record);
    drop(record);
    bench.outboxes.pop().map(|finished| finished.keep)
}

#[test]
fn each_reason_keeps_and_nothing_special_does_not() {
    let mut bench = Bench::quiet();
    let noted = |note: fn(&mut Wide)| move |_: &Bench, record: &Record| record.wide(note);
    assert_eq!(kept(&mut bench, |_, _| ()), None);
    assert_eq!(kept(&mut bench, noted(|wide| wide.status = Some(499))), None);
    assert_eq!(kept(&mut bench, noted(|wide| wide.status = Some(500))), Some(Keep::Error));
    assert_eq!(kept(&mut bench, noted(|wide| wide.error = Some("PC01"))), Some(Keep::Error));
    assert_eq!(kept(&mut bench, noted(|wide| wide.attempts = 1)), None);
    assert_eq!(kept(&mut bench, noted(|wide| wide.attempts = 2)), Some(Keep::Retried));
    assert_eq!(kept(&mut bench, |bench, _| bench.pass(500)), None);
    assert_eq!(kept(&mut bench, |bench, _| bench.pass(501)), Some(Keep::Slow));
    let verbose = |_: &Bench, record: &Record| {
        record.raise(Verbosity::Verbose);
    };
    assert_eq!(kept(&mut bench, verbose), Some(Keep::Verbose));
    bench.shared.note_anomaly();
    assert_eq!(kept(&mut bench, |_, _| ()), Some(Keep::NearAnomaly));
    bench.pass(60_000);
    assert_eq!(kept(&mut bench, |_, _| ()), None);
}

#[test]
fn slow_is_more_than_is_usual_for_the_app() {
    let mut bench = Bench::quiet();
    let app: Arc<str> = "reports".into();
    let takes = |milliseconds| {
        let app = Arc::clone(&app);
        move |bench: &Bench, record: &Record| {
            record.wide(|wide| wide.app = Some(app));
            bench.pass(milliseconds);
        }
    };
    assert_eq!(kept(&mut bench, takes(1000)), Some(Keep::Slow), "nothing is usual yet");
    for _ in 0..100 {
        kept(&mut bench, takes(1000));
    }
    assert_eq!(kept(&mut bench, takes(1000)), None);
    assert_eq!(kept(&mut bench, takes(3500)), None);
    assert_eq!(kept(&mut bench, takes(5000)), Some(Keep::Slow));
}

#[test]
fn a_tunnel_is_judged_by_the_way_to_it() {
    let mut bench = Bench::quiet();
    let tunnel = |head| {
        move |bench: &Bench, record: &Record| {
            record.wide(|wide| {
                wide.protocol = Protocol::WebSocket;
                wide.head_after = Some(Duration::from_millis(head));
            });
            bench.pass(200_000);
        }
    };
    assert_eq!(kept(&mut bench, tunnel(20)), None);
    assert_eq!(kept(&mut bench, tunnel(900)), Some(Keep::Slow));
}

#[test]
fn one_in_a_hundred_is_sampled() {
    let mut bench = Bench::new(Config { exports_per_second_max: 1_000_000, ..Config::default() });
    let count = (0..20_000).filter(|_| kept(&mut bench, |_, _| ()).is_some()).count();
    assert!((100..300).contains(&count), "{count} of 20000");
}

#[test]
fn the_caps_hold_per_app_and_node_and_count() {
    let mut bench = Bench::quiet();
    let apps: Vec<Arc<str>> = (0..10).map(|app| format!("app-{app}").into()).collect();
    let storm = |bench: &mut Bench| {
        let mut count = 0;
        for app in &apps {
            for _ in 0..50 {
                let noted = |_: &Bench, record: &Record| {
                    failed(record);
                    record.wide(|wide| wide.app = Some(Arc::clone(app)));
                };
                count += usize::from(kept(bench, noted).is_some());
            }
        }
        count
    };
    assert_eq!(storm(&mut bench), 100);
    let dropped = bench.dropped("cap") + bench.dropped("app_cap");
    assert_eq!(dropped, 400);
    assert!(bench.dropped("app_cap") >= 5 * 30, "twenty of each app");
    // What another node sampled, and what somebody asked to see, is beyond the caps.
    let remote = Remote { trace: TraceId(7), span: SpanId(7) };
    drop(bench.recorder.begin(Begin { parent: Some((remote, true)), ..bench.head() }));
    let continued = bench.outboxes.pop().expect("kept");
    assert!(continued.continued && continued.wide.parent == Some(remote));
    let verbose = |_: &Bench, record: &Record| {
        record.raise(Verbosity::Verbose);
    };
    assert_eq!(kept(&mut bench, verbose), Some(Keep::Verbose));
    bench.pass(1000);
    assert_eq!(storm(&mut bench), 100, "the next second has room again");
}

#[test]
fn a_peer_that_did_not_sample_changes_nothing() {
    let mut bench = Bench::quiet();
    let remote = Remote { trace: TraceId(7), span: SpanId(7) };
    drop(bench.recorder.begin(Begin { parent: Some((remote, false)), ..bench.head() }));
    assert!(bench.outboxes.pop().is_none());
}

#[test]
fn the_defaults_are_valid_and_every_contradiction_is_named() {
    assert_eq!(Config::default().problems(), []);
    let broken = Config {
        buffer_bytes: 0,
        verbose_buffer_bytes: 8 << 20,
        entries_max: 0,
        segment_after: Duration::ZERO,
        slow: Duration::ZERO,
        slow_factor: 0,
        sample_percent: f64::NAN,
        exports_per_second_max: 1,
        app_exports_per_second_max: 2,
        anomaly_window: Duration::MAX,
        budget_bytes: 0,
        retained_buffers: 0,
        access_log_waiting_max: 0,
    };
    assert_eq!(broken.problems().len(), 10);
}
