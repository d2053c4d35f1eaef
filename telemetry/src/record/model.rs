//! The words a record is made of, shared by who writes it and who reads it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// W3C trace id. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

/// W3C span id. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub u64);

/// A span of somebody else's: the one before this node's, or one that is merely linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    pub trace: TraceId,
    pub span: SpanId,
}

/// How much is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Verbosity {
    /// The wide event only: no buffer was left, or the request gave its own back.
    Wide,
    /// Spans and events of our own code.
    #[default]
    Normal,
    /// Every chunk and poll, and what libraries say.
    Verbose,
}

/// Why a record was kept beyond the request's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Keep {
    Error,
    Slow,
    Retried,
    Sampled,
    Verbose,
    /// Something unusual happened on this node less than 60 s before.
    NearAnomaly,
}

/// One value in a record. The constructors are the allow-list: what a client wrote is none of them
/// but [`Self::Exposed`], which only [`crate::sensitive`] makes, for fields the configuration names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// From our own source.
    Static(&'static str),
    /// From the operator's inventory or configuration: an app, a node, an instance.
    Catalogued(&'a str),
    /// A client's or library's text that the configuration exposes.
    Exposed(&'a str),
}

/// A kept record, or a segment of one that is still open.
///
/// Everything in it is owned and of bounded size, so it may travel to another thread.
#[derive(Debug)]
pub struct Finished {
    pub wide: Wide,
    pub keep: Keep,
    /// Sampled on by another node of the edge: exported whatever this node's budgets say of it.
    pub continued: bool,
    /// The encoded entries; [`Finished::entries`] reads them.
    pub(crate) entries: Box<[u8]>,
    /// Entries that found no room.
    pub entries_cut: u32,
    pub bytes_cut: u32,
    /// 0 for the first segment of a long request.
    pub segment: u16,
    /// Whether the request goes on after this segment.
    pub open: bool,
}

/// The wide event: what is known of every request, always.
#[derive(Debug, Clone)]
pub struct Wide {
    pub trace: TraceId,
    /// The span of the request on this node.
    pub span: SpanId,
    /// The span of the node before this one.
    pub parent: Option<Remote>,
    /// What the client said it belongs to; linked, never continued.
    pub link: Option<Remote>,
    /// Since the Unix epoch.
    pub began: Duration,
    pub lasted: Duration,
    /// Until the head of the answer was known.
    pub head_after: Option<Duration>,
    /// As ULID-region, at most 64 bytes.
    pub request_id: ShortText<64>,
    pub verbosity: Verbosity,
    pub app: Option<Arc<str>>,
    pub instance: Option<Arc<str>>,
    /// The node that has the instance.
    pub node: Option<Arc<str>>,
    pub method: Method,
    pub protocol: Protocol,
    pub tls: bool,
    /// Absent when the client went before it was answered.
    pub status: Option<u16>,
    /// The code of a failure: a closed set.
    pub error: Option<&'static str>,
    pub attempts: u32,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Client text, present only when the configuration exposes some.
    pub exposed: Option<Box<Exposed>>,
}

/// Client text of a request, each present only when `telemetry.expose` names it.
#[derive(Debug, Clone, Default)]
pub struct Exposed {
    pub client: Option<IpAddr>,
    /// At most 256 bytes each, cut at a character.
    pub host: Option<Box<str>>,
    pub path: Option<Box<str>>,
    pub query: Option<Box<str>>,
    pub user_agent: Option<Box<str>>,
}

/// Request methods by name; a stranger's own invention is `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    #[default]
    Other,
}

/// What the client spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    #[default]
    Http1,
    Http2,
    /// From another node, over the mesh.
    Mesh,
    Tcp,
    WebSocket,
}

/// Text of at most `N` bytes, cut at a character; no allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShortText<const N: usize> {
    len: u16,
    bytes: [u8; N],
}

