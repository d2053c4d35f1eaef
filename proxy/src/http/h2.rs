//! One HTTP/2 connection, of a client or of another node.
//!
//! The h2 crate does the protocol; this driver accepts streams and gives each a task of its own,
//! drains the cork after every poll, meters control frames, keeps deadlines, and announces a drain
//! with GOAWAY. It uses h2 rather than hyper's server because a single stream must be reset when its
//! client stops reading, and because tunnels (RFC 8441, CONNECT between nodes) are plain streams.

mod body;
pub(crate) mod meter;
mod tunnel;
mod word;
mod duplex;
mod share;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use telemetry::metrics::Gauge;
use tokio::io::AsyncWrite as _;
use tokio::time::{Instant, timeout};

use self::body::{Patience, RequestBody};
use self::meter::{Excess, Meter, Metered};
use self::share::{Chunk, Share};
use crate::alarm::{Alarm, Deadline};
use crate::body::Body;
use crate::config::Limits;
use crate::drain::{Class, Departure};
use crate::error::{Code, Failure};
use crate::http::upgrade::{self, Slot};
use crate::http::{Arrival, RequestService, date};
use crate::identify::mesh;
use crate::io::cork::{self, Cork, Handle};
use crate::io::stream::{LINGER_BYTES_MAX, Stream};
use crate::worker::{Mark, Worker};

/// What one side of the mesh or a client may have open and in flight.
#[derive(Debug, Clone)]
pub struct Settings {
    pub streams_max: u32,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub frame_bytes_max: u32,
    /// Bytes of an answer that wait to be sent on one stream.
    pub send_buffer_bytes: usize,
    /// The same of all streams together, and what one of them may add to it.
    pub held_bytes_max: usize,
    pub held_stream_bytes_max: usize,
    pub idle: Duration,
    /// Bytes of a head, decoded.
    pub head_bytes_max: usize,
    /// What a connection may send in 10 s; between nodes, where one connection carries everybody's
    /// requests, nothing is counted.
    pub control_frames_max: u32,
    pub resets_max: u32,
    /// CONNECT without a protocol is a raw tunnel: between nodes only.
    pub raw_tunnels: bool,
}

/// Room for the fields that nodes add to a client's head.
const MESH_HEAD_BYTES: usize = 8 * 1024;

/// How often an active connection looks at its deadlines.
const LOOK: Duration = Duration::from_secs(1);

/// After GOAWAY, how long a client without streams may keep the connection.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a client that was told to go may take to close its side.
const LINGER: Duration = Duration::from_secs(1);

/// How long a connection may be without a stream while memory is short.
const IDLE_WHILE_SHORT: Duration = Duration::from_secs(1);

struct Driver<'w> {
    worker: &'w Worker,
    settings: Settings,
    meter: Rc<RefCell<Meter>>,
    cork: Handle<Metered>,
    alarm: Alarm,
    started: Instant,
    /// Streams that have begun and not ended.
    streams: Rc<Cell<usize>>,
    idle_since: Option<Instant>,
    blocked: Option<(Instant, usize)>,
    departure: Departure,
    /// When GOAWAY was sent.
    farewell: Option<Instant>,
}

type H2Connection = server::Connection<Cork<Metered>, Chunk>;

/// Serves requests on `stream` with `service` until the client or the node ends it.
///
/// # Errors
///
/// Why the connection was cut.
pub async fn serve<S: RequestService>(
    stream: Stream,
    service: S,
    worker: &Rc<Worker>,
    settings: Settings,
) -> Result<(), Failure> {
    let meter = Rc::new(RefCell::new(Meter::new()));
    let (io, cork) = cork::cork(Metered::new(stream, meter.clone()), worker.buffers.clone());
    let mut driver = Driver {
        worker,
        meter,
        cork,
        alarm: worker.alarms.alarm(),
        started: Instant::now(),
        streams: Rc::default(),
        idle_since: None,
        blocked: None,
        departure: Departure::default(),
        farewell: None,
        settings,
    };
    // When the connection is gone its streams notice and end; the worker owns and awaits them.
    // One service for all streams; none of them keeps it longer than its call takes.
    let ended = driver.run(io, Rc::new(RefCell::new(service))).await;
    if driver.farewell.is_none() {
        return ended;
    }
    match ended {
        Ok(()) => driver.linger().await,
        // It was told to go, and was faster than the last of our words.
        Err(failure)
            if driver.streams.get() == 0
                && failure.code == Code::PP09
                && std::error::Error::source(&failure).is_some() => {}
        Err(failure) => return Err(failure),
    }
    Ok(())
}

// === impl Driver ===

