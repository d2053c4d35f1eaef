//! Resets, paced: a burst of clients going away must not look like an attack to the instance.
//!
//! Servers answer many RST_STREAMs with GOAWAY ENHANCE_YOUR_CALM, which ends every other request on
//! the connection. So only so many go out per second; a stream above that is read and discarded, and
//! most end on their own before their turn comes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use tokio::time::Instant;

use super::Slot;

/// How many resets may go out: `burst` at once, `per_second` in the long run.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    burst: u32,
    left: u32,
    /// When the next one comes back.
    refill: Instant,
}

/// Resets in one go. Servers built on h2 count at most 20 that they had not yet looked at.
const BURST: u32 = 10;

/// A stream whose requester has gone. Dropping it resets it.
pub(super) struct Cancelled {
    pub(super) receiving: Receiving,
    pub(super) sending: Option<SendStream<Bytes>>,
    pub(super) slot: Slot,
}

/// What is still expected on a stream.
pub(super) enum Receiving {
    Head(ResponseFuture),
    Body(RecvStream),
    Nothing,
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = per_second.max(1);
        let burst = per_second.min(BURST);
        Self { interval: Duration::from_secs(1) / per_second, burst, left: burst, refill: now }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        if self.left == 0 {
            return false;
        }
        if self.left == self.burst {
            self.refill = now + self.interval;
        }
        self.left -= 1;
        true
    }

    /// When the next one can be taken.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        self.fill(now);
        if self.left > 0 { now } else { self.refill }
    }

    fn fill(&mut self, now: Instant) {
        while self.left < self.burst && now >= self.refill {
            self.left += 1;
            self.refill += self.interval;
        }
    }
}

// === impl Cancelled ===

impl Cancelled {
    /// Discards what has come; ready when the stream has ended and needs no reset.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.receiving {
                Receiving::Head(head) => match Pin::new(head).poll(cx) {
                    Poll::Ready(Ok(response)) => {
                        self.receiving = Receiving::Body(response.into_body());
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                },
                Receiving::Body(body) => match body.poll_data(cx) {
                    Poll::Ready(Some(Ok(bytes))) => {
                        // Cannot fail: these bytes were counted when they came.
                        let _released = body.flow_control().release_capacity(bytes.len());
                    }
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(()),
                    Poll::Ready(None) => self.receiving = Receiving::Nothing,
                    Poll::Pending => return Poll::Pending,
                },
                // Our side may still be open: then only a reset ends the stream.
                Receiving::Nothing if self.sending.is_some() => return Poll::Pending,
                Receiving::Nothing => return Poll::Ready(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_come_in_small_bursts_and_at_a_pace() {
        let start = Instant::now();
        let mut pace = Pace::new(50, start);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!((0..100).filter(|_| pace.take(start)).count(), 10);
        assert_eq!(pace.next(start), at(20));
        assert!(!pace.take(at(19)));
        assert!(pace.take(at(20)));
        assert!(!pace.take(at(21)));
        let taken = (22..=1_020).filter(|&milliseconds| pace.take(at(milliseconds))).count();
        assert_eq!(taken, 50);
        // Rest does not add up to more than one burst.
        assert_eq!((0..100).filter(|_| pace.take(at(60_000))).count(), 10);
    }
}
