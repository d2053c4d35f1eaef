//! `[limits]` and `[timeouts]`: the range of each bound, and which bound may not exceed which.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use control::document::Table;
use telemetry::shared_counts;

use crate::config::{Limits, Timeouts};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// HTTP/1 is read into a buffer that hyper does not let be smaller.
const HEAD_BYTES_MIN: usize = 8 * KIB;

/// RFC 9113, section 6.9.2: a connection's window begins with this and SETTINGS cannot lower it.
const CONNECTION_WINDOW_MIN: u32 = 65_535;

pub(super) fn limits(mut section: Table<'_>) -> Limits {
    let mut limits = Limits::default();
    let Limits {
        connections_max,
        app_connections_max,
        requests_in_flight_max,
        handshakes_in_flight_max,
        handshakes_per_prefix_max,
        queue_length_max,
        request_target_bytes_max,
        header_bytes_max,
        head_bytes_max,
        header_fields_max,
        h2_streams_max,
        h2_stream_window_bytes,
        h2_connection_window_bytes,
        h2_send_buffer_bytes,
        h2_connection_send_buffer_bytes,
        h2_control_frames_max,
        h2_resets_max,
        upstream_idle_per_instance_max,
        upstream_idle_max,
        upstream_streams_max,
        replay_bytes_max,
        attempts_max,
        retry_budget_percent,
        hops_max,
        shared_counts_max,
        metric_labels_max,
        metric_series_max,
    } = &mut limits;

    let of = &mut section;
    count(of, "connections_max", 1..=10_000_000, connections_max);
    count(of, "app_connections_max", 1..=10_000_000, app_connections_max);
    count(of, "requests_in_flight_max", 1..=10_000_000, requests_in_flight_max);
    count(of, "handshakes_in_flight_max", 1..=1_000_000, handshakes_in_flight_max);
    count(of, "handshakes_per_prefix_max", 1..=1_000_000, handshakes_per_prefix_max);
    count(of, "queue_length_max", 0..=1_000_000, queue_length_max);
    bytes(of, "request_target_bytes_max", 256..=MIB, request_target_bytes_max);
    bytes(of, "header_bytes_max", 256..=MIB, header_bytes_max);
    bytes(of, "head_bytes_max", HEAD_BYTES_MIN..=MIB, head_bytes_max);
    count(of, "header_fields_max", 10..=10_000, header_fields_max);
    count(of, "h2_streams_max", 1..=10_000, h2_streams_max);
    bytes(of, "h2_stream_window_bytes", 4_096..=16 << 20, h2_stream_window_bytes);
    let windows = CONNECTION_WINDOW_MIN..=256 << 20;
    bytes(of, "h2_connection_window_bytes", windows, h2_connection_window_bytes);
    bytes(of, "h2_send_buffer_bytes", 4 * KIB..=16 * MIB, h2_send_buffer_bytes);
    let together = 64 * KIB..=1024 * MIB;
    bytes(of, "h2_connection_send_buffer_bytes", together, h2_connection_send_buffer_bytes);
    count(of, "h2_control_frames_max", 100..=10_000_000, h2_control_frames_max);
    count(of, "h2_resets_max", 1..=1_000_000, h2_resets_max);
    count(of, "upstream_idle_per_instance_max", 0..=65_535, upstream_idle_per_instance_max);
    count(of, "upstream_idle_max", 0..=1_000_000, upstream_idle_max);
    count(of, "upstream_streams_max", 1..=1_000_000, upstream_streams_max);
    bytes(of, "replay_bytes_max", 0..=16 * MIB, replay_bytes_max);
    count(of, "attempts_max", 1..=20, attempts_max);
    count(of, "retry_budget_percent", 0..=100, retry_budget_percent);
    count(of, "hops_max", 1..=8, hops_max);
    count(of, "shared_counts_max", 1_024..=shared_counts::ROWS_MAX, shared_counts_max);
    count(of, "metric_labels_max", 10..=100_000, metric_labels_max);
    count(of, "metric_series_max", 1_000..=1_000_000, metric_series_max);

    let connections = ("connections_max", *connections_max);
    at_most(of, "app_connections_max", app_connections_max, connections);
    at_most(of, "handshakes_in_flight_max", handshakes_in_flight_max, connections);
    let handshakes = ("handshakes_in_flight_max", *handshakes_in_flight_max);
    at_most(of, "handshakes_per_prefix_max", handshakes_per_prefix_max, handshakes);
    let head = ("head_bytes_max", *head_bytes_max);
    at_most(of, "request_target_bytes_max", request_target_bytes_max, head);
    at_most(of, "header_bytes_max", header_bytes_max, head);
    let window = ("h2_connection_window_bytes", *h2_connection_window_bytes);
    at_most(of, "h2_stream_window_bytes", h2_stream_window_bytes, window);
    let idle = ("upstream_idle_max", *upstream_idle_max);
    at_most(of, "upstream_idle_per_instance_max", upstream_idle_per_instance_max, idle);
    section.finish();
    limits
}