/// One entry of a record, as it is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry<'a> {
    Span(Span<'a>),
    Event(Event<'a>),
}

/// A stretch of work inside a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Span<'a> {
    pub id: SpanId,
    /// The span of the record it lies in; the request's own when absent.
    pub parent: Option<SpanId>,
    pub name: &'static str,
    pub target: &'static str,
    /// Since the request began.
    pub start: Duration,
    /// Absent when it was still open.
    pub end: Option<Duration>,
    pub busy: Duration,
    pub idle: Duration,
    pub polls: u32,
    pub failed: bool,
    pub fields: Vec<(&'static str, Value<'a>)>,
}

/// Something that happened at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// The span it happened in; the request's own when absent.
    pub span: Option<SpanId>,
    pub name: &'static str,
    pub target: &'static str,
    pub level: tracing::Level,
    /// Since the request began.
    pub at: Duration,
    pub fields: Vec<(&'static str, Value<'a>)>,
}

// === impl Value ===

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::Unsigned(value)
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Self::Unsigned(value.into())
    }
}

impl From<u16> for Value<'_> {
    fn from(value: u16) -> Self {
        Self::Unsigned(value.into())
    }
}

impl From<usize> for Value<'_> {
    fn from(value: usize) -> Self {
        Self::Unsigned(value as u64)
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Signed(value)
    }
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&'static str> for Value<'_> {
    fn from(value: &'static str) -> Self {
        Self::Static(value)
    }
}

// === impl Wide ===

impl Wide {
    /// Of a request about which nothing else is known yet.
    pub fn new(trace: TraceId, span: SpanId) -> Self {
        Self {
            trace,
            span,
            parent: None,
            link: None,
            began: Duration::ZERO,
            lasted: Duration::ZERO,
            head_after: None,
            request_id: ShortText::default(),
            verbosity: Verbosity::default(),
            app: None,
            instance: None,
            node: None,
            method: Method::default(),
            protocol: Protocol::default(),
            tls: false,
            status: None,
            error: None,
            attempts: 0,
            request_bytes: 0,
            response_bytes: 0,
            exposed: None,
        }
    }

    /// The event with what it owns, which is no longer here.
    pub(super) fn take(&mut self) -> Self {
        Self {
            app: self.app.take(),
            instance: self.instance.take(),
            node: self.node.take(),
            exposed: self.exposed.take(),
            ..*self
        }
    }

    /// Gives back what it owns, so that a free slot holds on to no app that went.
    pub(super) fn release(&mut self) {
        self.app = None;
        self.instance = None;
        self.node = None;
        self.exposed = None;
    }
}

// === impl TraceId, SpanId ===

/// 32 hexadecimal digits, as `traceparent` and OTLP have it.
impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// 16 hexadecimal digits.
impl std::fmt::Display for SpanId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

// === impl Keep, Method, Protocol ===

impl Keep {
    pub const ALL: [Self; 6] =
        [Self::Error, Self::Slow, Self::Retried, Self::Sampled, Self::Verbose, Self::NearAnomaly];

    /// As labels, attributes and logs say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Slow => "slow",
            Self::Retried => "retried",
            Self::Sampled => "sampled",
            Self::Verbose => "verbose",
            Self::NearAnomaly => "near_anomaly",
        }
    }
}

impl Method {
    /// As OpenTelemetry writes `http.request.method`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            // The conventions' name for what is not among theirs.
            Self::Other => "_OTHER",
        }
    }
}

impl Protocol {
    /// As the access log says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Mesh => "mesh",
            Self::Tcp => "tcp",
            Self::WebSocket => "websocket",
        }
    }
}

// === impl ShortText ===

impl<const N: usize> ShortText<N> {
    /// The first `N` bytes of `text` that are whole characters.
    pub fn new(text: &str) -> Self {
        let len = text.floor_char_boundary(N);
        let mut bytes = [0; N];
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self { len: len as u16, bytes }
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl<const N: usize> Default for ShortText<N> {
    fn default() -> Self {
        Self { len: 0, bytes: [0; N] }
    }
}

impl<const N: usize> std::fmt::Debug for ShortText<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}
