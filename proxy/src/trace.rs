//! What is written down of a request: begun with its head, made verbose when somebody may ask for
//! that, ended with its last byte.
//!
//! A client's own trace context is noted and not continued: its sampled flag would let strangers
//! decide what this edge spends. Between nodes the trace goes on. How things are written is
//! `telemetry::record`; who may ask is `telemetry::verbosity`.

use std::net::IpAddr;

use control::snapshot::Instance;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version, request};
use telemetry::pressure::Level as Pressure;
use telemetry::record::{self, Begin, Entered, Record, ShortText, Spanned, Value};
use telemetry::sensitive::{ClientText, Sensitive};
use telemetry::verbosity::{self, Facts, Grant};
use telemetry::{event, site};
use tokio::time::Instant;

use crate::downstream::{Downstream, From, canonical};
use crate::http::forward;
use crate::identify::mesh;
use crate::worker::Worker;

/// W3C Trace Context. Towards instances it is always ours.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a client says along with its trace context; it belongs to a trace that is not ours.
const LEFT_BEHIND: [HeaderName; 2] =
    [HeaderName::from_static("tracestate"), HeaderName::from_static("baggage")];

const TOKEN: HeaderName = HeaderName::from_static(verbosity::FIELD);

/// In the answer to a verbose request: how to find what was written down.
pub const TRACE_ID: HeaderName = HeaderName::from_static("ferrule-trace-id");

/// In the answer to a verbose request whose token asks for it: what happened, as JSON.
pub const TRACE_REPORT: HeaderName = HeaderName::from_static("ferrule-trace-report");

/// What a request brought that may make it verbose, taken from its head.
pub struct Asked {
    token: Option<HeaderValue>,
    /// The node before has decided.
    by_peer: bool,
    at: Instant,
}

/// Which of these fields a head has. Most have none, and looking at each name once is cheaper than
/// asking the map for all of them.
#[derive(Default)]
struct Found {
    context: bool,
    token: bool,
}

/// The record of a request and what made it verbose, until the request has ended.
pub struct Trace {
    pub record: Record,
    grant: Option<Grant>,
}

/// Begins the record of a request and takes from its head whatever concerns it.
pub fn begin(
    worker: &Worker,
    downstream: &Downstream,
    head: &mut request::Parts,
    id: &HeaderValue,
    now: Instant,
) -> (Record, Asked) {
    let recorder = &worker.recorder;
    let found = Found::in_head(&head.headers);
    let context = if found.context { take_context(&mut head.headers) } else { None };
    let (mut parent, mut link) = (None, None);
    let mut asked = Asked { token: None, by_peer: false, at: now };
    let protocol = match (&downstream.from, head.version) {
        (From::Peer(_), _) => {
            parent = context;
            asked.by_peer = head.headers.remove(mesh::VERBOSE).is_some();
            record::Protocol::Mesh
        }
        (From::Client(_), version) => {
            link = context.map(|(remote, _)| remote);
            asked.token = if found.token { head.headers.remove(TOKEN) } else { None };
            if version == Version::HTTP_2 {
                record::Protocol::Http2
            } else {
                record::Protocol::Http1
            }
        }
    };
    let exposed = expose(worker, downstream, head);
    let record = recorder.begin(Begin {
        request_id: ShortText::new(id.to_str().unwrap_or_default()),
        protocol,
        tls: downstream.is_secure(),
        method: method(&head.method),
        parent,
        link,
        now: recorder.now(),
    });
    if exposed.is_some() {
        record.wide(|wide| wide.exposed = exposed);
    }
    (record, asked)
}

/// Begins the record of a connection whose bytes nobody looks at.
pub fn begin_raw(worker: &Worker, downstream: &Downstream) -> Record {
    let recorder = &worker.recorder;
    let id = worker.edge.identity.request_id();
    let record = recorder.begin(Begin {
        request_id: ShortText::new(id.to_str().unwrap_or_default()),
        protocol: record::Protocol::Tcp,
        tls: downstream.is_secure(),
        method: record::Method::Other,
        parent: None,
        link: None,
        now: recorder.now(),
    });
    let exposed = worker.edge.config.telemetry.expose.of(&ClientText {
        client: Some(Sensitive::new(canonical(downstream.peer.ip()))),
        host: downstream.sni().map(Sensitive::new),
        path: None,
        query: None,
        user_agent: None,
    });
    if exposed.is_some() {
        record.wide(|wide| wide.exposed = exposed);
    }
    record
}

