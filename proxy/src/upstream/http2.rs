//! One HTTP/2 connection to an instance or node, shared by the requests of a worker.
//!
//! A [`Connection`] is a handle: a task of its own drives the socket behind it (`driver.rs`). It
//! gives out [`Slot`]s, one per stream, of which there are never more than the peer allows; who
//! finds none waits in line, and the line is bounded. A connection that is told to go away, breaks
//! or is misused is retired: it takes no further stream, ends with its last one, and whoever asks
//! gets another connection.

mod driver;
mod empty;
mod cancel;
mod download;
mod upload;
mod stream;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::Request;
use telemetry::heapwatch::{Subsystem, tagged};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::config;
use crate::error::{Code, Failure, Retry};
use crate::io::cork::{Buffers, cork};

use cancel::{Cancelled, Pace};
use empty::{Empties, Watched};
pub(super) use stream::Stream;

/// What every HTTP/2 connection of a worker shares.
#[derive(Clone)]
pub(super) struct Http2 {
    pub(super) timeouts: config::Timeouts,
    streams_max: usize,
    resets_per_second: u32,
    header_bytes_max: u32,
    fields_max: usize,
    buffers: Buffers,
    pub(super) tasks: TaskTracker,
}

/// What differs between the two kinds of peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// An instance on this node, without TLS.
    Instance,
    /// Another node.
    Node,
}

pub(super) struct Connection {
    http2: Http2,
    /// `None` once it is retired.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    phase: Cell<Phase>,
    phase_changed: Notify,
    /// Streams that count against the peer's limit.
    streams: Cell<usize>,
    /// Those of them that somebody still wants.
    live: Cell<usize>,
    waiting: Cell<usize>,
    freed: Notify,
    idle_since: Cell<Instant>,
    answered: Cell<bool>,
    empties: Empties,
    pace: RefCell<Pace>,
    /// Streams nobody wants, until they end or their reset may go out. No more than `streams`.
    cancelled: RefCell<Vec<Cancelled>>,
    driver: RefCell<Option<Waker>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The peer's SETTINGS have not come.
    Opening,
    Open,
    Ended,
}

/// The right to one stream.
pub(super) struct Slot {
    connection: Rc<Connection>,
    is_live: bool,
}

/// Why there is no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// The connection takes no further stream: ask for another.
    Retired,
    /// The line is full, or the wait was too long.
    Full,
}

/// Cancelled streams that wait for their reset before the connection is retired: above this it is
/// cheaper to begin a new one, and all of them end with the old one.
const CANCELLED_MAX: usize = 64;

/// The longest idle time of a connection to a node: a TLS handshake across the world is dear.
const NODE_IDLE: Duration = Duration::from_secs(300);

// === impl Http2 ===

impl Http2 {
    pub(super) fn new(
        limits: &config::Limits,
        timeouts: &config::Timeouts,
        buffers: Buffers,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            timeouts: timeouts.clone(),
            streams_max: limits.upstream_streams_max as usize,
            resets_per_second: limits.h2_resets_max / 2,
            header_bytes_max: u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX),
            fields_max: limits.header_fields_max,
            buffers,
            tasks,
        }
    }

    /// Speaks HTTP/2 on `io` and waits for the peer's SETTINGS. `counted` is dropped with the
    /// connection.
    ///
    /// # Errors
    ///
    /// PU01: the peer closed, said something else, or said nothing in time.
    pub(super) async fn open<T>(
        &self,
        io: T,
        peer: Peer,
        counted: impl Sized + 'static,
    ) -> Result<Rc<Connection>, Failure>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let failed = || Failure::new(Code::PU01).retry(Retry::Unsent);
        let (watched, empties) = Watched::new(io);
        let (corked, handle) = cork(watched, self.buffers.clone());
        let (sender, mut h2) = peer
            .builder(self.header_bytes_max)
            .handshake(corked)
            .await
            .map_err(|error| failed().because(error))?;
        let pings = match peer {
            // gRPC servers answer PINGs without data with ENHANCE_YOUR_CALM, and an instance on
            // this machine does not vanish without its kernel saying so.
            Peer::Instance => None,
            Peer::Node => h2.ping_pong(),
        };
        let idle = match peer {
            Peer::Instance => self.timeouts.h2_idle,
            Peer::Node => NODE_IDLE,
        };
        let connection = Rc::new(Connection::new(self.clone(), sender, empties));
        let driver = driver::Driver::new(h2, handle, pings, idle, connection.clone());
        self.tasks.spawn_local(tagged(Subsystem::Upstream, driver.run(counted)));

        match timeout(self.timeouts.connect, connection.opened()).await {
            Ok(Phase::Open) => Ok(connection),
            Ok(_) => Err(failed().because("the connection ended before SETTINGS came")),
            Err(elapsed) => {
                connection.retire();
                Err(failed().because(elapsed))
            }
        }
    }
}

// === impl Peer ===

impl Peer {
    fn builder(self, header_bytes_max: u32) -> Builder {
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            // No stream before the peer's SETTINGS; that they came shows in this number.
            .initial_max_send_streams(0)
            .max_header_list_size(header_bytes_max)
            // Above what the pace of resets lets happen in the second they are remembered.
            .max_concurrent_reset_streams(128)
            .max_local_error_reset_streams(Some(1024));
        match self {
            Self::Instance => builder
                .initial_window_size(256 * 1024)
                .initial_connection_window_size(2 * 1024 * 1024)
                .max_send_buffer_size(64 * 1024),
            Self::Node => builder
                .initial_window_size(1024 * 1024)
                .initial_connection_window_size(16 * 1024 * 1024)
                .max_frame_size(64 * 1024)
                .max_send_buffer_size(256 * 1024),
        };
        builder
    }
}

