//! Takes a node down again, in reverse, and says what was left.

use std::time::Duration;

use telemetry::heapwatch::Reason;
use telemetry::service::{self, Manager};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::threads::Report;
use super::{Ending, Node, drain, draining, part, report};
use crate::drain::{Class, Deadlines};
use crate::edge::Edge;
use crate::handoff::predecessor::Heir;
use crate::listener::Stance;

/// How long a process drains whose successor has died, under a service manager. Clients wait in the
/// listen queues meanwhile.
const ORPHANED: Duration = Duration::from_secs(2);

impl Node {
    /// In reverse.
    pub(super) async fn stop(self, ending: Ending, hurry: &CancellationToken) {
        let Self {
            edge,
            succession,
            asks: _,
            legacy: _,
            stance,
            visitors: _,
            view,
            observers,
            heapwatch,
            background,
            predecessor,
            watch,
            threads,
            doors,
            listening,
            filter,
            _leash,
        } = self;
        let deadlines = Deadlines::new(&edge.config.timeouts);
        let (longest, generation) = (deadlines.longest(), succession.generation());
        tracing::info!(generation, deadline_seconds = longest.as_secs_f64(), "draining");
        succession.end();
        // What leaked is gone with the process, so it is written down while everything is still held.
        report::leaving(&edge, &heapwatch, &background.tasks);
        heapwatch.write_down(Reason::Drain);
        // What goes wrong in a drain is rarely seen otherwise.
        edge.records.note_anomaly();
        view.set_draining();
        if let Some(predecessor) = &predecessor {
            predecessor.farewell().await;
        }
        match &ending {
            Ending::Asked => {
                service::stopping();
                drain::leave(&edge, hurry).await;
            }
            Ending::Succeeded(_) => {
                stance.send_replace(Stance::Given);
                filter.give_away();
                edge.drain.fall_silent();
            }
        }
        listening.cancel();
        for door in doors {
            if door.await.is_err() {
                tracing::error!("the task of the listening sockets has failed");
            }
        }
        let report = match &ending {
            Ending::Asked => threads.drain(deadlines, hurry.clone()).await,
            Ending::Succeeded(heir) => {
                let deadline = Instant::now() + longest;
                tokio::select! {
                    report = threads.drain(deadlines, hurry.clone()) => report,
                    never = inform(heir, &edge, deadline, hurry) => match never {},
                }
            }
        };
        let left = background.end().await;
        drop(watch);
        say_goodbye(&report, &left, &edge, generation);
        observers.end(); // last, so that the drain is reported
        if let Ending::Succeeded(heir) = &ending {
            heir.farewell(&edge.registry).await;
        }
    }
}

/// Tells the successor how this process drains. If it dies, nobody is the node: a service manager that
/// starts it again waits for this process too, which therefore does not take all of its time.
async fn inform(
    heir: &Heir,
    edge: &Edge,
    deadline: Instant,
    hurry: &CancellationToken,
) -> std::convert::Infallible {
    let was_told = heir.inform(&edge.registry, || draining(edge, deadline)).await;
    part(edge);
    if !was_told && Manager::of_environment().is_some() {
        tracing::error!(
            seconds = ORPHANED.as_secs(),
            "nobody is the node, and nobody starts it while this process drains: it hurries"
        );
        sleep(ORPHANED).await;
        hurry.cancel();
    }
    std::future::pending().await
}

/// The closing lines: what was left, by name, which must be nothing.
fn say_goodbye(report: &Report, background: &[&'static str], edge: &Edge, generation: u64) {
    let Report { tasks: of_workers, connections, cuts } = report;
    let permits = edge.inventory.permits_in_use();
    let tasks = of_workers.values().sum::<usize>() + background.len();
    let lines = edge.board.lines(usize::MAX).len();
    let sockets = telemetry::process::sockets();
    tracing::info!(
        tasks,
        connections,
        permits,
        cut = cuts.total(),
        cut_requests = cuts.of(Class::Request),
        cut_websockets = cuts.of(Class::WebSocket),
        cut_tcp = cuts.of(Class::Tcp),
        lines,
        sockets,
        generation,
        "stopped"
    );
    for (name, count) in of_workers {
        tracing::error!(name, count, "tasks of workers did not end");
    }
    for name in background {
        tracing::error!(name, "a task of control did not end");
    }
}
