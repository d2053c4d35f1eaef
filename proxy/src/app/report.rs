//! What a node holds when it is asked to end: the first thing it says then, while everything is there.

use telemetry::black_box;
use telemetry::heapwatch::Heapwatch;
use tokio_util::task::TaskTracker;

use super::memory;
use crate::edge::Edge;

/// One line to the log and to the black box, for whoever reads why memory was what it was.
pub(super) fn leaving(edge: &Edge, heapwatch: &Heapwatch, background: &TaskTracker) {
    memory::keep_old_stacks(heapwatch);
    let metrics = &edge.metrics;
    let of_workers = metrics.connection_tasks.value() + metrics.stream_tasks.value();
    let tasks = of_workers + i64::try_from(background.len()).unwrap_or(i64::MAX);
    let records = edge.records.live();
    let connections = edge.connections.open();
    let requests = edge.requests.in_flight();
    let permits = edge.inventory.permits_in_use();
    let old_bytes: u64 = heapwatch.largest_old(usize::MAX).iter().map(|stack| stack.bytes).sum();
    tracing::info!(records, tasks, connections, requests, permits, old_bytes, "held at the end");
    if let Some(black_box) = black_box::installed() {
        black_box.note(&format!(
            "held at the end: records={records} tasks={tasks} connections={connections} \
             requests={requests} permits={permits} old_bytes={old_bytes}"
        ));
    }
}