// === impl Connection ===

impl Connection {
    fn new(http2: Http2, sender: SendRequest<Bytes>, empties: Empties) -> Self {
        let pace = Pace::new(http2.resets_per_second, Instant::now());
        Self {
            http2,
            sender: RefCell::new(Some(sender)),
            phase: Cell::new(Phase::Opening),
            phase_changed: Notify::new(),
            streams: Cell::new(0),
            live: Cell::new(0),
            waiting: Cell::new(0),
            freed: Notify::new(),
            idle_since: Cell::new(Instant::now()),
            answered: Cell::new(false),
            empties,
            pace: RefCell::new(pace),
            cancelled: RefCell::default(),
            driver: RefCell::default(),
        }
    }

    /// The right to open a stream, in the order of asking.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line.
    pub(super) async fn slot(self: &Rc<Self>) -> Result<Slot, NoSlot> {
        if self.waiting.get() == 0 {
            match self.try_slot() {
                Err(NoSlot::Full) => {}
                outcome => return outcome,
            }
        }
        if self.waiting.get() >= self.http2.streams_max {
            return Err(NoSlot::Full);
        }
        let _waiting = Waiting::begin(&self.waiting);
        let in_line = async {
            loop {
                self.freed.notified().await;
                match self.try_slot() {
                    Err(NoSlot::Full) => {}
                    outcome => {
                        // The peer may have raised its limit by more than one.
                        if self.streams.get() < self.streams_now() {
                            self.freed.notify_one();
                        }
                        return outcome;
                    }
                }
            }
        };
        timeout(self.http2.timeouts.queue, in_line).await.unwrap_or(Err(NoSlot::Full))
    }

    fn try_slot(self: &Rc<Self>) -> Result<Slot, NoSlot> {
        if !self.is_usable() {
            return Err(NoSlot::Retired);
        }
        if self.streams.get() >= self.streams_now() {
            return Err(NoSlot::Full);
        }
        self.streams.update(|n| n + 1);
        self.live.update(|n| n + 1);
        Ok(Slot { connection: self.clone(), is_live: true })
    }

    /// May it take another stream? Retires it if the peer has said that it may not, or would make h2
    /// end it.
    pub(super) fn is_usable(&self) -> bool {
        let ready = match self.sender.borrow_mut().as_mut() {
            None => return false,
            // Never pending: this handle opens no stream itself.
            Some(sender) => sender.poll_ready(&mut Context::from_waker(Waker::noop())),
        };
        let is_usable = !matches!(ready, Poll::Ready(Err(_))) && !self.empties.are_too_many();
        if !is_usable {
            self.retire();
        }
        is_usable
    }

    /// It has answered a request: the peer does more than to accept connections.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.get()
    }

    /// Takes no further stream and ends with the last one that somebody wants.
    pub(super) fn retire(&self) {
        drop(self.sender.borrow_mut().take());
        self.freed.notify_waiters();
        self.wake_driver();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.get() == 0 && self.waiting.get() == 0
    }

    pub(super) fn allows_extended_connect(&self) -> bool {
        let sender = self.sender.borrow();
        sender.as_ref().is_some_and(SendRequest::is_extended_connect_protocol_enabled)
    }

    /// Opens a stream: the head goes out at the end of this turn.
    fn open_stream(
        &self,
        head: Request<()>,
        is_end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        // A handle of its own: h2 lets one handle queue a single stream, and slots bound them here.
        let sender = self.sender.borrow().clone();
        let Some(mut sender) = sender else { return Err(h2::Reason::REFUSED_STREAM.into()) };
        sender.send_request(head, is_end)
    }

    fn streams_now(&self) -> usize {
        let sender = self.sender.borrow();
        let peers = sender.as_ref().map_or(0, SendRequest::current_max_send_streams);
        peers.min(self.http2.streams_max)
    }

    async fn opened(&self) -> Phase {
        loop {
            let changed = self.phase_changed.notified();
            match self.phase.get() {
                Phase::Opening => changed.await,
                phase => return phase,
            }
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.phase_changed.notify_waiters();
    }

    fn is_retired(&self) -> bool {
        self.sender.borrow().is_none()
    }

    /// Ends a stream that nobody wants any more: at once if its reset may go out, otherwise the
    /// driver discards what comes on it until it ends or may be reset.
    fn cancel(&self, mut cancelled: Cancelled) {
        if self.pace.borrow_mut().take(Instant::now()) {
            return; // h2 resets a stream when its last handle is dropped
        }
        cancelled.slot.give_up();
        self.cancelled.borrow_mut().push(cancelled);
        let is_flooded = self.cancelled.borrow().len() > CANCELLED_MAX;
        if is_flooded && !self.is_retired() {
            self.retire();
        }
        self.wake_driver();
    }

    fn wake_driver(&self) {
        let waker = self.driver.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

// === impl Slot ===

impl Slot {
    /// Nobody wants the stream; the peer still counts it.
    fn give_up(&mut self) {
        if std::mem::take(&mut self.is_live) {
            self.connection.live.update(|n| n - 1);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.give_up();
        let connection = &self.connection;
        connection.streams.update(|n| n - 1);
        if connection.streams.get() == 0 {
            connection.idle_since.set(Instant::now());
        }
        if connection.waiting.get() > 0 {
            connection.freed.notify_one();
        }
        if connection.is_retired() {
            connection.wake_driver();
        }
    }
}

/// One more in the line, until dropped.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a Cell<usize>) -> Self {
        waiting.update(|n| n + 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.update(|n| n - 1);
    }
}
