//! The metrics of this crate.

use super::Metric;

crate::catalogue! {
    /// Every metric that telemetry itself exports.
    pub ALL;
    LEDGER_BYTES: Metric::gauge("ferrule_ledger_bytes", &["owner"], "Bytes held, by owner.");
    LEDGER_ENTRIES: Metric::gauge("ferrule_ledger_entries", &["owner"], "Entries held, by owner.");
    LEDGER_DROPS: Metric::counter(
        "ferrule_ledger_drops_total",
        &["owner"],
        "What an owner turned away at its cap."
    );
    MEMORY: Metric::gauge(
        "ferrule_memory_bytes",
        &["kind"],
        "Memory as jemalloc accounts for it."
    );
    ACCESS_LOG_DROPPED: Metric::counter(
        "ferrule_access_log_dropped_total",
        &[],
        "Lines of the access log that found no room or were torn."
    );
    ACCESS_LOG_ERRORS: Metric::counter(
        "ferrule_access_log_errors_total",
        &[],
        "Failed writes of the access log; what waited is tried again."
    );
    SERIES: Metric::gauge("ferrule_metrics_series", &[], "Time series that a scrape shows.");
    EVICTED: Metric::counter(
        "ferrule_metrics_evicted_total",
        &[],
        "Label sets that nothing touched for long and that are no longer shown."
    );
    OVERFLOW: Metric::counter(
        "ferrule_metrics_overflow_total",
        &["cap"],
        "Label sets that count under __other__, by the cap that had no room."
    );
    SHARED_COUNTS_FULL: Metric::counter(
        "ferrule_shared_counts_full_total",
        &[],
        "Counts that found no row in the file shared over an upgrade and hold for one process."
    );

    // Records of requests.
    RECORDS_LIVE: Metric::gauge("ferrule_records_live", &[], "Requests with a record.").adding_up();
    RECORDS_KEPT: Metric::counter(
        "ferrule_records_kept_total",
        &["reason"],
        "Records kept beyond the end of their request, by reason."
    );
    TELEMETRY_DROPPED: Metric::counter(
        "ferrule_telemetry_dropped_total",
        &["reason"],
        "Telemetry that was given up, by reason."
    );
    TELEMETRY_SENT: Metric::counter(
        "ferrule_telemetry_sent_total",
        &["signal"],
        "Spans, log records and data points a collector accepted."
    );
    TELEMETRY_FAILURES: Metric::counter(
        "ferrule_telemetry_export_failures_total",
        &["signal"],
        "Attempts to send to a collector that failed."
    );

    // Verbosity for single requests.
    TRACE_TOKENS: Metric::counter(
        "ferrule_trace_tokens_total",
        &["outcome"],
        "Tokens in ferrule-trace, by what became of them."
    );
    TRACE_RULE_MATCHES: Metric::counter(
        "ferrule_trace_rule_matches_total",
        &["outcome"],
        "Requests that a verbosity rule matched, by what became of them."
    );
    VERBOSE_SUPPRESSED: Metric::counter(
        "ferrule_verbose_suppressed_total",
        &[],
        "Verbose requests that the node's budget left normal."
    );

    // Memory, as the sampler and heapwatch see it.
    RESIDENT_MAX: Metric::gauge(
        "ferrule_memory_resident_max_bytes",
        &[],
        "Highest resident memory, looked at every 10 ms, since the scrape before the last."
    );
    MEMORY_USED: Metric::gauge(
        "ferrule_memory_used_bytes",
        &[],
        "Memory that counts against the limit."
    );
    MEMORY_LIMIT: Metric::gauge(
        "ferrule_memory_limit_bytes",
        &[],
        "What memory is held against; 0 is no limit."
    );
    MEMORY_PRESSURE: Metric::gauge(
        "ferrule_memory_pressure_ratio",
        &[],
        "Memory now or in 100 ms, as a share of the limit."
    );
    PRESSURE_LEVEL: Metric::gauge(
        "ferrule_pressure_level",
        &[],
        "Steps of the pressure ladder that hold: 0 calm to 5 reset."
    );
    PRESSURE_ENTERED: Metric::counter(
        "ferrule_pressure_entered_total",
        &["level"],
        "Times that a step of the pressure ladder was entered."
    );
    PRESSURE_LEFT: Metric::counter(
        "ferrule_pressure_left_total",
        &["level"],
        "Times that a step of the pressure ladder was left."
    );
    SAMPLER_CPU: Metric::gauge(
        "ferrule_sampler_cpu_seconds",
        &[],
        "Time that the sampler was on a core."
    );
    CGROUP_MEMORY: Metric::gauge(
        "ferrule_cgroup_memory_bytes",
        &["kind"],
        "Memory of the cgroup, by kind."
    );
    CGROUP_EVENTS: Metric::gauge(
        "ferrule_cgroup_memory_events",
        &["event"],
        "Events of the cgroup, by kind."
    );
    LEAK_SUSPECTS: Metric::gauge(
        "ferrule_leak_suspects",
        &["state"],
        "Stacks and containers that seem to leak, by how sure that is."
    );
    HEAP_SAMPLES: Metric::gauge(
        "ferrule_heap_samples",
        &[],
        "Sampled blocks that are alive."
    );
    HEAP_DROPPED: Metric::gauge(
        "ferrule_heap_dropped",
        &["table"],
        "What found no room in a table of the heap's samples since the start."
    );

    // The process.
    DESCRIPTORS: Metric::gauge("ferrule_process_descriptors", &[], "Open file descriptors.");
    THREADS: Metric::gauge("ferrule_process_threads", &[], "Threads of the process.");
    SOCKETS: Metric::gauge(
        "ferrule_sockets",
        &["state"],
        "Sockets of the network namespace, by state."
    );
    TCP_MEMORY: Metric::gauge(
        "ferrule_tcp_memory_bytes",
        &[],
        "Bytes in the buffers of the network namespace's TCP sockets."
    );
}
