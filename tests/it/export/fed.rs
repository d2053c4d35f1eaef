//! Records that tests hand to the exporter, in place of the workers'.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use telemetry::export::{Config, Exportable, Exporter, Handle, Identity, Reason, Source};
use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use telemetry::record::model::{
    Entry, Event, Exposed, Keep, Method, Protocol, Remote, ShortText, Span, SpanId, TraceId, Value,
    Verbosity, Wide,
};
use tests::collector::Collector;

/// When every record began, since the epoch.
pub(super) const BEGAN: Duration = Duration::from_secs(1_700_000_000);

/// A record of which every part is known.
pub(super) struct Fed {
    pub(super) wide: Wide,
    pub(super) keep: Keep,
    pub(super) segment: u16,
    pub(super) open: bool,
    pub(super) entries: Vec<Entry<'static>>,
    /// Bytes it holds besides.
    pub(super) padding: Vec<u8>,
    /// From the moment it was taken.
    pub(super) weight: Option<Weight>,
}

/// Bytes of all records that were taken and still exist: what the exporter really holds of them,
/// whatever it says.
#[derive(Clone, Default)]
pub(super) struct Live(Arc<AtomicUsize>);

pub(super) struct Weight {
    live: Live,
    bytes: usize,
}

impl Live {
    pub(super) fn bytes(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.live.0.fetch_sub(self.bytes, SeqCst);
    }
}

impl Fed {
    /// A request without anything written down.
    pub(super) fn plain(id: u64) -> Self {
        let wide = Wide {
            trace: TraceId(u128::from(id) + 1),
            span: SpanId(id + 1),
            parent: None,
            link: None,
            began: BEGAN,
            lasted: Duration::from_millis(20),
            head_after: None,
            request_id: ShortText::new("01J-ams"),
            verbosity: Verbosity::Normal,
            app: Some("hello".into()),
            instance: None,
            node: None,
            method: Method::Get,
            protocol: Protocol::Http1,
            tls: false,
            status: Some(200),
            error: None,
            attempts: 1,
            request_bytes: 0,
            response_bytes: 5,
            exposed: None,
        };
        let (keep, entries, padding) = (Keep::Sampled, Vec::new(), Vec::new());
        Self { wide, keep, segment: 0, open: false, entries, padding, weight: None }
    }

    /// A request in which everything is present.
    pub(super) fn full() -> Self {
        let mut fed = Self::plain(0x10);
        let remote = |span| Remote { trace: TraceId(0xabc), span: SpanId(span) };
        fed.keep = Keep::Error;
        fed.wide.trace = TraceId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        fed.wide.parent = Some(Remote { trace: fed.wide.trace, span: SpanId(0x77) });
        fed.wide.link = Some(remote(0x99));
        fed.wide.instance = Some("hello-1".into());
        fed.wide.node = Some("fra-1".into());
        fed.wide.method = Method::Post;
        fed.wide.protocol = Protocol::Http2;
        fed.wide.tls = true;
        fed.wide.status = Some(502);
        fed.wide.error = Some("PU03");
        fed.wide.attempts = 2;
        fed.wide.head_after = Some(Duration::from_millis(15));
        fed.wide.request_bytes = 7;
        fed.wide.exposed = Some(Box::new(Exposed {
            client: Some(Ipv4Addr::new(198, 51, 100, 9).into()),
            host: Some("hello.example".into()),
            path: Some("/a".into()),
            query: Some("b=c".into()),
            user_agent: Some("curl".into()),
        }));
        fed.entries = vec![
            Entry::Event(Event {
                span: Some(SpanId(0x22)),
                name: "connected",
                target: "proxy::upstream",
                level: tracing_level(),
                at: Duration::from_millis(3),
                fields: vec![("reused", Value::Bool(false)), ("rtt_us", Value::Unsigned(250))],
            }),
            Entry::Span(Span {
                id: SpanId(0x21),
                parent: None,
                name: "route",
                target: "proxy::route",
                start: Duration::from_millis(1),
                end: Some(Duration::from_millis(2)),
                busy: Duration::from_micros(40),
                idle: Duration::from_micros(960),
                polls: 2,
                failed: false,
                fields: vec![("candidates", Value::Unsigned(3))],
            }),
            Entry::Span(Span {
                id: SpanId(0x22),
                parent: Some(SpanId(0x21)),
                name: "upstream attempt",
                target: "proxy::upstream",
                start: Duration::from_millis(2),
                end: None,
                busy: Duration::from_micros(10),
                idle: Duration::ZERO,
                polls: 1,
                failed: true,
                fields: vec![
                    ("instance", Value::Catalogued("hello-1")),
                    ("load", Value::Float(0.5)),
                ],
            }),
            Entry::Event(Event {
                span: None,
                name: "retrying",
                target: "proxy::retry",
                level: tracing_level(),
                at: Duration::from_millis(4),
                fields: vec![("cause", Value::Static("reset")), ("delta", Value::Signed(-1))],
            }),
        ];
        fed
    }

