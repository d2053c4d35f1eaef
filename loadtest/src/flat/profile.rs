//! What is done to a node, and what it is told for it.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Flat;
use super::drivers::{
    Bodies, Errors, Grpc, OhaLoad, Records, Resets, SlowReader, Target, Tcp, Team, WebSockets, host,
};
use super::measure::{Load, Outcome, Plan, Window, measure};
use crate::node::Node;
use crate::node::config::{App, Setup};
use crate::oha::Oha;
use crate::origin::{Collector, Origin, Server, Takes};
use crate::process::{free, is_gone, wait_until};
use crate::sampler::Scraper;
use crate::verdict::Check;

/// One kind of work.
#[derive(Debug)]
pub(crate) struct Profile {
    pub name: &'static str,
    pub about: &'static str,
    kind: Kind,
    collector: Collects,
    scrapes: u32,
    /// Of a full run, in thousands; a short one does a tenth of it.
    thousands: u64,
    /// Bytes per request that it may grow by.
    at_most: f64,
    pub in_short: bool,
}

/// Of large bodies nothing smaller than a buffer can stay behind, and a run has few of them.
const OF_BODIES: f64 = 256.0;

/// Each process begins anew, at a level of its own; what one hands to the next must not become more.
const OF_UPGRADES: f64 = 64.0;

/// What a short run resolves on a busy machine.
const OF_SHORT: f64 = 16.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Requests that no two of are alike, and all telemetry at work.
    Records,
    Oha {
        tls: bool,
        http2: bool,
        streams: usize,
        new_connections: bool,
    },
    WebSocket,
    Tcp,
    Grpc,
    Bodies,
    SlowReaders,
    Resets,
    Errors,
    Upgrades,
}

/// What the collector does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collects {
    Everything,
    Nothing,
    /// In turns: takes, is busy, closes, hangs.
    ByTurns,
    /// There is none, and nothing is exported.
    Absent,
}

const fn profile(name: &'static str, about: &'static str, kind: Kind, thousands: u64) -> Profile {
    let collector = Collects::Everything;
    Profile { name, about, kind, collector, scrapes: 0, thousands, at_most: 1.0, in_short: true }
}

const fn oha(tls: bool, http2: bool, streams: usize, new_connections: bool) -> Kind {
    Kind::Oha { tls, http2, streams, new_connections }
}

pub(super) const ALL: &[Profile] = &[
    profile("oha-h1", "HTTP/1.1 in cleartext, 16 connections.", oha(false, false, 1, false), 1_000),
    profile(
        "oha-h1-tls-new",
        "HTTP/1.1 over TLS, a new connection and handshake for each request.",
        oha(true, false, 1, true),
        300,
    ),
    profile(
        "oha-h2",
        "HTTP/2 over TLS, 16 connections of one stream.",
        oha(true, true, 1, false),
        500,
    ),
    profile(
        "oha-h2-x100",
        "HTTP/2 over TLS, 4 connections of 100 streams.",
        oha(true, true, 100, false),
        500,
    ),
    Profile {
        scrapes: 100,
        ..profile(
            "records-scraped",
            "No two requests have the same path, host or user agent, every record is kept and exported, \
         the access log is written; /metrics is read 100 times a second.",
            Kind::Records,
            500,
        )
    },
    Profile {
        collector: Collects::Nothing,
        ..profile(
            "records-collector-hangs",
            "The same with a collector that never answers, and nobody scrapes.",
            Kind::Records,
            500,
        )
    },
    Profile {
        collector: Collects::ByTurns,
        in_short: false,
        ..profile(
            "records-collector-flaps",
            "The same with a collector that by turns takes, is busy, closes and hangs.",
            Kind::Records,
            500,
        )
    },
    Profile {
        collector: Collects::Absent,
        in_short: false,
        ..profile("records-no-collector", "The same without a collector.", Kind::Records, 500)
    },
    profile(
        "websocket",
        "Messages of WebSockets that end politely, silently and rudely.",
        Kind::WebSocket,
        200,
    ),
    profile("tcp", "Messages over raw TCP, which ends in each way.", Kind::Tcp, 200),
    profile(
        "grpc",
        "gRPC streams of one to four messages both ways, HTTP/2 to the instance.",
        Kind::Grpc,
        100,
    ),
    Profile {
        at_most: OF_BODIES,
        ..profile(
            "bodies",
            "Bodies of 2 MiB down and up to 512 KiB up, HTTP/1.1 and HTTP/2.",
            Kind::Bodies,
            12,
        )
    },
    Profile {
        at_most: OF_BODIES,
        ..profile(
            "slow-readers",
            "Answers of 256 KiB that are read slowly from small sockets.",
            Kind::SlowReaders,
            12,
        )
    },
    profile(
        "resets",
        "Clients that leave in a handshake, a head, a body, an answer, a stream.",
        Kind::Resets,
        60,
    ),
    profile("errors", "Requests that fail, one of each class in turn.", Kind::Errors, 60),
    Profile {
        at_most: OF_UPGRADES,
        in_short: false,
        ..profile("upgrades", "A new process takes over before each window.", Kind::Upgrades, 100)
    },
];

