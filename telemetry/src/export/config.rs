//! The exporter's knobs, as `[telemetry.otlp]` of `edge.toml` sets them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Uri};

/// What is exported, where to, and what that may hold.
///
/// The environment variables of the OpenTelemetry specification win over it; see [`Self::resolve`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The collector's base URL; each signal has its own path below it. Absent: nothing is
    /// exported, and nothing is kept for export.
    pub endpoint: Option<String>,
    /// Default: `http/protobuf`.
    pub protocol: Protocol,
    /// Sent with every request. They may be secrets and are never shown.
    pub headers: Headers,
    /// Longest one attempt may take, from connecting to the end of the answer. Default: 10 s.
    pub timeout: Duration,
    /// Default: none.
    pub compression: Compression,
    /// A PEM file of authorities to trust instead of the machine's.
    pub certificate: Option<PathBuf>,
    /// Bytes of records and logs that may wait, those being sent included. Default: 8 MiB.
    pub queue_bytes: usize,
    /// Spans and logs that may wait, if they are to be bounded by number too. Default: no.
    pub queue_units: Option<usize>,
    /// Bytes of records kept for `ferrule trace show`. Default: 2 MiB.
    pub ring_bytes: usize,
    /// Spans in one request. Default: 512.
    pub batch_spans: usize,
    /// Bytes of one encoded request, before compression. Default: 1 MiB. While it is sent, the
    /// process holds about twice as many.
    pub batch_bytes: usize,
    /// Longest a record waits for others to be sent with. Default: 5 s.
    pub schedule_delay: Duration,
    /// How often finished records are taken from the workers, if no outbox fills sooner. Default: 100 ms.
    pub poll: Duration,
    /// Wait before the first repetition; doubles up to [`Self::retry_max`]. Default: 1 s.
    pub retry_initial: Duration,
    /// Default: 30 s.
    pub retry_max: Duration,
    /// How long one batch is tried before it is dropped. Default: 5 min.
    pub give_up_after: Duration,
    /// How often metrics are sent. Default: 60 s.
    pub metric_interval: Duration,
}

/// How requests are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    #[default]
    HttpProtobuf,
    Grpc,
}

/// How requests are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
}

/// Names and values of headers; `Debug` shows the names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

/// Where and how one signal is sent: validated.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) uri: Uri,
    pub(super) protocol: Protocol,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) compression: Compression,
    pub(super) certificate: Option<PathBuf>,
    /// Certificate and key, where the collector wants one.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: Protocol::default(),
            headers: Headers::default(),
            timeout: Duration::from_secs(10),
            compression: Compression::default(),
            certificate: None,
            queue_bytes: 8 * MIB,
            queue_units: None,
            ring_bytes: 2 * MIB,
            batch_spans: 512,
            batch_bytes: MIB,
            schedule_delay: Duration::from_secs(5),
            poll: Duration::from_millis(100),
            retry_initial: Duration::from_secs(1),
            retry_max: Duration::from_secs(30),
            give_up_after: Duration::from_secs(300),
            metric_interval: Duration::from_secs(60),
        }
    }
}

const MIB: usize = 1024 * 1024;

impl Protocol {
    /// As the specification spells it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "http/protobuf" => Some(Self::HttpProtobuf),
            "grpc" => Some(Self::Grpc),
            _ => None,
        }
    }
}

impl Compression {
    /// As the specification spells it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "gzip" => Some(Self::Gzip),
            _ => None,
        }
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Headers and the query of a URL may be secrets.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.uri.host().unwrap_or_default();
        f.debug_struct("Target").field("host", &host).field("protocol", &self.protocol).finish()
    }
}