    /// A request whose record holds `bytes` besides.
    pub(super) fn of_size(id: u64, bytes: usize) -> Self {
        Self { padding: vec![0; bytes], ..Self::plain(id) }
    }
}

fn tracing_level() -> tracing::Level {
    tracing::Level::DEBUG
}

impl Exportable for Fed {
    fn wide(&self) -> &Wide {
        &self.wide
    }

    fn keep(&self) -> Keep {
        self.keep
    }

    fn segment(&self) -> u16 {
        self.segment
    }

    fn open(&self) -> bool {
        self.open
    }

    fn cut(&self) -> (u32, u32) {
        (0, 0)
    }

    fn bytes(&self) -> usize {
        let entries = self.entries.capacity() * size_of::<Entry<'_>>();
        size_of::<Self>() + entries + self.padding.capacity()
    }

    fn visit(&self, each: &mut dyn FnMut(Entry<'_>)) {
        self.entries.iter().cloned().for_each(each);
    }
}

/// The worker's end of a source.
pub(super) type Worker = mpsc::Sender<Fed>;

/// The exporter's end.
pub(super) struct FromWorker {
    records: mpsc::Receiver<Fed>,
    live: Live,
}

impl Source for FromWorker {
    fn next(&mut self) -> Option<Box<dyn Exportable>> {
        let mut fed = self.records.try_recv().ok()?;
        let (live, bytes) = (self.live.clone(), fed.bytes());
        live.0.fetch_add(bytes, SeqCst);
        fed.weight = Some(Weight { live, bytes });
        Some(Box::new(fed))
    }
}

/// Both ends of a source, and what has been taken from it and still exists.
pub(super) fn source() -> (Worker, FromWorker, Live) {
    let ((worker, records), live) = (mpsc::channel(), Live::default());
    (worker, FromWorker { records, live: live.clone() }, live)
}

/// An exporter under test.
pub(super) struct Node {
    pub(super) handle: Handle,
    pub(super) worker: Worker,
    pub(super) live: Live,
    pub(super) counts: Counts,
}

/// What an exporter counts; outlives it.
#[derive(Clone)]
pub(super) struct Counts {
    pub(super) registry: Registry,
    pub(super) ledger: Ledger,
}

impl Node {
    /// One that exports to `collector`.
    pub(super) fn start(collector: &Collector, config: Config) -> Self {
        let endpoint = Some(collector.endpoint());
        Self::start_with(Config { endpoint, ..config }, &[])
    }

    /// One with this configuration and these variables in its environment.
    pub(super) fn start_with(config: Config, environment: &[(&str, &str)]) -> Self {
        let (worker, records, live) = source();
        let counts = Counts::new();
        let handle = Self::export(config, environment, Box::new(records), &counts);
        Self { handle, worker, live, counts }
    }

    /// An exporter that takes from `records`.
    pub(super) fn export(
        config: Config,
        environment: &[(&str, &str)],
        records: Box<dyn Source>,
        counts: &Counts,
    ) -> Handle {
        let lookup = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).into())
        };
        let settings = config.resolve(&lookup).expect("a sound configuration");
        let settings = settings.expect("something is exported");
        let identity = Identity {
            node: "ams-1".to_owned(),
            region: "ams".to_owned(),
            version: "1.2.3",
            host: Some("box".to_owned()),
            process: 42,
        };
        let handle =
            Exporter::start(settings, &identity, records, &counts.ledger, &counts.registry);
        handle.expect("a thread")
    }
}

impl Counts {
    pub(super) fn new() -> Self {
        let registry = Registry::new(1, 1000);
        Self { ledger: Ledger::new(registry.clone()), registry }
    }

    /// Spans and logs dropped for this reason.
    pub(super) fn dropped(&self, reason: Reason) -> u64 {
        let labels = [("reason", reason.name())];
        self.registry.counter("ferrule_telemetry_dropped_total", "", &labels).value()
    }

    /// Spans and logs dropped for any reason.
    pub(super) fn dropped_in_all(&self) -> u64 {
        Reason::ALL.into_iter().map(|reason| self.dropped(reason)).sum()
    }

    /// Of the signal `traces`, `logs` or `metrics`.
    pub(super) fn sent(&self, signal: &str) -> u64 {
        let labels = [("signal", signal)];
        self.registry.counter("ferrule_telemetry_sent_total", "", &labels).value()
    }

    /// What the ledger says this owner holds, and may hold.
    pub(super) fn books(&self, owner: &str) -> (i64, i64) {
        let lines = self.ledger.read();
        let line = lines.iter().find(|line| line.name == owner).expect("the owner has an account");
        (line.current, i64::try_from(line.cap).unwrap())
    }
}

/// Short waits, so that tests do not take long.
pub(super) fn quick() -> Config {
    Config {
        schedule_delay: Duration::from_millis(50),
        poll: Duration::from_millis(5),
        retry_initial: Duration::from_millis(20),
        retry_max: Duration::from_millis(50),
        ..Config::default()
    }
}