impl Profile {
    /// The one that is measured with these settings, for the controls.
    pub(super) fn records(collector: Collects) -> Self {
        Self { collector, ..profile("control", "", Kind::Records, 8) }
    }

    #[cfg(test)]
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|profile| profile.name == name)
    }

    pub(super) fn plan(&self, flat: &Flat, short: bool) -> Plan {
        let full = 1_000 * flat.thousands.unwrap_or(self.thousands);
        let (requests, windows, more) =
            if short { (full / 20, flat.windows.min(40), 10) } else { (full, flat.windows, 2) };
        let own = if short { self.at_most.max(OF_SHORT) } else { self.at_most };
        Plan {
            requests,
            requests_max: requests * more,
            time: None,
            grows_is_enough: false,
            windows,
            at_most: flat.at_most.unwrap_or(own),
            standing: 0,
            recovery: Duration::from_secs(60),
        }
    }

    /// What the binary lacks for it.
    pub(super) fn lacks(&self, ferrule: &Path) -> Option<String> {
        if self.kind != Kind::Upgrades {
            return None;
        }
        let help = Command::new(ferrule).arg("--help").output().ok()?;
        let known = String::from_utf8_lossy(&help.stdout)
            .lines()
            .any(|line| line.trim_start().starts_with("upgrade"));
        (!known).then(|| "this binary has no command `upgrade`".to_owned())
    }

    pub(super) fn measure(&self, ferrule: &Path, plan: &Plan) -> Result<Outcome> {
        self.measure_with(ferrule, plan, &[], 100)
    }

    /// With this in the environment, and so many requests on a connection.
    pub(super) fn measure_with(
        &self,
        ferrule: &Path,
        plan: &Plan,
        environment: &[(&str, &str)],
        each: u32,
    ) -> Result<Outcome> {
        let origin = Origin::start()?;
        let (echo, h2c) = (Server::echo()?, Server::h2c()?);
        let collector = match self.collector {
            Collects::Absent => None,
            Collects::Nothing => Some(Collector::start(Takes::Nothing)?),
            Collects::Everything | Collects::ByTurns => Some(Collector::start(Takes::Everything)?),
        };
        let mut setup = self.setup(ferrule, collector.as_ref())?;
        let ports = setup.ports;
        setup = setup
            .app(App::web("web", &ports, origin.address()).with_subdomains())
            .app(App::web("odd", &ports, origin.address()))
            .app(App::web("refusing", &ports, free()?))
            .app(App::grpc("grpc", &ports, h2c.address()))
            .app(App::tcp("tcp", &ports, echo.address()));
        let endpoint = collector.as_ref().map(Collector::endpoint).unwrap_or_default();
        if !environment.is_empty() {
            setup.environment = environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.replace("{collector}", &endpoint)))
                .collect();
        }
        let node = Node::start(&setup)?;
        let scraper = Scraper::start(node.admin(), self.scrapes);
        let turns = self.turns(collector);
        let mut load = self.load(&node, ferrule, each)?;
        let mut outcome = measure(&node, load.as_mut(), plan)?;
        drop(turns);
        let scrapes = scraper.end()?;
        if scrapes > 0 {
            outcome.note(Check::told("scrapes meanwhile", scrapes));
        }
        Ok(outcome)
    }

    /// What is bounded gets the least it may have, and every record is kept, so that it is full before
    /// the warm-up is over: a ring of two megabytes that fills for a minute would look like a leak for
    /// a minute.
    fn setup(&self, ferrule: &Path, collector: Option<&Collector>) -> Result<Setup> {
        let mut setup = Setup::new(ferrule)?
            .set("timeouts", "response_head", "\"5s\"")
            .set("telemetry.records", "sample_percent", "100.0")
            .set("telemetry.records", "exports_per_second_max", 1_000_000)
            .set("telemetry.records", "app_exports_per_second_max", 1_000_000);
        if let Some(collector) = collector {
            setup = setup
                .exports_to(&collector.endpoint())
                .set("telemetry.otlp", "timeout", "\"1s\"")
                .set("telemetry.otlp", "queue_bytes", "\"256KiB\"")
                .set("telemetry.otlp", "ring_bytes", "\"128KiB\"")
                .set("telemetry.otlp", "schedule_delay", "\"10ms\"")
                .set("telemetry.otlp", "metric_interval", "\"500ms\"");
        }
        if self.kind != Kind::Records {
            return Ok(setup);
        }
        // Everything that telemetry can do, far beyond what a node does.
        Ok(setup
            .set("telemetry", "expose", "[\"url.path\", \"user_agent.original\"]")
            .set("telemetry.access_log", "path", "\"/dev/null\"")
            .set("telemetry.access_log", "buffer_bytes", "\"64KiB\""))
    }

    fn load(&self, node: &Node, ferrule: &Path, each: u32) -> Result<Box<dyn Load>> {
        let target = Target::of(node)?;
        let target = || target.clone();
        Ok(match self.kind {
            Kind::Records => Box::new(Team::new(8, |_| Records::new(target(), each))),
            Kind::Oha { tls, http2, streams, new_connections } => {
                let (scheme, address) =
                    if tls { ("https", node.https()) } else { ("http", node.http()) };
                let connections = if streams > 1 { 4 } else { 16 };
                let oha = Oha::new(scheme, &host("web"), address);
                Box::new(OhaLoad::new(Oha { http2, streams, new_connections, connections, ..oha }))
            }
            Kind::WebSocket => Box::new(Team::new(8, |_| WebSockets::new(target()))),
            Kind::Tcp => Box::new(Team::new(8, |_| Tcp::new(target()))),
            Kind::Grpc => Box::new(Team::new(8, |_| Grpc::new(target()))),
            Kind::Bodies => Box::new(Team::new(4, |_| Bodies::new(target()))),
            Kind::SlowReaders => Box::new(Team::new(32, |_| SlowReader::new(target()))),
            Kind::Resets => Box::new(Team::new(8, |_| Resets::new(target()))),
            Kind::Errors => Box::new(Team::new(8, |_| Errors::new(target()))),
            Kind::Upgrades => {
                let mut command = Command::new(ferrule);
                command.arg("upgrade").arg("--config").arg(node.home().join("edge.toml"));
                let load = Team::new(8, |_| Records::new(target(), each));
                Box::new(Upgrades { load, command, admin: node.admin() })
            }
        })
    }

    /// Changes what the collector does twice a second, until it is dropped.
    fn turns(&self, collector: Option<Collector>) -> (Option<mpsc::Sender<()>>, Option<Collector>) {
        if self.collector != Collects::ByTurns {
            return (None, collector);
        }
        let Some(collector) = collector else { return (None, None) };
        let (stop, stopped) = mpsc::channel::<()>();
        thread::spawn(move || {
            let modes = [Takes::Everything, Takes::Busy, Takes::Closed, Takes::Nothing];
            for mode in modes.into_iter().cycle() {
                collector.becomes(mode);
                let pause = Duration::from_millis(500);
                if stopped.recv_timeout(pause) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        (Some(stop), None)
    }
}

/// Work of which each window meets a process that has just taken over.
struct Upgrades<L> {
    load: L,
    command: Command,
    admin: std::net::SocketAddr,
}

impl<L: Load> Load for Upgrades<L> {
    fn window(&mut self, count: u64) -> Result<Window> {
        let pid = || -> Result<u64> {
            let status: serde_json::Value =
                serde_json::from_str(&crate::node::get(self.admin, "/status")?)?;
            status["pid"].as_u64().context("no pid in /status")
        };
        self.load.rest();
        let before = pid()?;
        let began = Instant::now();
        let output = self.command.output()?;
        ensure!(output.status.success(), "upgrade: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(pid()? != before, "the same process answers after the upgrade");
        let gone = || u32::try_from(before).is_ok_and(is_gone);
        ensure!(wait_until(Duration::from_secs(60), gone), "the predecessor does not end");
        let mut window = self.load.window(count)?;
        window.seconds = began.elapsed().as_secs_f64();
        Ok(window)
    }

    fn rest(&mut self) {
        self.load.rest();
    }

    fn wrong(&self) -> Vec<(String, u64)> {
        self.load.wrong()
    }
}
