//! The timeline and the report.

use super::*;
use crate::record::report::{BYTES_MAX, Candidate, compact};
use crate::record::timeline::render;
use crate::{event, site};

fn example(bench: &mut Bench) -> Finished {
    let remote = Remote { trace: TraceId(0xabc), span: SpanId(1) };
    let record = bench.recorder.begin(Begin { parent: Some((remote, false)), ..bench.head() });
    bench.pass(1);
    event!(record, "identified", dedicated = true);
    {
        let mut attempt = record.enter_span_with(site!("attempt", number), &[1u64.into()]);
        bench.pass(20);
        let text = Value::Exposed("a\x1b[31m\nb");
        record.event(site!(WARN, "refused", by, why), &[Value::Catalogued("hello-1"), text]);
        attempt.fail();
    }
    let second = record.enter_span_with(site!("attempt", number), &[2u64.into()]);
    record.field("instance", Value::Catalogued("hello-2"));
    {
        let _connect = record.enter_span(site!("connect"));
        bench.pass(2);
    }
    drop(second);
    let elapsed = record.elapsed();
    record.wide(|wide| {
        wide.app = Some("hello".into());
        wide.instance = Some("hello-2".into());
        wide.node = Some("fra-1".into());
        let (client, path) = (Some([198, 51, 100, 9].into()), Some("/\x1b[2J".into()));
        wide.exposed = Some(Box::new(Exposed { client, path, ..Exposed::default() }));
        (wide.status, wide.attempts, wide.head_after) = (Some(200), 2, Some(elapsed));
    });
    drop(record);
    bench.outboxes.pop().expect("kept")
}

#[test]
fn a_timeline_has_a_line_for_each_span_and_event() {
    let finished = example(&mut Bench::quiet());
    let expected = "\
trace 00000000000000000000000000000abc  request 01JD5W5S8H3E4Q9GXK2TQZ7M3B-ams
GET, HTTP/1 over TLS, app hello, instance hello-2, node fra-1
kept as retried, 200, 2 attempts, head after 23.000 ms, ended after 23.000 ms, 1 segment
exposed: client=198.51.100.9 path=\"/\\u{1b}[2J\"
       1.000  - identified <telemetry::record::tests::reading> dedicated=true
       1.000  attempt  20.000 ms (busy 20.000, idle 0.000, 1 polls) FAILED number=1
      21.000    - refused [WARN] <telemetry::record::tests::reading> by=\"hello-1\" why=\"a\\u{1b}[31m\\nb\"
      21.000  attempt  2.000 ms (busy 2.000, idle 0.000, 1 polls) number=2 instance=\"hello-2\"
      21.000    connect  2.000 ms (busy 2.000, idle 0.000, 1 polls)
";
    assert_eq!(render([&finished]), expected);
    assert_eq!(render([]), "");
}

#[test]
fn a_span_of_several_segments_is_one_line() {
    let mut bench = Bench::quiet();
    let record = bench.begin();
    failed(&record);
    let tunnel = record.open_span(site!("tunnel", kind), &["websocket".into()]);
    bench.pass(300_000);
    bench.recorder.sweep(bench.recorder.now());
    let open = bench.outboxes.pop().expect("a segment");
    assert!(render([&open]).contains("tunnel  open"), "{}", render([&open]));
    drop(tunnel);
    drop(record);
    let end = bench.outboxes.pop().expect("the end");
    let text = render([&open, &end]);
    assert_eq!(text.matches("tunnel").count(), 1, "{text}");
    assert!(text.contains("tunnel  300000.000 ms") && text.contains("kind=websocket"), "{text}");
    assert!(text.contains("2 segments"), "{text}");
}

#[test]
fn a_report_says_where_a_request_went_and_how_long_it_took() {
    let finished = example(&mut Bench::quiet());
    let candidates = [
        Candidate { node: "ams-1", rtt: None, load: 200 },
        Candidate { node: "fra-1", rtt: Some(Duration::from_micros(6250)), load: 3 },
    ];
    let report = compact("ams-1", "ams", &finished, &candidates);
    let expected = serde_json::json!({
        "trace": "00000000000000000000000000000abc",
        "node": "ams-1",
        "region": "ams",
        "app": "hello",
        "instance": "hello-2",
        "instance_node": "fra-1",
        "ms": 23.0,
        "head_ms": 23.0,
        "retries": 1,
        "candidates": [["ams-1", null, 200], ["fra-1", 6.25, 3]],
        "spans": [["attempt", 1.0, 20.0], ["attempt", 21.0, 2.0], ["connect", 21.0, 2.0]],
    });
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report, expected);
}

#[test]
fn a_report_fits_a_header_whatever_it_is_about() {
    let bench = Bench::quiet();
    let record = bench.begin();
    record.raise(Verbosity::Verbose);
    (0..500).for_each(|_| drop(record.enter_span(site!("a_span_with_a_rather_long_name"))));
    let long: Arc<str> = "ä\u{7f}\n\"😀".repeat(200).into();
    record.wide(|wide| {
        (wide.app, wide.instance, wide.node) =
            (Some(Arc::clone(&long)), Some(Arc::clone(&long)), Some(Arc::clone(&long)));
    });
    let so_far = record.so_far();
    assert!(so_far.open);
    assert_eq!(so_far.entries().len(), 500);
    let candidates = [Candidate { node: &long, rtt: None, load: u64::MAX }; 100];
    let report = compact(&long, &long, &so_far, &candidates);
    assert!(report.len() <= BYTES_MAX, "{}", report.len());
    assert!(report.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{report}");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let listed = |key: &str| report[key].as_array().expect("a list").len();
    let cut = report["cut"].as_u64().expect("some were cut") as usize;
    assert_eq!(listed("spans") + listed("candidates") + cut, 600);
    assert!(listed("spans") > 0);
}
