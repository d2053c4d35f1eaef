//! Telemetry of real nodes: what a collector, an operator and a file see of requests.

mod traces;
mod decision;
mod canary;
mod verbose;
mod hostile;
mod access_log;
mod streams;
mod spans;
mod exemplars;

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tests::collector::{Collector, attribute};
use tests::edge::Edge;

/// Attributes by key.
fn named(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |key| attribute(attributes, key).unwrap_or_default();
    attributes.iter().map(|pair| (&*pair.key, text(&pair.key))).collect()
}

/// Asserts that `attributes` are exactly `expected`; `*` is any value.
#[track_caller]
fn assert_attributes(attributes: &[KeyValue], expected: &[(&str, &str)]) {
    let found = named(attributes);
    assert_eq!(found.len(), attributes.len(), "no key twice");
    let any: BTreeMap<&str, String> = expected
        .iter()
        .map(|(key, value)| {
            let any = *value == "*" && found.contains_key(key);
            (*key, if any { found[key].clone() } else { (*value).to_owned() })
        })
        .collect();
    assert_eq!(found, any);
}

fn value(span: &Span, key: &str) -> String {
    attribute(&span.attributes, key).unwrap_or_default()
}

fn is_server(span: &Span) -> bool {
    span.kind() == SpanKind::Server
}

/// The spans of requests as such, in the order they came.
fn servers(collector: &Collector) -> Vec<Span> {
    collector.spans().into_iter().filter(is_server).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that the ledger has of `owner`.
fn ledger(edge: &Edge, owner: &str) -> f64 {
    edge.metrics().sum_with("ferrule_ledger_bytes", &[("owner", owner)])
}

/// Records that were kept for `reason`.
fn kept(edge: &Edge, reason: &str) -> f64 {
    edge.metrics().sum_with("ferrule_records_kept_total", &[("reason", reason)])
}

/// Telemetry that was given up for `reason`.
fn dropped(edge: &Edge, reason: &str) -> f64 {
    edge.metrics().sum_with("ferrule_telemetry_dropped_total", &[("reason", reason)])
}
