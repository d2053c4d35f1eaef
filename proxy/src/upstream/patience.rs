//! How long to wait for the other side: a deadline that costs a timer only once somebody waits.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A wait of at most `limit`, started anew by every sign of life.
pub(super) struct Patience {
    limit: Duration,
    deadline: Option<Instant>,
    /// Made at the first wait and moved only when it fires, so a busy body touches no timer.
    timer: Option<Pin<Box<Sleep>>>,
}

// === impl Patience ===

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, deadline: None, timer: None }
    }

    /// The other side did something: the next wait starts from zero.
    pub(super) fn renew(&mut self) {
        self.deadline = None;
    }

    /// The wait is counted from `start`.
    pub(super) fn count_from(&mut self, start: Instant) {
        self.deadline = Some(start + self.limit);
    }

    /// Ready when the wait has lasted too long. The first call after [`renew`](Self::renew) starts it.
    pub(super) fn poll_spent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + limit);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // An earlier deadline than the timer's cannot be waited for by an older timer.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sign_of_life_starts_the_wait_anew() {
        let mut patience = Patience::new(Duration::from_secs(10));
        let start = Instant::now();
        let early =
            tokio::time::timeout(Duration::from_secs(9), poll_fn(|cx| patience.poll_spent(cx)));
        assert!(early.await.is_err(), "the wait is not over after nine seconds");

        patience.renew();
        poll_fn(|cx| patience.poll_spent(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 19);
    }
}
