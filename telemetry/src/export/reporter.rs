//! Sends the metrics at regular intervals, apart from the queue.
//!
//! Nothing of them is kept between two reports: the values are cumulative, so the next report makes
//! up for one that did not arrive.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::backoff;
use super::config::Config;
use super::drops::Drops;
use super::health::Health;
use super::metrics::Frame;
use super::outcome::Outcome;
use super::queue::Signal;
use super::transport::Transport;
use crate::metrics::Registry;

/// Sends metrics.
pub(super) struct Reporter {
    pub(super) registry: Registry,
    pub(super) transport: Arc<Transport>,
    pub(super) frame: Frame,
    pub(super) config: Config,
    pub(super) drops: Drops,
    pub(super) flush: watch::Receiver<bool>,
}

// === impl Reporter ===

impl Reporter {
    /// Until asked to flush; the last report is made then.
    pub(super) async fn run(mut self) {
        let mut health = Health::default();
        let mut failures = 0;
        let mut wait = self.config.metric_interval;
        loop {
            let flush = tokio::select! {
                () = tokio::time::sleep(wait) => false,
                _ = self.flush.wait_for(|flush| *flush) => true,
            };
            let asked = self.report(&mut health).await;
            if flush {
                return;
            }
            wait = match asked {
                Ok(()) => {
                    failures = 0;
                    self.config.metric_interval
                }
                Err(asked) => {
                    failures += 1;
                    let random = backoff::random();
                    let wait = backoff::wait(&self.config, failures - 1, asked, random);
                    wait.min(self.config.metric_interval)
                }
            };
        }
    }

    /// Fails when it should be tried again, not before the wait the collector asks for.
    async fn report(&self, health: &mut Health) -> Result<(), Option<Duration>> {
        const SIGNAL: Signal = Signal::Metrics;
        let snapshot = self.registry.snapshot();
        for request in self.frame.requests(snapshot, self.config.batch_bytes) {
            let points = request.points;
            match self.transport.send(request.message).await {
                Outcome::Delivered { rejected } => {
                    let rejected = usize::try_from(rejected).unwrap_or(points).min(points);
                    self.drops.sent(SIGNAL, points - rejected);
                    health.succeeded(SIGNAL, rejected);
                }
                Outcome::Never { failure } => {
                    self.drops.failed(SIGNAL);
                    health.lost(SIGNAL, failure, points);
                }
                Outcome::Again { failure, after } => {
                    self.drops.failed(SIGNAL);
                    health.failed(SIGNAL, failure);
                    return Err(after);
                }
            }
        }
        Ok(())
    }
}
