//! What the export thread and the control thread both reach. No worker takes these locks.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::queue::{Payload, Queue};
use super::ring::Ring;
use super::source::Kept;
use crate::lock::Mutex;

pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    pub(super) ring: Mutex<Ring>,
    /// The queue has something that it had not.
    pub(super) arrived: Notify,
}

// === impl Shared ===

impl Shared {
    /// Takes a finished record; into the queue only when traces are `exported`.
    pub(super) fn keep(&self, record: Arc<Kept>, exported: bool) {
        if exported {
            // First, so that its bytes are booked on the queue.
            self.queue.lock().push(Payload::Record(record.clone()), Instant::now());
        }
        self.ring.lock().push(&record);
    }
}
