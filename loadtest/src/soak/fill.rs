//! Work that fills what is bounded: more apps than metrics have room for, more instances than idle
//! connections are kept to, and each connection a handshake of its own.

use anyhow::{Result, ensure};

use super::churn::{self, APPS};
use crate::client::http1::Http1;
use crate::flat::{Target, Worker, host, random, timed};
use crate::histogram::Histogram;
use crate::node::Node;
use crate::node::config::Setup;
use crate::suite::Part;
use crate::verdict::Check;

/// Requests for apps that come and go, and for one with many instances.
pub(super) struct Fill {
    target: Target,
    connection: Option<Open>,
}

struct Open {
    client: Http1,
    is_tls: bool,
    /// Requests before.
    before: u32,
}

/// The app with many instances.
pub(super) const MANY: &str = "many";

/// So many, at addresses of their own.
pub(super) const INSTANCES: u8 = 12;

/// Requests of one connection.
const EACH: u32 = 8;

/// Idle connections that a worker keeps to all instances together: fewer than there are instances.
const IDLE_MAX: u32 = 8;

/// Label sets of a family: fewer than there are apps.
const LABELS_MAX: u64 = 30;

/// Bounds so low that a minute fills what they bound.
pub(super) fn bounded(setup: Setup) -> Setup {
    setup
        .set("limits", "upstream_idle_max", IDLE_MAX)
        .set("limits", "metric_labels_max", LABELS_MAX)
        .set("telemetry.otlp", "ring_bytes", "\"128KiB\"")
}

/// Whether it was filled: an empty cache leaks nothing.
pub(super) fn show(node: &Node, part: &mut Part) -> Result<()> {
    let scrape = node.scrape()?;
    let beyond = scrape.value("ferrule_metrics_overflow_total{cap=\"labels\"}");
    let bar = format!("> 0 beyond {LABELS_MAX} label sets");
    part.check(Check::that("metrics of apps are full", bar, beyond, beyond > 0.0));
    let lines = node.ledger_lines()?;
    let full = |line: &&crate::node::Held| line.high >= line.cap * 0.95;
    let bounded = lines.iter().filter(|line| line.cap > 0.0 && line.cap < 1e15 && line.high > 0.0);
    let filled: Vec<_> = bounded.clone().filter(full).map(|line| line.owner.as_str()).collect();
    let idle = filled.contains(&"upstream_idle");
    let bar = format!("{IDLE_MAX} for each worker");
    part.check(Check::that("idle upstream connections are full", bar, idle, idle));
    let said: Vec<_> = bounded
        .map(|line| format!("{} {:.0} %", line.owner, 100.0 * line.high / line.cap))
        .collect();
    part.check(Check::told("highest share of their caps", said.join(", ")));
    Ok(())
}

impl Fill {
    pub(super) fn new(target: Target) -> Self {
        Self { target, connection: None }
    }

    fn open(&self, number: u64) -> Result<Open> {
        let client = Http1::new(self.target.stream(number, &host(MANY))?);
        Ok(Open { client, is_tls: number % 2 == 1, before: 0 })
    }
}

impl Worker for Fill {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        let Open { mut client, is_tls, before } = match self.connection.take() {
            Some(open) => open,
            None => self.open(random(number))?,
        };
        // A connection in TLS is for the app that its handshake named.
        let may_be_gone = !is_tls && number % 2 == 1;
        let app = match may_be_gone {
            true => churn::name(random(number) % APPS),
            false => MANY.to_owned(),
        };
        let answer = timed(histogram, || client.get(&host(&app), "/"))?;
        let expected = answer.status == 200 || may_be_gone && answer.status == 404;
        ensure!(expected, "{} of {app}", answer.status);
        let spent = answer.closes() || before + 1 >= EACH;
        self.connection = (!spent).then_some(Open { client, is_tls, before: before + 1 });
        Ok(())
    }

    fn rest(&mut self) {
        self.connection = None;
    }
}
