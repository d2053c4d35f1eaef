//! What is remembered between the looks at an active connection: how long it has been quiet, whether
//! its client is gone, how fast a body comes.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::io::Watch;
use crate::alarm::Alarm;
use crate::io::stream::Departure;

/// What is remembered from poll to poll of an active connection.
#[derive(Default)]
pub(super) struct Looks {
    pub(super) body: BodyRate,
    /// Set while the client has ended its side, with the bytes written at its last move.
    departure: Option<(Pin<Box<Sleep>>, u64)>,
    /// The connection was quiet at the last poll, and the alarm is armed for its rest.
    resting: bool,
}

/// A body must bring [`BODY_BYTES_PER_SECOND_MIN`], averaged over a window.
#[derive(Default)]
pub(super) struct BodyRate {
    window: Option<(Instant, u64)>,
}

/// Slower than this is an attack or a dead line.
const BODY_BYTES_PER_SECOND_MIN: f64 = 1024.0;

/// How long a connection is quiet before it is parked.
///
/// A client that asks again at once should find hyper's state and buffers where they are: building
/// them anew for each request costs it their allocation. Idle connections are parked soon enough.
const REST: Duration = Duration::from_millis(100);

/// How long an answer may keep a client waiting that has ended its side, while nothing is written.
///
/// It may be gone (a closed socket and one that was shut down for writing look the same), and what
/// it asked for should stop; or it may be `printf | nc -N`, which ends its side with the request.
/// nginx, Envoy and Go take both for gone; this much serves most of the second kind as well.
const DEPARTURE: Duration = Duration::from_millis(50);

// === impl Looks ===

impl Looks {
    /// Whether a quiet connection has been so for long enough to be parked.
    pub(super) fn have_rested(&mut self, alarm: &Alarm, cx: &Context<'_>) -> bool {
        if !self.resting {
            self.resting = true;
            alarm.arm(REST, cx);
        }
        alarm.is_due()
    }

    /// A connection that is not quiet any more has its deadlines looked at again.
    pub(super) fn stir(&mut self, alarm: &Alarm, watch: &Watch) {
        if self.resting && !watch.is_quiet() {
            self.resting = false;
            alarm.disarm();
        }
    }

    /// Ready when a client that has ended its side is taken for gone.
    pub(super) fn poll_departed(&mut self, watch: &Watch, cx: &mut Context<'_>) -> Poll<()> {
        if watch.departure.get() == Departure::Gone {
            return Poll::Ready(());
        }
        if !watch.seems_gone() {
            self.departure = None;
            return Poll::Pending;
        }
        let written = watch.written.get();
        if self.departure.as_ref().is_none_or(|(_, before)| *before != written) {
            self.departure = Some((Box::pin(tokio::time::sleep(DEPARTURE)), written));
        }
        let Some((sleep, _)) = &mut self.departure else { return Poll::Pending };
        sleep.as_mut().poll(cx)
    }
}

// === impl BodyRate ===

impl BodyRate {
    /// What a body must bring in `window`.
    pub(super) fn least(window: Duration) -> u64 {
        (BODY_BYTES_PER_SECOND_MIN * window.as_secs_f64()) as u64
    }

    /// Whether fewer than `least` bytes came in a whole `window`.
    pub(super) fn is_too_slow(
        &mut self,
        read: u64,
        window: Duration,
        least: u64,
        now: Instant,
    ) -> bool {
        let (since, before) = *self.window.get_or_insert((now, read));
        if now - since < window {
            return false;
        }
        self.window = Some((now, read));
        read - before < least
    }
}
