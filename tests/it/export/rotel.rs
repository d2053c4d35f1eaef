//! The same, as a collector nobody here wrote understands it.

use std::time::Duration;

use telemetry::export::{Config, LogRecord, Severity};
use tests::collector::{Rotel, Transport};
use tests::wait;

use super::fed::{BEGAN, Fed, Node, quick};
use super::over;

#[test]
fn rotel_prints_the_record_that_was_sent() {
    // But for the resource, whose attributes have no order.
    let expected = include_str!("rotel.txt");
    for transport in [Transport::Http, Transport::Grpc] {
        let Some(rotel) = Rotel::start("traces") else { return };
        let config =
            Config { endpoint: Some(rotel.endpoint(transport)), ..over(transport, quick()) };
        let node = Node::start_with(config, &[]);
        node.worker.send(Fed::full()).unwrap();
        wait::until("rotel has accepted it", || node.counts.sent("traces") == 3);
        let lines = expected.lines().count();
        let spans = || {
            let output = rotel.output();
            let (_, spans) = output.split_once("ScopeSpans #0\n").unwrap_or_default();
            spans.lines().map(|line| line.trim_end().to_owned() + "\n").collect::<String>()
        };
        wait::until("rotel has printed it", || spans().lines().count() >= lines);
        assert_eq!(spans(), expected);
    }
}

#[test]
fn rotel_accepts_logs_and_metrics() {
    for transport in [Transport::Http, Transport::Grpc] {
        let Some(rotel) = Rotel::start("metrics") else { return };
        let endpoint = Some(rotel.endpoint(transport));
        let metric_interval = Duration::from_millis(100);
        let config = Config { endpoint, metric_interval, ..over(transport, quick()) };
        let node = Node::start_with(config, &[]);
        node.handle.log(LogRecord {
            severity: Severity::Fatal,
            at: BEGAN,
            body: "out of memory".to_owned(),
            attributes: Vec::new(),
        });
        wait::until("rotel has accepted the log", || node.counts.sent("logs") == 1);
        wait::until("rotel has accepted metrics", || node.counts.sent("metrics") >= 4);
        wait::until("rotel has printed metrics", || {
            rotel.output().contains("ferrule_telemetry_sent_total")
        });
        assert_eq!(node.counts.dropped_in_all(), 0);
    }
}