impl Driver<'_> {
    async fn run<S: RequestService>(
        &mut self,
        io: Cork<Metered>,
        service: Rc<RefCell<S>>,
    ) -> Result<(), Failure> {
        let mut connection = self.handshake(io).await?;
        self.alarm.disarm();
        let Settings { held_bytes_max, held_stream_bytes_max, raw_tunnels, .. } = self.settings;
        let context = StreamContext {
            worker: self.worker.this(),
            share: Share::new(held_bytes_max, held_stream_bytes_max),
            raw_tunnels,
        };
        poll_fn(|cx| {
            self.meter.borrow_mut().begin_turn();
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        self.idle_since = None;
                        let counted =
                            Counted::new(&self.streams, &self.worker.metrics.stream_tasks);
                        let (service, context) = (service.clone(), context.clone());
                        let stream = |mark| async move {
                            // Boxed at its first poll: it is large, and what is spawned is moved
                            // many times on its way into a task.
                            Box::pin(serve_stream(request, respond, service, context, mark)).await;
                            drop(counted);
                        };
                        if self.settings.raw_tunnels {
                            self.worker.spawn_peer_stream(stream);
                        } else {
                            self.worker.spawn_stream(stream);
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        // What h2 wrote last (GOAWAY) should still go; nobody is told if it cannot.
                        drop(self.cork.poll_drain(cx));
                        return Poll::Ready(Err(broken(error)));
                    }
                    Poll::Ready(None) => {
                        drop(self.cork.poll_drain(cx));
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Pending => return self.poll_after(&mut connection, cx).map(Err),
                }
            }
        })
        .await
    }

    async fn handshake(&self, io: Cork<Metered>) -> Result<H2Connection, Failure> {
        let mut handshake = pin!(self.builder().handshake::<_, Chunk>(io));
        let timeout = self.worker.edge.config.timeouts.request_head;
        poll_fn(|cx| {
            let connection = handshake.as_mut().poll(cx);
            if let Poll::Ready(Err(error)) = self.cork.poll_drain(cx) {
                return Poll::Ready(Err(Failure::new(Code::PP09).because(error)));
            }
            if connection.is_pending() {
                if self.alarm.is_due() {
                    return Poll::Ready(Err(Code::PP06.into()));
                }
                self.alarm.arm_once(timeout, cx);
            }
            connection.map_err(broken)
        })
        .await
    }

    fn builder(&self) -> server::Builder {
        let Settings {
            streams_max,
            stream_window_bytes,
            connection_window_bytes,
            frame_bytes_max,
            send_buffer_bytes,
            held_bytes_max: _,
            held_stream_bytes_max: _,
            head_bytes_max,
            control_frames_max: _,
            resets_max,
            idle: _,
            raw_tunnels: _,
        } = self.settings;
        let mut builder = server::Builder::new();
        builder
            .max_concurrent_streams(streams_max)
            .initial_window_size(stream_window_bytes)
            .initial_connection_window_size(connection_window_bytes)
            .max_frame_size(frame_bytes_max)
            .max_send_buffer_size(send_buffer_bytes)
            .max_header_list_size(head_bytes_max as u32)
            .max_pending_accept_reset_streams(20)
            .max_concurrent_reset_streams(20)
            .max_local_error_reset_streams(Some(resets_max as usize))
            .enable_connect_protocol();
        builder
    }

    /// What follows every poll of the connection: the cork, the meter, the clock, the drain.
    fn poll_after(&mut self, connection: &mut H2Connection, cx: &mut Context<'_>) -> Poll<Failure> {
        match self.cork.poll_drain(cx) {
            Poll::Ready(Ok(())) => self.blocked = None,
            Poll::Ready(Err(error)) => return Poll::Ready(Failure::new(Code::PP09).because(error)),
            Poll::Pending => {}
        }
        let Settings { control_frames_max, resets_max, .. } = self.settings;
        let excess = self.meter.borrow().excess(control_frames_max, resets_max);
        if excess.is_some() {
            return self.abort(connection, cx);
        }
        if self.worker.is_over(Class::Request) && self.streams.get() == 0 {
            return Poll::Ready(Code::PL05.into());
        }
        if self.farewell.is_none()
            && let Some(at) = self.departure()
        {
            if self.alarm.is_over(at) {
                return self.say_farewell(connection, cx);
            }
            self.alarm.arm_by(at, cx);
        }
        if self.alarm.is_due() {
            self.alarm.disarm();
            if let Poll::Ready(failure) = self.look(connection, cx) {
                return Poll::Ready(failure);
            }
        }
        self.alarm.arm_once(LOOK, cx);
        Poll::Pending
    }

    fn look(&mut self, connection: &mut H2Connection, cx: &Context<'_>) -> Poll<Failure> {
        let now = Instant::now();
        let timeouts = &self.worker.edge.config.timeouts;
        match self.meter.borrow_mut().look(now - self.started, now) {
            Some(Excess::HeaderBlock | Excess::SettingsAck) => {
                return Poll::Ready(Code::PP06.into());
            }
            Some(Excess::ControlFrames | Excess::Resets) | None => {}
        }
        match (self.cork.pending(), &mut self.blocked) {
            (0, blocked) => *blocked = None,
            (pending, Some((since, before))) if pending == *before => {
                if now - *since >= timeouts.response_write {
                    return Poll::Ready(Code::PP06.into());
                }
            }
            (pending, blocked) => *blocked = Some((now, pending)),
        }
        if self.streams.get() == 0 {
            let idle_since = *self.idle_since.get_or_insert(now);
            if body::is_stalled(self.farewell, FAREWELL, now) {
                return Poll::Ready(Code::PP09.into()); // told to go, and did not
            }
            let idle_max = self.idle_max();
            if self.farewell.is_none() && now - idle_since >= idle_max {
                if idle_max < self.settings.idle {
                    self.worker.metrics.pressure.close.increment();
                }
                return self.say_farewell(connection, cx);
            }
        }
        Poll::Pending
    }

    /// When a drain wants it gone. Another node is told in other words that it should send elsewhere, and
    /// keeps its connection for what nobody else can take, while the node is there.
    fn departure(&self) -> Option<Deadline> {
        let stays = self.settings.raw_tunnels && !self.worker.is_leaving();
        self.departure.at(self.worker, &self.alarm).filter(|_| !stays)
    }

    /// Ends our side and waits for the client's. What it still sends for streams that are over would
    /// otherwise be answered with a reset, and that could cost it the end of the last answer.
    async fn linger(&self) {
        let shut = poll_fn(|cx| {
            ready!(self.cork.poll_drain(cx))?;
            self.cork.with(|io| Pin::new(io).poll_shutdown(cx))
        });
        drop(timeout(LINGER, shut).await);
        let mut left = LINGER_BYTES_MAX;
        let discard = poll_fn(|cx| self.cork.with(|io| io.poll_discard(&mut left, cx)));
        drop(timeout(LINGER, discard).await);
    }

    /// How long the connection may be without a stream. Nodes keep theirs while memory is short: there
    /// are few, and the next request would open another.
    fn idle_max(&self) -> Duration {
        let gives_way = self.worker.is_short_of_memory() && !self.settings.raw_tunnels;
        if gives_way { IDLE_WHILE_SHORT.min(self.settings.idle) } else { self.settings.idle }
    }

    /// GOAWAY in two steps (h2 does them); new streams are refused, running ones finish.
    fn say_farewell(&mut self, connection: &mut H2Connection, cx: &Context<'_>) -> Poll<Failure> {
        self.farewell = Some(Instant::now());
        connection.graceful_shutdown();
        cx.waker().wake_by_ref(); // h2 writes it when it is polled
        Poll::Pending
    }

    fn abort(&self, connection: &mut H2Connection, cx: &mut Context<'_>) -> Poll<Failure> {
        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        // One poll writes the GOAWAY, one drain sends it; the client gets no more patience than that.
        drop(connection.poll_closed(cx));
        drop(self.cork.poll_drain(cx));
        Poll::Ready(Failure::new(Code::PP02))
    }
}

