//! The watch over the heap, and what is kept of it.

use std::sync::Arc;
use std::time::Duration;

use telemetry::black_box::{self, OldStack};
use telemetry::heapwatch::{Config, Context, Heapwatch, Reason, Subsystem};
use telemetry::sampler::Readings;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::edge::Edge;

/// Below the storage folder.
const SNAPSHOTS: &str = "snapshots";

/// How often the black box gets the largest old stacks.
const OLD_STACKS_PERIOD: Duration = Duration::from_secs(30);

/// As many as the black box keeps.
const OLD_STACKS: usize = 32;

/// Begins to watch.
pub(super) fn watch(edge: &Edge, readings: Option<Arc<Readings>>) -> Heapwatch {
    let config::Memory { heapwatch, profile, .. } = edge.config.memory;
    let config = Config {
        enabled: heapwatch,
        profile,
        directory: edge.config.storage.directory.join(SNAPSHOTS),
    };
    let (received, inventory) = (edge.metrics.received.clone(), edge.inventory.clone());
    let context = Context {
        registry: &edge.registry,
        ledger: &edge.ledger,
        requests: Box::new(move || received.value()),
        app_names: Box::new(move |ids| inventory.names_of(ids)),
        limit: Box::new(move || Some(readings.as_ref()?.limit()).filter(|limit| *limit > 0)),
    };
    Heapwatch::start(&config, context)
}

/// Whom what a background task allocates is charged to.
pub(super) fn charge(task: &str) -> Subsystem {
    match task {
        "inventory" | "certificates" | "mesh certificates" => Subsystem::Inventory,
        "health checks" | "probes" => Subsystem::Health,
        "admin" => Subsystem::Admin,
        "filter" => Subsystem::Filter,
        "metrics" | "verbosity" | "heapwatch" | "snapshots" => Subsystem::Telemetry,
        _ => Subsystem::Other,
    }
}

/// Writes a snapshot for each SIGUSR1, and the largest old stacks into the black box, until `stop`.
pub(super) async fn keep(heapwatch: Heapwatch, stop: CancellationToken) {
    let mut signals = signal(SignalKind::user_defined1())
        .inspect_err(|error| tracing::warn!(%error, "SIGUSR1 cannot be heard"))
        .ok();
    let mut period = tokio::time::interval(OLD_STACKS_PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = next(&mut signals) => heapwatch.write_down(Reason::Signal),
            _ = period.tick() => keep_old_stacks(&heapwatch),
        }
    }
}

async fn next(signals: &mut Option<Signal>) {
    if let Some(signals) = signals
        && signals.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// The largest old stacks, into the black box.
pub(super) fn keep_old_stacks(heapwatch: &Heapwatch) {
    let Some(black_box) = black_box::installed() else { return };
    let stacks: Vec<OldStack> = heapwatch
        .largest_old(OLD_STACKS)
        .into_iter()
        .map(|stack| OldStack {
            bytes: stack.bytes,
            objects: stack.samples,
            oldest_seconds: stack.oldest.as_secs(),
            pcs: stack.pcs.iter().map(|pc| *pc as u64).collect(),
        })
        .collect();
    black_box.old_stacks(&stacks);
}
