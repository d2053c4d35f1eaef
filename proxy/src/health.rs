//! Active health checks of the instances on this node; runs on the control thread.
//!
//! Every node checks its own instances only; others learn the outcome from being refused. An
//! instance nobody has heard of yet is routable. The first failure after its grace period takes it
//! out, the first success takes it back in.

mod probe;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use control::snapshot::{AppName, Check, InstanceId};
use telemetry::ledger::scope::HEALTH;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::balance::load::Load;
use crate::balance::rng::Rng;
use crate::inventory::Inventory;

/// Every check of this node, one task each.
struct Checks {
    inventory: Arc<Inventory>,
    /// At most the local instances × their services.
    subjects: HashMap<AppName, HashMap<(InstanceId, usize), Subject>>,
    tasks: JoinSet<()>,
    permits: Arc<Semaphore>,
}

/// What is checked: one service of one instance.
struct Subject {
    target: SocketAddr,
    checks: Vec<Check>,
    load: Arc<Load>,
    tasks: Vec<AbortHandle>,
}

/// One check of one subject.
struct Prober {
    inventory: Arc<Inventory>,
    app: AppName,
    instance: InstanceId,
    load: Arc<Load>,
    target: SocketAddr,
    check: Check,
    /// Which of the subject's checks fail; this is the `index`th.
    failing: Arc<[AtomicBool]>,
    index: usize,
    permits: Arc<Semaphore>,
}

/// When the outcomes of one check count and when it is repeated.
struct Course {
    grace_ends: Instant,
    interval: Duration,
}

/// Attempts at the same time, so that the start of a full node is not a burst.
const ATTEMPTS_MAX: usize = 64;

/// Shares of the interval by which it may be longer or shorter, so that checks spread out.
const JITTER_PERCENT: u32 = 10;

/// No check more often than this, whatever the app says.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Checks what the inventory says until `stop`; returns when nothing runs any more.
pub async fn run(inventory: Arc<Inventory>, stop: CancellationToken) {
    let mut checks = Checks {
        inventory: inventory.clone(),
        subjects: HashMap::new(),
        tasks: JoinSet::new(),
        permits: Arc::new(Semaphore::new(ATTEMPTS_MAX)),
    };
    loop {
        let changed = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = inventory.changed_checks() => changed,
            Some(ended) = checks.tasks.join_next() => {
                // A check ends by being aborted only; a fault of ours is for our owner to see.
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
                continue;
            }
        };
        changed.into_iter().for_each(|app| checks.follow(app));
    }
    checks.tasks.shutdown().await;
}

// === impl Checks ===

impl Checks {
    /// Makes the checks of `app` what its newest version says; those that stay are not disturbed.
    fn follow(&mut self, app: AppName) {
        let mut old = self.subjects.remove(&app).unwrap_or_default();
        let mut new = HashMap::new();
        if let Some(entry) = self.inventory.by_name(app.as_str()) {
            for candidate in entry.field().local {
                for (index, service) in entry.app.services.iter().enumerate() {
                    let Some(load) = candidate.load(index).filter(|_| !service.checks.is_empty())
                    else {
                        continue;
                    };
                    let id = &candidate.instance.id;
                    let target = SocketAddr::new(candidate.instance.address, service.internal_port);
                    let key = (id.clone(), index);
                    let subject = old
                        .remove(&key)
                        .filter(|old| old.is(load, target, &service.checks))
                        .unwrap_or_else(|| self.start(&app, id, load, target, &service.checks));
                    new.insert(key, subject);
                }
            }
        }
        for gone in old.into_values() {
            // Whoever has no check is not kept out by the last one it had.
            let checked = |subject: &Subject| Arc::ptr_eq(&subject.load, &gone.load);
            if !new.values().any(checked) && gone.load.set_healthy(true) {
                self.inventory.health_changed(&app);
            }
        }
        if !new.is_empty() {
            self.subjects.insert(app, new);
        }
    }

    fn start(
        &mut self,
        app: &AppName,
        instance: &InstanceId,
        load: &Arc<Load>,
        target: SocketAddr,
        checks: &[Check],
    ) -> Subject {
        let failing: Arc<[_]> = checks.iter().map(|_| AtomicBool::new(false)).collect();
        let probers = checks.iter().enumerate().map(|(index, check)| Prober {
            inventory: self.inventory.clone(),
            app: app.clone(),
            instance: instance.clone(),
            load: load.clone(),
            target,
            check: check.clone(),
            failing: failing.clone(),
            index,
            permits: self.permits.clone(),
        });
        let tasks = probers
            .map(|prober| HEALTH.task(prober.run(), |task| self.tasks.spawn(task)))
            .collect();
        Subject { target, checks: checks.to_vec(), load: load.clone(), tasks }
    }
}

// === impl Subject ===

impl Subject {
    fn is(&self, load: &Arc<Load>, target: SocketAddr, checks: &[Check]) -> bool {
        Arc::ptr_eq(&self.load, load) && self.target == target && self.checks == checks
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

// === impl Prober ===

impl Prober {
    async fn run(self) {
        let course = Course::new(&self.check, Instant::now());
        let rng = Rng::new();
        loop {
            let permit = self.permits.acquire().await.expect("the semaphore is never closed");
            let outcome = probe::attempt(&self.check, self.target).await;
            drop(permit);
            let now = Instant::now();
            if let Err(error) = &outcome {
                tracing::debug!(app = %self.app, instance = %self.instance, %error, "check failed");
            }
            if let Some(succeeded) = course.verdict(outcome.is_ok(), now) {
                self.report(succeeded);
            }
            sleep(course.pause(outcome.is_ok(), now, rng.below(1000) as u32)).await;
        }
    }

    fn report(&self, succeeded: bool) {
        self.failing[self.index].store(!succeeded, Relaxed);
        let healthy = !self.failing.iter().any(|failing| failing.load(Relaxed));
        if self.load.set_healthy(healthy) {
            let (app, instance) = (&self.app, &self.instance);
            tracing::info!(%app, %instance, healthy, "instance health changed");
            self.inventory.health_changed(app);
        }
    }
}

// === impl Course ===

impl Course {
    fn new(check: &Check, now: Instant) -> Self {
        let interval = check.interval.max(INTERVAL_MIN);
        Self { grace_ends: now + check.grace_period, interval }
    }

    /// What an attempt that ended `now` says about the instance; `None` when it does not count.
    fn verdict(&self, succeeded: bool, now: Instant) -> Option<bool> {
        (succeeded || now >= self.grace_ends).then_some(succeeded)
    }

    /// Time until the next attempt; `chance` is below 1,000.
    fn pause(&self, succeeded: bool, now: Instant, chance: u32) -> Duration {
        let share = self.interval * JITTER_PERCENT / 100;
        let pause = self.interval - share + share * 2 * chance / 1000;
        let grace = self.grace_ends.saturating_duration_since(now);
        if succeeded || grace.is_zero() {
            return pause;
        }
        // Failures begin to count when grace ends: ask then, not an interval later.
        pause.min(grace.max(INTERVAL_MIN))
    }
}

#[cfg(test)]
mod tests;
