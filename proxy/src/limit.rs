//! What one request or connection holds until its last byte has gone.
//!
//! Limits are taken by RAII guards; the guards of a request travel in its response body (or with its
//! tunnel), so that finishing, resetting, cancelling, timing out and panicking all give them back.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::Either;
use http_body::{Frame, SizeHint};
use telemetry::event;
use tokio::time::Instant;

use crate::balance::node::RequestGuard;
use crate::balance::permit::Permit;
use crate::body::Body;
use crate::copy::Moved;
use crate::downstream::Live;
use crate::error::Failure;
use crate::metrics::InFlight;
use crate::trace::Trace;

/// The guards of one request.
#[derive(Default)]
pub struct Held {
    /// The node's own bound.
    pub node: Option<RequestGuard>,
    /// The instance's.
    pub permit: Option<Permit>,
    /// Its line on the list of what is going on.
    pub live: Option<Live>,
    /// What is written down of it; the last to go, so that all that ends before is in it.
    pub trace: Option<Trace>,
    /// Counts the request for its app until it ends.
    pub in_flight: Option<InFlight>,
}

/// A body that holds the guards of its request.
pub struct HeldBody {
    body: Body,
    held: Option<Held>,
    /// Bytes that went to the client.
    sent: u64,
}

/// The guards of a request that has become a tunnel, or of a raw connection, until its last byte.
pub struct HeldTunnel {
    held: Held,
    pub moved: Moved,
}

// === impl HeldTunnel ===

impl HeldTunnel {
    pub fn new(held: Held) -> Self {
        let record = held.trace.as_ref().map(|trace| trace.record.clone());
        Self { held, moved: Moved::noted(record) }
    }

    /// The copy, each poll of which is on the lines of its request and of its connection.
    pub fn note<F: Future>(&self, copy: F) -> impl Future<Output = F::Output> {
        match &self.held.live {
            Some(live) => Either::Left(live.note(copy)),
            None => Either::Right(copy),
        }
    }

    /// Notes how the copy ended.
    pub fn ended(&self, copied: &Result<(), Failure>) {
        if let (Err(failure), Some(trace)) = (copied, &self.held.trace) {
            trace.record.wide(|wide| wide.error = Some(failure.code.as_str()));
        }
    }
}

impl Drop for HeldTunnel {
    fn drop(&mut self) {
        if let Some(trace) = &self.held.trace {
            let (up, down) = (self.moved.up(), self.moved.down());
            trace.record.wide(|wide| (wide.request_bytes, wide.response_bytes) = (up, down));
        }
    }
}

// === impl HeldBody ===

impl HeldBody {
    pub fn new(body: Body, held: Held) -> Self {
        Self { body, held: Some(held), sent: 0 }
    }

    /// The body has ended, or is given up: so has the request.
    fn let_go(&mut self) {
        let Some(held) = self.held.take() else { return };
        if let Some(trace) = &held.trace {
            trace.record.wide(|wide| wide.response_bytes = self.sent);
        }
    }

    fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(bytes) = frame.data_ref() else { return };
        self.sent += bytes.len() as u64;
        let Some(Held { trace: Some(trace), .. }) = &self.held else { return };
        if trace.record.is_verbose() {
            event!(trace.record, TRACE, "response chunk", bytes = bytes.len() as u64);
        }
    }

    fn fail(&self, failure: &Failure) {
        let Some(held) = &self.held else { return };
        // Its head has counted as an answer already.
        if let Some(permit) = held.permit.as_ref().filter(|_| failure.blames_instance()) {
            permit.broken_off(Instant::now());
        }
        if let Some(trace) = &held.trace {
            trace.record.wide(|wide| wide.error = Some(failure.code.as_str()));
        }
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let held = this.held.as_ref();
        if let Some(live) = held.and_then(|held| held.live.as_ref()) {
            live.slot.polled();
        }
        let trace = held.and_then(|held| held.trace.as_ref());
        let entered = trace.map(Trace::enter);
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        drop(entered);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => this.note(frame),
            Poll::Ready(Some(Err(failure))) => this.fail(failure),
            Poll::Ready(None) | Poll::Pending => {}
        }
        // The end of the body is the end of the request, even if the body is kept for a while.
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            this.let_go();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use http_body::Body as _;
    use telemetry::metrics::Registry;
    use telemetry::shared_counts::Count;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::balance::load::Millis;
    use crate::balance::node::NodeLimits;
    use crate::balance::rng::Rng;
    use crate::balance::{self, Origin, Tried};
    use crate::config::Limits;
    use crate::error::Code;
    use crate::inventory::tests::{app, instances, inventory, limited, upsert};

    /// Fails as `way` says when it is polled.
    struct Broken(Way);

    type Way = fn() -> Poll<Option<Result<Frame<Bytes>, Failure>>>;

    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = Failure;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
            (self.0)()
        }
    }

    /// Ends a body that holds the node's guard in a task of its own.
    async fn end(node: &NodeLimits, way: Way) {
        let held = Held { node: node.admit().ok(), ..Held::default() };
        let mut body = HeldBody::new(Body::boxed(Broken(way)), held);
        let tasks = TaskTracker::new();
        let task = tasks.spawn_local(async move {
            let frame = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            if frame.is_pending() {
                drop(body); // the client went
            }
        });
        // A panic is an outcome like the others here.
        drop(task.await);
        tasks.close();
        tasks.wait().await;
    }

    const WAYS: [(&str, Way); 4] = [
        ("finished", || Poll::Ready(None)),
        ("failed", || Poll::Ready(Some(Err(Failure::new(Code::PU05))))),
        ("cancelled", || Poll::Pending),
        ("panicked", || panic!("on purpose")),
    ];

    #[tokio::test]
    async fn guards_are_given_back_on_every_path_ten_thousand_times() {
        // What is panicked on purpose is not worth ten thousand backtraces.
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.payload().downcast_ref::<&str>();
            if text != Some(&"on purpose") {
                eprintln!("{panic}");
            }
        }));
        let node = NodeLimits::new(&Limits::default(), Count::private(), &Registry::new(1, 10));
        let rng = Rng::seeded(1);
        let local = tokio::task::LocalSet::new();
        for round in 0..10_000 {
            let (name, way) = WAYS[rng.below(WAYS.len())];
            local.run_until(end(&node, way)).await;
            assert_eq!(node.in_flight(), 0, "{name} in round {round}");
        }
    }

    const NOW: Duration = Duration::ZERO;

    /// Whether an instance is left alone after four answers that end as `way` says.
    async fn ejects(way: Way) -> bool {
        let service = limited(1, None);
        let inventory = inventory();
        let entry = upsert(&inventory, app("a", vec![service], instances("x@own")));
        let (tried, rng) = (Tried::default(), Rng::seeded(1));
        for _ in 0..4 {
            let assigned = balance::assign(&entry, 0, &tried, Origin::Client, NOW, &rng).await;
            let assignment = assigned.unwrap();
            assignment.answered(Instant::now());
            let held = Held { permit: Some(assignment.into_permit()), ..Held::default() };
            let mut body = HeldBody::new(Body::boxed(Broken(way)), held);
            poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx).is_pending())).await;
        }
        entry.candidates[0].load(0).unwrap().is_ejected(Millis::at(Instant::now()))
    }

    #[tokio::test]
    async fn an_instance_that_breaks_its_answers_off_is_left_alone_for_a_while() {
        assert!(ejects(|| Poll::Ready(Some(Err(Failure::new(Code::PU05))))).await);
    }

    #[tokio::test]
    async fn an_instance_is_not_blamed_for_what_others_break_off() {
        assert!(!ejects(|| Poll::Ready(None)).await);
        assert!(!ejects(|| Poll::Pending).await, "the client went");
        assert!(!ejects(|| Poll::Ready(Some(Err(Failure::new(Code::PP09))))).await);
        assert!(!ejects(|| Poll::Ready(Some(Err(Failure::new(Code::PU05).excused())))).await);
    }

    #[tokio::test]
    async fn a_guard_is_held_while_the_body_is() {
        let node = NodeLimits::new(&Limits::default(), Count::private(), &Registry::new(1, 10));
        let held = Held { node: node.admit().ok(), ..Held::default() };
        let body = HeldBody::new(Body::boxed(Broken(|| Poll::Pending)), held);
        assert_eq!(node.in_flight(), 1);
        drop(body);
        assert_eq!(node.in_flight(), 0);
    }
}