pub(super) fn timeouts(mut section: Table<'_>) -> Timeouts {
    const SHORTEST: Duration = Duration::from_millis(10);
    const MINUTES: Duration = Duration::from_secs(10 * 60);
    const HOUR: Duration = Duration::from_secs(60 * 60);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    let mut timeouts = Timeouts::default();
    let Timeouts {
        handshake,
        request_head,
        request_body,
        response_write,
        h1_idle,
        h2_idle,
        websocket_idle,
        tcp_idle,
        connect,
        response_head,
        response_body,
        upstream_idle,
        queue,
        metric_idle,
        drain_delay,
        drain_spread,
        drain,
        drain_websocket,
        drain_tcp,
        handoff,
        handoff_warm,
        handoff_probation,
    } = &mut timeouts;

    let of = &mut section;
    wait(of, "handshake", SHORTEST..=MINUTES, handshake);
    wait(of, "request_head", SHORTEST..=MINUTES, request_head);
    wait(of, "request_body", SHORTEST..=HOUR, request_body);
    wait(of, "response_write", SHORTEST..=HOUR, response_write);
    wait(of, "h1_idle", SHORTEST..=HOUR, h1_idle);
    wait(of, "h2_idle", SHORTEST..=HOUR, h2_idle);
    wait(of, "websocket_idle", SHORTEST..=DAY, websocket_idle);
    wait(of, "tcp_idle", SHORTEST..=DAY, tcp_idle);
    wait(of, "connect", SHORTEST..=MINUTES, connect);
    wait(of, "response_head", SHORTEST..=HOUR, response_head);
    wait(of, "response_body", SHORTEST..=HOUR, response_body);
    wait(of, "upstream_idle", SHORTEST..=HOUR, upstream_idle);
    wait(of, "queue", Duration::ZERO..=MINUTES, queue);
    wait(of, "metric_idle", SHORTEST..=DAY, metric_idle);
    wait(of, "drain_delay", Duration::ZERO..=MINUTES, drain_delay);
    wait(of, "drain_spread", Duration::ZERO..=HOUR, drain_spread);
    wait(of, "drain", Duration::ZERO..=DAY, drain);
    wait(of, "drain_websocket", Duration::ZERO..=DAY, drain_websocket);
    wait(of, "drain_tcp", Duration::ZERO..=DAY, drain_tcp);
    if drain_spread > drain {
        if of.has("drain_spread") {
            of.error("drain_spread", "must not be above drain, or some are cut untold");
        }
        *drain_spread = *drain / 2;
    }
    wait(of, "handoff", SHORTEST..=MINUTES, handoff);
    wait(of, "handoff_warm", Duration::ZERO..=Duration::from_secs(60), handoff_warm);
    if *handoff_warm > *handoff / 2 {
        if of.has("handoff_warm") {
            of.error("handoff_warm", "must not be above half of handoff, or nobody takes over");
        }
        *handoff_warm = *handoff / 2;
    }
    wait(of, "handoff_probation", Duration::ZERO..=Duration::from_secs(60), handoff_probation);
    section.finish();
    timeouts
}

fn count<T>(section: &mut Table<'_>, key: &'static str, range: RangeInclusive<T>, value: &mut T)
where
    T: Copy + PartialOrd + fmt::Display + TryFrom<i64>,
{
    if let Some(written) = section.integer(key, range) {
        *value = written;
    }
}

fn bytes<T>(section: &mut Table<'_>, key: &'static str, range: RangeInclusive<T>, value: &mut T)
where
    T: Copy + PartialOrd + fmt::Display + TryFrom<i64>,
{
    if let Some(written) = section.bytes(key, range) {
        *value = written;
    }
}

fn wait(
    section: &mut Table<'_>,
    key: &'static str,
    range: RangeInclusive<Duration>,
    value: &mut Duration,
) {
    if let Some(written) = section.duration(key, range) {
        *value = written;
    }
}

/// A bound within a bound: a default follows the outer one down, a written value must fit.
fn at_most<T: Copy + PartialOrd + fmt::Display>(
    section: &Table<'_>,
    key: &'static str,
    value: &mut T,
    (outer_key, outer): (&str, T),
) {
    if *value <= outer {
        return;
    }
    if section.has(key) {
        section.error(key, format!("must not be above {outer_key}, which is {outer}"));
    }
    *value = outer;
}
