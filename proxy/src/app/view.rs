//! What the node says of itself: the data plane's state as the admin pages show it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use serde_json::json;
use telemetry::ledger::Unit;
use tokio::time::Instant;

use crate::admin::status::{Memory, Peer, Quarantined};
use crate::admin::{Status, View, inventory as pages};
use crate::balance::load::Millis;
use crate::config::ListenMode;
use crate::edge::Edge;
use crate::inventory::{Candidate, Entry, Place, State};
use crate::tls::Certificates;

/// A running node as its admin pages see it.
pub(super) struct NodeView {
    edge: Arc<Edge>,
    source: Arc<control::inventory::Status>,
    certificates: Arc<Certificates>,
    started: Instant,
    phase: AtomicU8,
}

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// There is one process until processes hand over to each other.
const FIRST_GENERATION: u64 = 1;

// === impl NodeView ===

impl NodeView {
    pub(super) fn new(
        edge: &Arc<Edge>,
        source: Arc<control::inventory::Status>,
        certificates: Arc<Certificates>,
        started: Instant,
    ) -> Self {
        let registry = &edge.registry;
        registry.gauge_read(
            "ferrule_generation",
            "Rises with every process that took over.",
            &[],
            || FIRST_GENERATION as f64,
        );
        let age = source.clone();
        let help = "Time since the inventory was last known to be complete.";
        registry.gauge_read("ferrule_inventory_age_seconds", help, &[], move || {
            age.age().map_or(f64::NAN, |age| age.as_secs_f64())
        });
        let errors = source.clone();
        let help = "Changes of the inventory that could not be written to the catalog.";
        registry.gauge_read("ferrule_catalog_errors", help, &[], move || {
            errors.catalog_errors() as f64
        });
        let quarantined = source.clone();
        let help = "App files and apps that were refused; their last good version stays.";
        registry.gauge_read("ferrule_inventory_quarantined", help, &[], move || {
            quarantined.quarantined_total() as f64
        });
        Self { edge: edge.clone(), source, certificates, started, phase: AtomicU8::new(STARTING) }
    }

    pub(super) fn set_ready(&self) {
        self.phase.store(READY, Relaxed);
    }

    pub(super) fn set_draining(&self) {
        self.phase.store(DRAINING, Relaxed);
    }
}

impl View for NodeView {
    fn ready(&self) -> Result<(), String> {
        match self.phase.load(Relaxed) {
            READY => Ok(()),
            DRAINING => Err("draining".to_owned()),
            _ => Err("starting".to_owned()),
        }
    }

    fn status(&self) -> Status {
        let edge = &self.edge;
        let source = &self.source;
        let entries = edge.inventory.entries();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: FIRST_GENERATION,
            node: edge.config.node.id.to_string(),
            region: edge.config.node.region.to_string(),
            ready: self.ready().is_ok(),
            not_ready_reason: self.ready().err(),
            draining: self.phase.load(Relaxed) == DRAINING,
            filter_mode: ebpf_filter::MODE.to_owned(),
            listen_mode: match edge.config.listen.mode {
                ListenMode::Auto | ListenMode::Bind => "bind".to_owned(),
            },
            inventory_age_seconds: source.age().map(|age| age.as_secs_f64()),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            apps: entries.len() as u64,
            instances: entries.iter().map(|entry| entry.candidates.len() as u64).sum(),
            connections: u64::from(edge.connections.open()),
            requests_in_flight: u64::from(edge.requests.in_flight()),
            permits_in_use: edge.inventory.permits_in_use(),
            memory: Memory::read(),
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

    fn metrics(&self) -> String {
        self.edge.ledger.read(); // moves the high-water marks
        self.edge.registry.render()
    }

    fn memory(&self) -> serde_json::Value {
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
                    "high": line.high,
                    "cap": line.cap,
                    "drops": line.drops,
                })
            })
            .collect();
        json!({ "ledger": ledger, "memory": Memory::read() })
    }

    fn certificates(&self) -> serde_json::Value {
        json!(pages::Certificates::from(self.certificates.list()))
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
