//! What the node says of itself: the data plane's state as the admin pages show it.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use serde_json::json;
use telemetry::black_box::Report;
use telemetry::heapwatch::{self, Heapwatch, Query};
use telemetry::ledger::{self, Unit};
use telemetry::metrics::Format;
use telemetry::pressure::Level;
use telemetry::sampler::Readings;
use tokio::time::Instant;

use super::doors::Doors;
use super::drain;
use super::observe::Observers;
use super::succession::Succession;
use crate::admin::requests::Requests;
use crate::admin::status::{Memory, Peer, Pressure, Quarantined};
use crate::admin::{Status, View, inventory as pages};
use crate::balance::load::Millis;
use crate::edge::Edge;
use crate::filter::Filter;
use crate::inventory::{Candidate, Entry, Place, State};
use crate::metrics::catalogue;
use crate::tls::Certificates;

/// A running node as its admin pages see it.
pub(super) struct NodeView {
    pub(super) edge: Arc<Edge>,
    pub(super) observers: Arc<Observers>,
    source: Arc<control::inventory::Status>,
    certificates: Arc<Certificates>,
    filter: Arc<Filter>,
    pub(super) heapwatch: Heapwatch,
    /// Known once the node is ready.
    listening: OnceLock<Listening>,
    last_exit: Option<Arc<Report>>,
    readings: Option<Arc<Readings>>,
    started: Instant,
    phase: AtomicU8,
    pub(super) succession: Arc<Succession>,
}

/// How clients get in.
struct Listening {
    mode: &'static str,
    reason: Option<String>,
}

/// What the node is made of, beside what its workers share.
pub(super) struct Parts {
    pub(super) observers: Arc<Observers>,
    pub(super) source: Arc<control::inventory::Status>,
    pub(super) certificates: Arc<Certificates>,
    pub(super) filter: Arc<Filter>,
    pub(super) heapwatch: Heapwatch,
    pub(super) last_exit: Option<Arc<Report>>,
    pub(super) readings: Option<Arc<Readings>>,
    pub(super) started: Instant,
    pub(super) succession: Arc<Succession>,
}

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

// === impl NodeView ===

impl NodeView {
    pub(super) fn new(edge: &Arc<Edge>, parts: Parts) -> Self {
        let Parts {
            observers,
            source,
            certificates,
            filter,
            heapwatch,
            last_exit,
            readings,
            started,
            succession,
        } = parts;
        let registry = &edge.registry;
        succession.export(registry);
        let drained = edge.clone();
        catalogue::DRAINING
            .gauge_read_in(registry, &[], move || if drained.drain.is_told() { 1.0 } else { 0.0 });
        let age = source.clone();
        catalogue::INVENTORY_AGE.gauge_read_in(registry, &[], move || {
            age.age().map_or(f64::NAN, |age| age.as_secs_f64())
        });
        let errors = source.clone();
        catalogue::CATALOG_ERRORS.counter_read_in(registry, &[], move || errors.catalog_errors());
        let quarantined = source.clone();
        catalogue::INVENTORY_QUARANTINED
            .gauge_read_in(registry, &[], move || quarantined.quarantined_total() as f64);
        Self {
            edge: edge.clone(),
            observers,
            source,
            certificates,
            filter,
            heapwatch,
            listening: OnceLock::new(),
            last_exit,
            readings,
            started,
            phase: AtomicU8::new(STARTING),
            succession,
        }
    }

    pub(super) fn set_ready(&self, doors: &Doors) {
        let (mode, reason) = (doors.mode(), doors.reason().map(str::to_owned));
        let listening = self.listening.get_or_init(|| Listening { mode, reason });
        catalogue::LISTEN_MODE.gauge_read_in(&self.edge.registry, &[listening.mode], || 1.0);
        self.phase.store(READY, Relaxed);
    }

    /// How clients get in, once the node is ready.
    pub(super) fn listen_mode(&self) -> &'static str {
        self.listening.get().map_or("none", |listening| listening.mode)
    }

    pub(super) fn set_draining(&self) {
        self.phase.store(DRAINING, Relaxed);
    }
}

impl View for NodeView {
    fn ready(&self) -> Result<(), String> {
        match self.phase.load(Relaxed) {
            READY if self.edge.drain.is_told() => Err("drained by an operator".to_owned()),
            READY if self.edge.pressure.is_at(Level::Refuse) => Err("short of memory".to_owned()),
            READY => Ok(()),
            DRAINING => Err("draining".to_owned()),
            _ => Err("starting".to_owned()),
        }
    }