/// Client text that the configuration lets leave; usually none, and then nothing is gathered.
fn expose(
    worker: &Worker,
    downstream: &Downstream,
    head: &request::Parts,
) -> Option<Box<record::Exposed>> {
    let policy = worker.edge.config.telemetry.expose;
    if policy.is_empty() {
        return None;
    }
    let named = head.uri.host();
    let host = named.or_else(|| head.headers.get(header::HOST)?.to_str().ok());
    let agent = head.headers.get(header::USER_AGENT).map(HeaderValue::as_bytes);
    policy.of(&ClientText {
        client: client(downstream, &head.headers).map(Sensitive::new),
        host: host.map(Sensitive::new),
        path: Some(Sensitive::new(head.uri.path())),
        query: head.uri.query().map(Sensitive::new),
        user_agent: agent.map(Sensitive::new),
    })
}

/// Behind the mesh the peer is a node, and the client is in a field that nodes write; a node says
/// nothing of the clients of raw TCP.
fn client(downstream: &Downstream, headers: &HeaderMap) -> Option<IpAddr> {
    match downstream.from {
        From::Client(_) => Some(canonical(downstream.peer.ip())),
        From::Peer(_) => headers
            .get(forward::FERRULE_CLIENT_IP)
            .and_then(|field| field.to_str().ok()?.parse().ok()),
    }
}

fn take_context(headers: &mut HeaderMap) -> Option<(record::Remote, bool)> {
    for name in LEFT_BEHIND {
        headers.remove(name);
    }
    let mut fields = headers.get_all(TRACEPARENT).iter();
    let context = match (fields.next(), fields.next()) {
        (Some(only), None) => record::parse_traceparent(only.as_bytes()),
        // Two of them contradict each other, so neither is believed.
        _ => None,
    };
    headers.remove(TRACEPARENT);
    context
}

fn method(method: &Method) -> record::Method {
    match *method {
        Method::GET => record::Method::Get,
        Method::HEAD => record::Method::Head,
        Method::POST => record::Method::Post,
        Method::PUT => record::Method::Put,
        Method::DELETE => record::Method::Delete,
        Method::CONNECT => record::Method::Connect,
        Method::OPTIONS => record::Method::Options,
        Method::TRACE => record::Method::Trace,
        Method::PATCH => record::Method::Patch,
        _ => record::Method::Other,
    }
}

/// Notes which instance is tried, and how many were.
pub fn note_attempt(record: &Record, attempts: u32, instance: &Instance) {
    record.wide(|wide| {
        wide.attempts = attempts;
        wide.instance = Some(instance.id.shared());
        wide.node = Some(instance.node.shared());
    });
}

/// The span of one attempt, which whoever is asked continues.
pub fn attempt<F>(record: &Record, attempts: u32, instance: &Instance, sent: F) -> Spanned<F> {
    let values = [
        Value::Catalogued(instance.id.as_str()),
        Value::Catalogued(instance.node.as_str()),
        Value::Unsigned(attempts.into()),
    ];
    record.spanned_with(site!("upstream", instance, node, attempt), &values, sent)
}

// === impl Asked, Found ===

impl Asked {
    fn is_anything(&self) -> bool {
        self.by_peer || self.token.is_some()
    }
}

impl Found {
    fn in_head(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "traceparent" | "tracestate" | "baggage" => found.context = true,
                verbosity::FIELD => found.token = true,
                _ => {}
            }
        }
        found
    }
}

// === impl Trace ===

