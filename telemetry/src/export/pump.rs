//! Brings finished records from the workers to the queue and the ring.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;

use super::shared::Shared;
use super::source::{Kept, Source};

/// Asks the source again and again.
pub(super) struct Pump {
    pub(super) source: Box<dyn Source>,
    pub(super) shared: Arc<Shared>,
    /// Whether traces are exported; otherwise records go to the ring only.
    pub(super) exports: bool,
    pub(super) poll: Duration,
    pub(super) stop: watch::Receiver<Option<Instant>>,
    /// Set when nothing more will come.
    pub(super) flush: watch::Sender<bool>,
}

// === impl Pump ===

impl Pump {
    /// Until asked to stop; then everything that is there is taken once more.
    pub(super) async fn run(mut self) {
        let descriptor = self.descriptor();
        let mut stopping = false;
        while !stopping {
            self.source.arm();
            tokio::select! {
                () = tokio::time::sleep(self.poll) => (),
                () = readable(descriptor.as_ref()) => (),
                _ = self.stop.wait_for(Option::is_some) => stopping = true,
            }
            self.source.disarm();
            self.drain().await;
        }
        self.flush.send_replace(true);
    }

    async fn drain(&mut self) {
        /// So many records at once; then the sender has its turn.
        const ROUND: usize = 256;
        let mut taken = 0;
        while let Some(record) = self.source.next() {
            self.shared.keep(Kept::new(record), self.exports);
            taken += 1;
            if taken % ROUND == 0 {
                self.shared.arrived.notify_one();
                tokio::task::yield_now().await;
            }
        }
        if taken > 0 {
            self.shared.arrived.notify_one();
        }
    }

    /// Without one, records are taken at every turn and not before.
    #[allow(unsafe_code, reason = "the runtime cannot know that a descriptor stays open")]
    fn descriptor(&self) -> Option<AsyncFd<OwnedFd>> {
        let descriptor = self.source.descriptor()?.try_clone_to_owned().ok()?;
        // SAFETY: an `OwnedFd` gives the same descriptor every time, and it is open as long as it
        // lives; nothing here closes it earlier.
        unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.ok()
    }
}

async fn readable(descriptor: Option<&AsyncFd<OwnedFd>>) {
    if let Some(descriptor) = descriptor
        && let Ok(mut ready) = descriptor.readable().await
    {
        // The source empties it.
        ready.clear_ready();
        return;
    }
    std::future::pending().await
}
