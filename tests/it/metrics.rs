//! Metrics of a real node: what it exports is what the catalogue declares, and what Prometheus reads.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proxy::metrics::catalogue;
use telemetry::metrics::Kind;
use tests::app::App;
use tests::client::Raw;
use tests::edge::Edge;
use tests::instance::Echo;
use tests::strict::Response;
use tests::{need, wait};

/// A node that has answered a request, so that metrics which come with one are there.
fn used() -> (Echo, Edge) {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    wait::until("the request is counted", || edge.metric("ferrule_requests_total") == 1.0);
    (echo, edge)
}

fn scrape(edge: &Edge, accept: &str) -> Response {
    let mut client = Raw::tcp(edge.admin());
    client.send(format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n"));
    client.response()
}

/// What a current Prometheus sends.
const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";

/// Metrics of parts that this node has not switched on.
const OFF: [&str; 4] = [
    "ferrule_access_log_dropped_total",
    "ferrule_access_log_errors_total",
    "ferrule_filter_app_packets_total",
    "ferrule_filter_entries",
];

#[test]
fn a_node_exports_what_the_catalogue_declares_and_nothing_else() {
    let (_echo, edge) = used();
    let scrape = edge.admin_get("/metrics");
    let exported: BTreeSet<(&str, &str)> = scrape
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let declared: BTreeSet<(&str, &str)> = catalogue::ALL
        .iter()
        .copied()
        .flatten()
        .map(|metric| (metric.name, metric.kind.as_str()))
        .collect();
    let undeclared: Vec<_> = exported.difference(&declared).collect();
    let missing: Vec<_> =
        declared.difference(&exported).filter(|(name, _)| !OFF.contains(name)).collect();
    assert!(undeclared.is_empty(), "exported, but in no catalogue: {undeclared:?}");
    assert!(missing.is_empty(), "in the catalogue, but not exported: {missing:?}");
    assert!(!exported.iter().any(|(name, _)| OFF.contains(name)), "not off: {OFF:?}");
}

#[test]
fn every_series_has_the_labels_its_metric_declares() {
    let (_echo, edge) = used();
    let scrape = edge.admin_get("/metrics");
    for metric in catalogue::ALL.iter().copied().flatten() {
        let series = scrape.text().lines().filter(|line| {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            name == metric.name || metric.kind == Kind::Histogram && is_part(metric.name, name)
        });
        for line in series {
            let labels = line.split_once('{').map_or("", |(_, rest)| rest);
            let names: Vec<&str> = labels
                .split("=\"")
                .filter_map(|part| part.rsplit([',', '{', '"']).next())
                .filter(|name| !name.is_empty() && !name.contains('}') && *name != "le")
                .collect();
            assert_eq!(names, metric.labels, "{line}");
        }
    }
}

fn is_part(family: &str, name: &str) -> bool {
    ["_bucket", "_sum", "_count"].iter().any(|part| name.strip_suffix(part) == Some(family))
}

#[test]
fn promtool_finds_nothing_to_say() {
    let Some(promtool) = need::tool("promtool") else { return };
    let (_echo, edge) = used();
    let scrape = edge.admin_get("/metrics");
    let content_type = scrape.header("content-type").unwrap_or_default();
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(lint(&promtool, scrape.text()), (true, String::new()));
    // The control: a name that breaks the rules is found.
    let broken = "# HELP ferrule_x x\n# TYPE ferrule_x counter\nferrule_x 1\n";
    assert!(lint(&promtool, broken).1.contains("_total"));
}

/// Whether `promtool check metrics` accepts a scrape, and what it says.
fn lint(promtool: &Path, scrape: &str) -> (bool, String) {
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    child.stdin.take().unwrap().write_all(scrape.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn prometheus_reads_the_openmetrics_that_it_asks_for() {
    let Some(promtool) = need::tool("promtool") else { return };
    let (_echo, edge) = used();
    let scrape = scrape(&edge, OPENMETRICS);
    assert_eq!(
        scrape.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert_eq!(import(&promtool, scrape.text()), Ok(()));
    // The control: without its last line it is a scrape that broke off.
    let cut = scrape.text().replace("# EOF\n", "");
    assert!(import(&promtool, &cut).is_err());
}

/// Reads a scrape with Prometheus' own parser of OpenMetrics, which promtool only applies to files
/// whose samples have times.
fn import(promtool: &Path, scrape: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, blocks) = (folder.path().join("scrape"), folder.path().join("blocks"));
    let timed: String = scrape.lines().map(|line| format!("{}\n", at_a_time(line))).collect();
    std::fs::write(&file, timed).expect("the folder is ours");
    let output = Command::new(promtool)
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&file, &blocks])
        .output()
        .expect("promtool starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// A sample with a time behind its value, before its exemplar.
fn at_a_time(line: &str) -> String {
    if line.starts_with('#') {
        return line.to_owned();
    }
    match line.split_once(" # ") {
        Some((sample, exemplar)) => format!("{sample} 1700000000 # {exemplar}"),
        None => format!("{line} 1700000000"),
    }
}

#[test]
fn the_registry_s_own_text_is_openmetrics_with_exemplars_too() {
    use std::time::Duration;
    use telemetry::metrics::{Format, Metric, Registry};
    use telemetry::record::model::TraceId;

    let Some(promtool) = need::tool("promtool") else { return };
    static WAITS: Metric =
        Metric::histogram("ferrule_wait_seconds", &["app"], &[0.1, 1.0], "Says \"wait\".\\")
            .with_exemplars();
    let registry = Registry::new(1, 10);
    let at = Duration::from_millis(1_700_000_000_123);
    let histogram = WAITS.histogram_in(&registry, &["a\"b\\c\nd"]);
    histogram.record_traced(Duration::from_millis(300), TraceId(7), at);
    registry.counter("ferrule_things_total", "Things.", &[]).increment();
    registry.gauge_read("ferrule_age_seconds", "Age.", &[], || f64::NAN);
    let text = registry.render_as(Format::OpenMetrics);
    assert!(text.contains(" # {trace_id=\""), "{text}");
    assert_eq!(import(&promtool, &text), Ok(()), "{text}");
    assert!(import(&promtool, &text.replace("# {trace_id", "# trace_id")).is_err());
}