/// Why h2 gave the connection up: the client went away, or broke the protocol.
fn broken(error: h2::Error) -> Failure {
    let gone = error.is_io() || error.is_remote();
    Failure::new(if gone { Code::PP09 } else { Code::PP02 }).because(error)
}

/// One stream of a connection, while it lives.
struct Counted {
    streams: Rc<Cell<usize>>,
    tasks: Gauge,
}

impl Counted {
    fn new(streams: &Rc<Cell<usize>>, tasks: &Gauge) -> Self {
        streams.set(streams.get() + 1);
        tasks.add(1);
        Self { streams: streams.clone(), tasks: tasks.clone() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
        self.tasks.add(-1);
    }
}

#[derive(Clone)]
struct StreamContext {
    worker: Rc<Worker>,
    share: Rc<Share>,
    raw_tunnels: bool,
}

/// One request and its answer.
async fn serve_stream<S: RequestService>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
    service: Rc<RefCell<S>>,
    context: StreamContext,
    mark: Mark,
) {
    let worker = &context.worker;
    if context.raw_tunnels && word::is_asked_for(&request) {
        return Box::pin(word::say(respond, &context.share, worker)).await;
    }
    let timeouts = &worker.edge.config.timeouts;
    let (mut head, recv) = request.into_parts();
    let protocol = head.extensions.remove::<h2::ext::Protocol>();
    let protocol = match (protocol, &head.method) {
        (Some(protocol), &Method::CONNECT) => Some(protocol.as_str().to_ascii_lowercase().into()),
        (None, &Method::CONNECT) if context.raw_tunnels => Some(upgrade::RAW.into()),
        _ => None,
    };
    let is_head = head.method == Method::HEAD;
    let slot = Slot::default();
    let answered = Rc::<Cell<bool>>::default();
    let upgrade = protocol.map(|protocol| upgrade::Request { protocol, slot: slot.clone() });
    let (body, tunnel) = if upgrade.is_some() {
        head.method = Method::GET; // an upgrade, as HTTP/1 has it
        (Body::Empty, Some(recv))
    } else if recv.is_end_stream() {
        (Body::Empty, None)
    } else {
        let patience = Patience {
            alarm: worker.alarms.alarm(),
            window: timeouts.request_body,
            silence: timeouts.websocket_idle,
            answered: answered.clone(),
            read: 0,
            waiting: false,
        };
        (Body::boxed(RequestBody::new(recv, patience)), None)
    };
    let arrival = Arrival { request: Request::from_parts(head, body), upgrade };
    let answer = service.borrow_mut().call(arrival);
    drop(service);
    let Some(response) = unless_reset(answer, &mut respond, &context).await else { return };
    answered.set(true);
    let (mut head, mut body) = response.into_parts();
    if context.raw_tunnels {
        // Ours to say, whatever an instance does.
        head.headers.remove(mesh::DRAINING);
        if worker.edge.drain.is_told() {
            head.headers.insert(mesh::DRAINING, HeaderValue::from_static("1"));
        }
    }
    head.headers.remove(header::CONNECTION);
    date::complete(&mut head.headers);
    if let (Some(recv), Some(switched)) = (tunnel, slot.take()) {
        // Boxed: few streams are tunnels, and all would carry the space for it.
        worker.classify(mark, switched.kind.class());
        return Box::pin(tunnel::serve(head, recv, respond, switched, &context.share, worker))
            .await;
    }
    //= https://www.rfc-editor.org/rfc/rfc9110#section-9.3.2
    //# the server MUST NOT send content in the response
    // hyper sees to that in HTTP/1; our own answers have a sentence in them whatever the method.
    if is_head || head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED {
        body = Body::Empty;
    }
    let ends = body.is_end_stream();
    let Ok(send) = respond.send_response(Response::from_parts(head, ()), ends) else { return };
    if !ends && let Err(failure) = body::send(send, &mut body, &context.share, worker).await {
        worker.count(&failure);
    }
}

