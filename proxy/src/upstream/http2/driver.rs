//! The task behind one HTTP/2 connection: polls h2, drains the cork, watches the clock.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::io::cork::{Cork, Handle};

use super::{Connection, Phase};

pub(super) struct Driver<T> {
    h2: h2::client::Connection<Cork<T>, Bytes>,
    cork: Handle<T>,
    pings: Option<PingPong>,
    next_ping: Instant,
    unanswered: Option<Instant>,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    connection: Rc<Connection>,
}

/// Between PINGs while streams are open.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// A PING without an answer for this long: the peer is gone.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// For the last frames to leave: nobody waits for them any more.
const FAREWELL: Duration = Duration::from_secs(1);

// === impl Driver ===

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(
        h2: h2::client::Connection<Cork<T>, Bytes>,
        cork: Handle<T>,
        pings: Option<PingPong>,
        idle: Duration,
        connection: Rc<Connection>,
    ) -> Self {
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + idle));
        let next_ping = now + PING_INTERVAL;
        Self { h2, cork, pings, next_ping, unanswered: None, idle, timer, connection }
    }

    /// Runs to the end of the connection. `_counted` is its place in what counts connections.
    pub(super) async fn run(mut self, _counted: impl Sized) {
        poll_fn(|cx| self.poll(cx)).await;
        let Self { h2, cork, connection, .. } = self;
        drop(h2); // every stream that is left learns that it is over
        connection.retire();
        connection.enter(Phase::Ended);
        drop(connection.cancelled.take());
        connection.freed.notify_waiters();
        // The last frames (GOAWAY) may still be in the cork, and TLS wants to say goodbye. If the
        // peer does not take it in time or is gone, there is nobody to tell.
        let farewell = poll_fn(|cx| {
            if cork.poll_drain(cx)?.is_pending() {
                return Poll::Pending;
            }
            cork.with(|io| Pin::new(io).poll_shutdown(cx))
        });
        let _told = timeout(FAREWELL, farewell).await;
    }

    /// Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.register(cx);
        loop {
            let now = Instant::now();
            self.poll_cancelled(cx, now);
            if self.poll_ping(cx, now).is_ready() {
                return Poll::Ready(());
            }
            let is_over = Pin::new(&mut self.h2).poll(cx).is_ready();
            // After every poll, the last one included: h2 believes all of it was sent.
            let drained = self.cork.poll_drain(cx);
            if is_over || matches!(drained, Poll::Ready(Err(_))) {
                return Poll::Ready(());
            }
            self.notice();
            if self.poll_clock(cx, now).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn register(&self, cx: &Context<'_>) {
        let mut waker = self.connection.driver.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Streams nobody wants: those that ended go, and as many others as may be reset now.
    fn poll_cancelled(&self, cx: &mut Context<'_>, now: Instant) {
        let connection = &self.connection;
        if connection.cancelled.borrow().is_empty() {
            return;
        }
        let mut cancelled = connection.cancelled.take();
        // With the last stream that somebody wants the connection closes, and the rest with it.
        let is_last = connection.is_retired() && connection.live.get() == 0;
        cancelled.retain_mut(|stream| !is_last && stream.poll_discard(cx).is_pending());
        while !cancelled.is_empty() && connection.pace.borrow_mut().take(now) {
            cancelled.swap_remove(0);
        }
        connection.cancelled.borrow_mut().append(&mut cancelled);
    }

    /// Asks whether the peer is still there while somebody waits for it; ready when it is not.
    fn poll_ping(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        if let Some(sent) = self.unanswered {
            if pings.poll_pong(cx).is_ready() {
                self.unanswered = None;
                self.next_ping = now + PING_INTERVAL;
            } else if now >= sent + PONG_TIMEOUT {
                return Poll::Ready(());
            }
        } else if self.connection.streams.get() > 0 && now >= self.next_ping {
            self.unanswered = pings.send_ping(Ping::opaque()).is_ok().then_some(now);
            self.next_ping = now + PING_INTERVAL;
        }
        Poll::Pending
    }

    /// What the frames just read have changed for those who wait.
    fn notice(&self) {
        let connection = &self.connection;
        match connection.phase.get() {
            Phase::Opening if connection.streams_now() > 0 => connection.enter(Phase::Open),
            _ => {}
        }
        if connection.waiting.get() > 0 && connection.streams.get() < connection.streams_now() {
            connection.freed.notify_one();
        }
    }

    /// Ready when something is due and the connection must be polled again.
    fn poll_clock(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<()> {
        let connection = &self.connection;
        let is_idle = connection.is_idle() && connection.phase.get() == Phase::Open;
        if is_idle && !connection.is_retired() && now >= connection.idle_since.get() + self.idle {
            connection.retire();
            return Poll::Ready(());
        }
        let ping = match (&self.pings, self.unanswered) {
            (Some(_), Some(sent)) => Some(sent + PONG_TIMEOUT),
            (Some(_), None) if connection.streams.get() > 0 => Some(self.next_ping),
            _ => None,
        };
        let reset = (!connection.cancelled.borrow().is_empty())
            .then(|| connection.pace.borrow_mut().next(now));
        let idle = is_idle.then(|| connection.idle_since.get() + self.idle);
        let Some(next) = [ping, reset, idle].into_iter().flatten().min() else {
            return Poll::Pending;
        };
        // A timer that fires too early is moved then; moving it at every poll would cost more.
        if self.timer.deadline() > next {
            self.timer.as_mut().reset(next);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= next {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }
}