impl Trace {
    /// The record of a request that is known now, verbose if somebody who may asks for that.
    ///
    /// Usually nobody asks, and then the facts are not gathered.
    pub fn new<'a>(
        record: Record,
        asked: Asked,
        facts: impl FnOnce() -> Facts<'a>,
        worker: &Worker,
    ) -> Self {
        let is_asked = asked.is_anything() || worker.edge.verbosity.has_rules();
        let grant = if is_asked { grant(&asked, &facts(), worker) } else { None };
        if let Some(grant) = &grant {
            record.raise(grant.level);
            event!(record, INFO, "verbose");
        }
        Self { record, grant }
    }

    /// The same for a connection whose bytes nobody looks at; rules alone can mean it.
    pub fn raw(record: Record, app: &str, downstream: &Downstream, worker: &Worker) -> Self {
        let client = canonical(downstream.peer.ip());
        let asked = Asked { token: None, by_peer: false, at: Instant::now() };
        let facts = Facts { app, host: downstream.sni().unwrap_or_default(), path: "", client };
        Self::new(record, asked, || facts, worker)
    }

    /// Whether somebody who may has asked for this request.
    pub fn is_wanted(&self) -> bool {
        self.grant.is_some()
    }

    /// Whether the answer carries a report.
    pub fn is_reported(&self) -> bool {
        self.grant.as_ref().is_some_and(|grant| grant.report)
    }

    /// Whatever happens until the guard is dropped belongs to this request.
    pub fn enter(&self) -> Entered {
        self.record.enter()
    }

    /// The field that tells the client where its record is.
    pub fn id(record: &Record) -> HeaderValue {
        HeaderValue::try_from(record.trace().to_string())
            .expect("hexadecimal digits are visible ASCII")
    }

    /// The trace context for whoever is asked next, as the current span.
    pub fn context(record: &Record) -> HeaderValue {
        HeaderValue::from_bytes(&record.traceparent())
            .expect("hexadecimal digits and dashes are visible ASCII")
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Some(grant) = &self.grant {
            grant.spend_bytes(self.record.bytes(), Instant::now());
        }
    }
}

/// What the decision on verbosity rests on. A peer that does not say who its client is stands for
/// it; no rule of clients is made for nodes.
pub fn facts<'a>(
    app: &'a str,
    host: &'a str,
    head: &'a request::Parts,
    downstream: &Downstream,
) -> Facts<'a> {
    let client = client(downstream, &head.headers);
    let client = client.unwrap_or_else(|| canonical(downstream.peer.ip()));
    Facts { app, host, path: head.uri.path(), client }
}

fn grant(asked: &Asked, facts: &Facts<'_>, worker: &Worker) -> Option<Grant> {
    let edge = &worker.edge;
    // What costs memory is the first thing to go without.
    if edge.pressure.is_at(Pressure::Trim) {
        return None;
    }
    if asked.by_peer {
        return Some(edge.verbosity.from_peer(record::Verbosity::Verbose));
    }
    match &asked.token {
        Some(token) => {
            let now = verbosity::Now::read();
            edge.verbosity
                .from_token(token.as_bytes(), facts, now)
                .or_else(|| edge.verbosity.from_rules(facts, now.instant))
        }
        None => edge.verbosity.from_rules(facts, asked.at),
    }
}

/// A record that nobody will read, for what is tried outside a worker.
#[cfg(test)]
pub(crate) fn unread() -> Record {
    let registry = telemetry::metrics::Registry::new(1, 10);
    let ledger = telemetry::ledger::Ledger::new(registry.clone());
    let shared = record::Shared::new(record::Config::default(), 1, &registry, &ledger)
        .expect("the defaults are valid");
    let recorder = record::Recorder::new(&shared, 0);
    recorder.begin(Begin {
        request_id: ShortText::new("unread"),
        protocol: record::Protocol::Http1,
        tls: false,
        method: record::Method::Get,
        parent: None,
        link: None,
        now: recorder.now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(fields: &[(&'static str, &'static str)]) -> (Option<bool>, HeaderMap) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let context = take_context(&mut headers);
        (context.map(|(_, sampled)| sampled), headers)
    }

    const ONE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TWO: &str = "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00";

    #[test]
    fn a_trace_context_is_taken_out_with_all_that_belongs_to_it() {
        let fields =
            [("traceparent", ONE), ("tracestate", "a=b"), ("baggage", "c=d"), ("accept", "*/*")];
        let (context, headers) = taken(&fields);
        assert_eq!(context, Some(true));
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn every_field_that_concerns_traces_is_found() {
        let found = |name: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("accept", HeaderValue::from_static("*/*"));
            headers.insert(name, HeaderValue::from_static("1"));
            let Found { context, token } = Found::in_head(&headers);
            (context, token)
        };
        for name in LEFT_BEHIND.iter().chain([&TRACEPARENT]) {
            assert_eq!(found(HeaderName::as_str(name).to_owned().leak()), (true, false), "{name}");
        }
        assert_eq!(found(verbosity::FIELD), (false, true));
        assert_eq!(found("x-traceparent"), (false, false));
    }

    #[test]
    fn two_contexts_are_none() {
        let (context, headers) = taken(&[("traceparent", ONE), ("traceparent", TWO)]);
        assert_eq!((context, headers.len()), (None, 0));
        assert_eq!(taken(&[("traceparent", "nonsense")]).0, None);
        assert_eq!(taken(&[]).0, None);
    }
}