/// The answer, unless the client gives up first: then the request is dropped at once, and with it
/// what it does upstream.
async fn unless_reset<E>(
    answer: impl Future<Output = Result<Response<Body>, E>>,
    respond: &mut SendResponse<Chunk>,
    context: &StreamContext,
) -> Option<Response<Body>> {
    let mut answer = pin!(answer);
    poll_fn(|cx| {
        // With the head comes a part of the body.
        let (room, poll) = (context.share.first_room(), || answer.as_mut().poll(cx));
        if let Poll::Ready(answer) = context.worker.buffers.within(room, poll) {
            return Poll::Ready(answer.ok());
        }
        respond.poll_reset(cx).map(|_| None)
    })
    .await
}

impl Settings {
    /// Towards clients.
    pub fn for_clients(limits: &Limits, idle: Duration) -> Self {
        Self {
            streams_max: limits.h2_streams_max,
            stream_window_bytes: limits.h2_stream_window_bytes,
            connection_window_bytes: limits.h2_connection_window_bytes,
            frame_bytes_max: 16 * 1024,
            send_buffer_bytes: limits.h2_send_buffer_bytes,
            held_bytes_max: limits.h2_connection_send_buffer_bytes,
            held_stream_bytes_max: limits.h2_send_buffer_bytes,
            idle,
            head_bytes_max: limits.head_bytes_max,
            control_frames_max: limits.h2_control_frames_max,
            resets_max: limits.h2_resets_max,
            raw_tunnels: false,
        }
    }

    /// Towards other nodes: windows for a long fat path, four stalled streams cannot starve the rest.
    pub fn for_peers(limits: &Limits) -> Self {
        Self {
            streams_max: limits.upstream_streams_max,
            stream_window_bytes: 1024 * 1024,
            connection_window_bytes: 16 * 1024 * 1024,
            frame_bytes_max: 64 * 1024,
            send_buffer_bytes: 256 * 1024,
            // Everybody's requests share the connection: what clients of one app do not read must not
            // make those of another wait.
            held_bytes_max: usize::MAX,
            held_stream_bytes_max: usize::MAX,
            idle: Duration::from_secs(600),
            // As a client may send, and what the first node adds to it.
            head_bytes_max: limits.head_bytes_max + MESH_HEAD_BYTES,
            control_frames_max: u32::MAX,
            resets_max: u32::MAX,
            raw_tunnels: true,
        }
    }
}
