//! The control thread's tasks.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use telemetry::heapwatch::tagged;
use telemetry::metrics::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::memory;
use crate::metrics::catalogue;

/// All are needed: when one ends before it is asked to, the node drains
/// rather than go on with what it cannot know to be stale.
pub(super) struct Background {
    pub(super) tasks: TaskTracker,
    /// Names of those that have not ended.
    alive: Rc<RefCell<Vec<&'static str>>>,
    pub(super) stop: CancellationToken,
    end_of_node: CancellationToken,
}

/// Longest wait for background tasks to end.
const BACKGROUND_END: Duration = Duration::from_secs(5);

// === impl Background ===

impl Background {
    pub(super) fn new(end_of_node: CancellationToken) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { tasks, alive: Rc::default(), stop, end_of_node }
    }

    pub(super) fn export(&self, registry: &Registry) {
        let tasks = self.tasks.clone();
        catalogue::TASKS.gauge_read_in(registry, &["background"], move || tasks.len() as f64);
    }

    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let (stop, end_of_node) = (self.stop.clone(), self.end_of_node.clone());
        let task = self.tasks.spawn_local(tagged(memory::charge(name), task));
        self.alive.borrow_mut().push(name);
        let alive = self.alive.clone();
        self.tasks.spawn_local(async move {
            let ended = task.await;
            alive.borrow_mut().retain(|alive| *alive != name);
            if ended.is_err() || !stop.is_cancelled() {
                tracing::error!(task = name, panicked = ended.is_err(), "a task ended unasked");
                end_of_node.cancel();
            }
        });
    }

    /// Asks every task to end, and names those that do not.
    pub(super) async fn end(self) -> Vec<&'static str> {
        self.stop.cancel();
        self.tasks.close();
        drop(tokio::time::timeout(BACKGROUND_END, self.tasks.wait()).await);
        self.alive.take()
    }
}
