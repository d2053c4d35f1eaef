//! What every client has: where to go, when to stop, and how to count.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::runtime::{Builder, LocalOptions};
use tokio_util::sync::CancellationToken;

use super::{Loss, Size, Tally, Target};
use crate::wait::PATIENCE;

/// What an answer may take. Longer than any pause that is not a failure.
const ANSWER_MAX: Duration = PATIENCE;

/// How long a client waits after it lost something, so that a node that is gone is not stormed.
const AFTER_LOSS: Duration = Duration::from_millis(20);

/// Ids of POSTs that no two clients of one process share.
static IDS: AtomicU64 = AtomicU64::new(1);

/// One client.
#[derive(Clone)]
pub(super) struct Client {
    /// Its number within the driver.
    pub(super) index: usize,
    pub(super) target: Target,
    pub(super) size: Size,
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
    generation: Arc<AtomicU64>,
}

/// Something a client began. Dropped without an outcome, it stays begun, which is a failure.
#[must_use]
pub(super) struct Begun {
    start: Instant,
    generation: u64,
}

// === impl Client ===

impl Client {
    pub(super) fn new(
        target: Target,
        tally: Arc<Mutex<Tally>>,
        stop: CancellationToken,
        generation: Arc<AtomicU64>,
        size: Size,
    ) -> Self {
        Self { index: 0, target, size, tally, stop, generation }
    }

    /// Runs `count` of them side by side on this thread until all have ended.
    pub(super) fn run<F: Future<Output = ()>>(&self, count: usize, client: impl Fn(Self) -> F) {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let clients = (0..count).map(|index| client(Self { index, ..self.clone() }));
        runtime.expect("a runtime").block_on(join_all(clients));
    }

    /// Whether nothing new is to be begun.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Lets time pass, unless it is time to stop.
    pub(super) async fn pause(&self, duration: Duration) {
        // Either way the caller looks whether it is to go on.
        tokio::time::timeout(duration, self.stop.cancelled()).await.unwrap_or_default();
    }

    /// Begins something.
    pub(super) fn begin(&self) -> Begun {
        self.count().sent += 1;
        Begun { start: Instant::now(), generation: self.generation.load(SeqCst) }
    }

    /// It ended as it should.
    pub(super) fn ok(&self, begun: Begun) {
        let spanning = begun.generation != self.generation.load(SeqCst);
        let mut tally = self.count();
        tally.ok += 1;
        tally.spanning += u64::from(spanning);
        tally.slowest = tally.slowest.max(begun.start.elapsed());
    }

    /// The same for what is meant to take long: only silences count as slow.
    pub(super) fn ok_streamed(&self, begun: Begun) {
        let slowest = self.count().slowest;
        self.ok(begun);
        self.count().slowest = slowest;
    }

    /// Nothing came for so long in something that streams.
    pub(super) fn silence(&self, duration: Duration) {
        let mut tally = self.count();
        tally.slowest = tally.slowest.max(duration);
    }

    /// It was lost.
    pub(super) async fn lost(&self, _begun: Begun, loss: Loss) {
        self.count().lose(&loss);
        self.pause(AFTER_LOSS).await;
    }

    /// The edge ended a connection that cannot be told to end.
    pub(super) fn cut(&self, _begun: Begun, reason: &str) {
        let mut tally = self.count();
        tally.cut += 1;
        tally.reason(reason);
    }

    /// Counts what is neither begun nor ended.
    pub(super) fn count(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no client panics")
    }

    /// An id that no other request has.
    pub(super) fn id() -> u64 {
        IDS.fetch_add(1, SeqCst)
    }
}

/// Ends what takes for ever.
pub(super) async fn bounded<T>(work: impl Future<Output = Result<T, Loss>>) -> Result<T, Loss> {
    let failed = |_| Err(Loss::Failed(format!("nothing within {} s", ANSWER_MAX.as_secs())));
    tokio::time::timeout(ANSWER_MAX, work).await.unwrap_or_else(failed)
}
