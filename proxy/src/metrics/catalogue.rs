//! Every metric of the node, declared once: what it is called, counts and says.

use telemetry::metrics::{Metric, SECONDS};

/// What a node may export; each list belongs to the crate that counts.
pub const ALL: &[&[&Metric]] = &[telemetry::metrics::catalogue::ALL, OWN];

telemetry::catalogue! {
    /// Metrics of the data plane.
    pub OWN;

    // Connections of clients and of other nodes.
    DOWNSTREAM_CONNECTIONS: Metric::gauge(
        "ferrule_downstream_connections",
        &[],
        "Client connections that are open."
    ).adding_up();
    DOWNSTREAM_ACCEPTED: Metric::counter(
        "ferrule_downstream_accepted_total",
        &[],
        "Client connections accepted."
    );
    ACCEPT_ERRORS: Metric::counter(
        "ferrule_accept_errors_total",
        &[],
        "Failed accepts, descriptor exhaustion among them."
    );
    MESH_CONNECTIONS: Metric::gauge(
        "ferrule_mesh_connections",
        &[],
        "Connections of other nodes that are open."
    ).adding_up();
    CONNECTION_SERVICES: Metric::gauge(
        "ferrule_connection_services",
        &[],
        "Tower services that live; one for each HTTP connection."
    ).adding_up();
    TLS_HANDSHAKES: Metric::counter(
        "ferrule_tls_handshakes_total",
        &["result"],
        "TLS handshakes of clients that ended, by how."
    );
    TLS_HANDSHAKES_IN_FLIGHT: Metric::gauge(
        "ferrule_tls_handshakes_in_flight",
        &[],
        "TLS handshakes of clients that have begun and not ended."
    ).adding_up();

    // Requests.
    LISTEN_MODE: Metric::gauge("ferrule_listen_mode", &["mode"], "1 for how clients get in.");
    LAST_EXIT: Metric::gauge(
        "ferrule_last_exit",
        &["verdict"],
        "1 for how the last process of this node ended."
    );

    // The kernel's filter.
    FILTER_PACKETS: Metric::counter(
        "ferrule_filter_packets_total",
        &["verdict"],
        "Packets that the kernel's filter judged, by verdict."
    ).kept_outside();
    FILTER_APP_PACKETS: Metric::counter(
        "ferrule_filter_app_packets_total",
        &["app", "verdict"],
        "Packets that asked for something at an app's addresses, by verdict."
    ).per("app").kept_outside();
    FILTER_ENTRIES: Metric::gauge(
        "ferrule_filter_entries",
        &["map"],
        "Entries of the filter's maps."
    );
    FILTER_BEHIND: Metric::gauge(
        "ferrule_filter_behind",
        &[],
        "Apps whose newest policy is not in the kernel yet."
    );
    FILTER_MODE: Metric::gauge(
        "ferrule_filter_mode",
        &["mode"],
        "1 for where packets that nobody asked for are dropped."
    );

    TRACE_RULES: Metric::gauge("ferrule_trace_rules", &[], "Verbosity rules in the table.");
    TRACE_ARMED: Metric::gauge(
        "ferrule_trace_armed",
        &[],
        "Verbosity rules and verbose requests that are live."
    );
    WORKERS_BLOCKED: Metric::counter(
        "ferrule_threads_blocked_total",
        &[],
        "Polls of workers and of control that took longer than 200 ms."
    );
    LOCKS_HELD_TOO_LONG: Metric::counter(
        "ferrule_locks_held_too_long_total",
        &[],
        "Locks that a thread held for longer than 200 ms."
    );
    REQUESTS_RECEIVED: Metric::counter(
        "ferrule_requests_received_total",
        &[],
        "Requests whose head was read, those of other nodes among them."
    );
    PRESSURE_ACTIONS: Metric::counter(
        "ferrule_pressure_actions_total",
        &["action"],
        "What was given up because memory was short: idle connections closed, requests shed, accepts put off, the largest reset."
    );
    REQUESTS: Metric::counter(
        "ferrule_requests_total",
        &["app", "class"],
        "Requests that ended, by app and class of status."
    ).per("app");
    REQUEST_DURATION: Metric::histogram(
        "ferrule_request_duration_seconds",
        &[],
        SECONDS,
        "From the head of a request to the last byte of its answer."
    ).with_exemplars();
    REQUESTS_IN_FLIGHT: Metric::gauge(
        "ferrule_requests_in_flight",
        &[],
        "Requests between their head and the last byte of the answer."
    ).adding_up();
    PERMITS: Metric::gauge(
        "ferrule_permits_in_use",
        &[],
        "Requests and connections that count against a limit of an instance."
    ).adding_up();
    QUEUE: Metric::gauge("ferrule_queue_length", &[], "Requests that wait for a permit.").adding_up();
    RETRIES: Metric::counter(
        "ferrule_retries_total",
        &[],
        "Second and further attempts of requests."
    );
    ERRORS: Metric::counter(
        "ferrule_errors_total",
        &["code"],
        "Failures of connections and requests, by code."
    );

    DRAINING: Metric::gauge(
        "ferrule_draining",
        &[],
        "1 while new work should go elsewhere: an operator has asked for it, or the node stops."
    );
    DRAIN_CUT: Metric::counter(
        "ferrule_drain_cut_total",
        &["class"],
        "What was left at its deadline when the node ended, and was cut: requests, WebSockets, raw TCP."
    );

    // Instances, and the connections to them.
    UPSTREAM_CONNECTIONS: Metric::gauge(
        "ferrule_upstream_connections",
        &["kind"],
        "Open connections to instances and nodes, by kind."
    ).adding_up();
    INSTANCES: Metric::gauge(
        "ferrule_instances",
        &["state"],
        "Instances in the inventory, by whether new work may go to them."
    );

    // The inventory and the process.
    INVENTORY_AGE: Metric::gauge(
        "ferrule_inventory_age_seconds",
        &[],
        "Time since the inventory was last known to be complete."
    );
    INVENTORY_QUARANTINED: Metric::gauge(
        "ferrule_inventory_quarantined",
        &[],
        "App files and apps that were refused; their last good version stays."
    );
    CATALOG_ERRORS: Metric::counter(
        "ferrule_catalog_errors_total",
        &[],
        "Changes of the inventory that could not be written to the catalog."
    );
    GENERATION: Metric::gauge(
        "ferrule_generation",
        &["color"],
        "Rises with every process that took over."
    );
    TASKS: Metric::gauge("ferrule_tasks", &["kind"], "Tasks that have not ended, by kind.").adding_up();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use telemetry::metrics::{Kind, markdown};

    use super::*;

    const HEAD: &str = "\
# Metrics

Every metric of a node, as `/metrics` shows it and OTLP exports it.
Numbers of an app appear with its first request, leave after `timeouts.metric_idle` without one, and return with the next.
What finds no room under `limits.metric_labels_max` or `limits.metric_series_max` is counted under `__other__`.

This page is written from the code: `FERRULE_WRITE=1 cargo test -p proxy --lib catalogue`.

";

    #[test]
    fn the_catalogue_is_documented() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/metrics.md");
        let text = format!("{HEAD}{}", markdown(ALL));
        if std::env::var_os("FERRULE_WRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "config/metrics.md is stale; it says how it is written");
    }

    #[test]
    fn names_follow_the_rules_and_are_there_once() {
        let mut names = BTreeSet::new();
        for metric in ALL.iter().copied().flatten() {
            let name = metric.name;
            assert!(names.insert(name), "{name} is declared twice");
            assert!(name.starts_with("ferrule_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{name}");
            assert!(metric.bounds.is_sorted(), "{name}");
            let labels: BTreeSet<_> = metric.labels.iter().collect();
            assert_eq!(labels.len(), metric.labels.len(), "{name}");
            assert!(metric.per.is_none_or(|per| labels.contains(&per)), "{name}");
        }
    }
}