    fn status(&self) -> Status {
        let edge = &self.edge;
        let source = &self.source;
        let listening = self.listening.get();
        let entries = edge.inventory.entries();
        let drain = drain::draining(edge);
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.succession.generation(),
            other: self.succession.other(),
            node: edge.config.node.id.to_string(),
            region: edge.config.node.region.to_string(),
            ready: self.ready().is_ok(),
            not_ready_reason: self.ready().err(),
            draining: drain.is_some() || self.phase.load(Relaxed) == DRAINING,
            drain,
            filter_mode: self.filter.mode().to_owned(),
            filter_reasons: self.filter.reasons().to_vec(),
            listen_mode: self.listen_mode().to_owned(),
            listen_reason: listening.and_then(|listening| listening.reason.clone()),
            inventory_age_seconds: source.age().map(|age| age.as_secs_f64()),
            hangs_for_seconds: edge.hangs_ms.load(Relaxed) as f64 / 1000.0,
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            apps: entries.len() as u64,
            instances: entries.iter().map(|entry| entry.candidates.len() as u64).sum(),
            connections: u64::from(edge.connections.open()),
            requests_in_flight: u64::from(edge.requests.in_flight()),
            permits_in_use: edge.inventory.permits_in_use(),
            memory: Memory::read(),
            pressure: self.readings.as_ref().map(|readings| Pressure {
                level: edge.pressure.level().as_str().to_owned(),
                used: readings.used(),
                limit: readings.limit(),
            }),
            quarantined: source
                .quarantined()
                .iter()
                .map(|refused| Quarantined {
                    name: refused.what.clone(),
                    reason: refused.problems.join("; "),
                })
                .collect(),
            peers: edge
                .nodes
                .iter()
                .map(|node| Peer {
                    id: node.id.to_string(),
                    region: node.region.to_string(),
                    rtt_ms: node.measured_rtt().map(|rtt| rtt.as_secs_f64() * 1000.0),
                    reachable: node.is_reachable(),
                    draining: node.is_draining(),
                })
                .collect(),
        }
    }

    fn inventory(&self) -> serde_json::Value {
        let mut apps: Vec<_> =
            self.edge.inventory.entries().iter().map(|entry| app(entry)).collect();
        apps.sort_by(|a, b| a.name.cmp(&b.name));
        json!(pages::Inventory { apps })
    }

    fn metrics(&self, format: Format) -> String {
        self.filter.export();
        self.edge.ledger.read(); // moves the high-water marks
        self.edge.registry.render_as(format)
    }

    fn filter(&self) -> serde_json::Value {
        json!(self.filter.page())
    }

    fn memory(&self) -> serde_json::Value {
        self.filter.export();
        let ledger: Vec<_> = self
            .edge
            .ledger
            .read()
            .into_iter()
            .map(|line| {
                json!({
                    "owner": line.name,
                    "unit": match line.unit { Unit::Bytes => "bytes", Unit::Entries => "entries" },
                    "current": line.current,
                    "bytes": line.bytes,
                    "high": line.high,
                    "cap": line.cap,
                    "drops": line.drops,
                    "place": match line.place { ledger::Place::Heap => "heap", ledger::Place::Outside => "outside" },
                })
            })
            .collect();
        json!({ "ledger": ledger, "memory": Memory::read() })
    }

    fn requests(&self) -> serde_json::Value {
        let entries = self.edge.inventory.entries();
        let name = |entry: &Arc<Entry>| (entry.live.id(), entry.app.name.to_string());
        let apps = entries.iter().map(name).collect();
        json!(Requests::read(&self.edge.board, &apps))
    }

    fn heap(&self, query: &Query) -> heapwatch::Report {
        self.heapwatch.report(query)
    }

    fn certificates(&self) -> serde_json::Value {
        json!(pages::Certificates::from(self.certificates.list()))
    }

    fn last_exit(&self) -> Option<Arc<Report>> {
        self.last_exit.clone()
    }
}

fn app(entry: &Entry) -> pages::App {
    let app = &entry.app;
    pages::App {
        name: app.name.to_string(),
        revision: app.revision,
        hostnames: app.hostnames.iter().map(ToString::to_string).collect(),
        addresses: app.addresses.clone(),
        services: app
            .services
            .iter()
            .map(|service| pages::Service {
                internal_port: service.internal_port,
                ports: service.ports.iter().map(|port| range(&port.range)).collect(),
                soft_limit: service.concurrency.soft_limit,
                hard_limit: service.concurrency.hard_limit,
            })
            .collect(),
        instances: entry.candidates.iter().map(|candidate| instance(entry, candidate)).collect(),
    }
}

fn instance(entry: &Entry, candidate: &Candidate) -> pages::Instance {
    let place = match candidate.place {
        Place::Local => pages::Place::Local,
        Place::Remote(_) => pages::Place::Remote,
        Place::Unknown => pages::Place::Unknown,
    };
    let now = Millis::at(Instant::now());
    let routable = loads(entry, candidate).all(|load| load.is_routable(now));
    pages::Instance {
        id: candidate.instance.id.to_string(),
        node: candidate.instance.node.to_string(),
        address: candidate.instance.address,
        healthy: (place == pages::Place::Local)
            .then(|| routable && candidate.state() != State::Unhealthy),
        place,
        cordoned: candidate.instance.cordoned,
        in_flight: loads(entry, candidate).map(|load| u64::from(load.in_flight())).sum(),
    }
}

fn loads<'a>(
    entry: &'a Entry,
    candidate: &'a Candidate,
) -> impl Iterator<Item = &'a Arc<crate::balance::load::Load>> {
    (0..entry.app.services.len()).filter_map(|service| candidate.load(service))
}

fn range(range: &std::ops::RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}
