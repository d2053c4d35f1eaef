//! Clients that mean harm, a bounded number of them for a bounded time, on the loopback; and others
//! beside them who must not notice.

mod corpus;
mod identity;
mod floods;
mod slow;
mod heads;
mod offender;

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::beside::{Beside, Seen};
use crate::client::http1::Http1;
use crate::client::{Stream, tls};
use crate::node::config::{App, DOMAIN, Setup};
use crate::node::{Node, Scrape};
use crate::options::{Common, Selection};
use crate::origin::Origin;
use crate::sampler::{OWN, Sampler};
use crate::suite::{Part, Suite};
use crate::verdict::Check;
use offender::{Attack, Ends, Offender};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Attacks {
    #[command(flatten)]
    selection: Selection,
    /// Attacking connections at a time.
    #[arg(long)]
    connections: Option<usize>,
}

const ABOUT: &str = "Each attack meets a node of its own, with the deadlines shown. Beside it three \
    clients keep a rate of 150 requests per second together (HTTP/1.1 and HTTP/2 on lasting \
    connections, and new connections), first alone, then during the attack. Memory is what the \
    kernel gave the process at most, above what it had before, for each attacking connection; pages \
    of the program itself, which come in as code is first run, are left out. A good \
    request before and after is the control: an attack on a closed port would pass everything else.";

/// What each attacking connection may cost, and what others may notice.
const MEMORY_MIB_MAX: f64 = 2.0;
const P99_MS_MIN: f64 = 250.0;
const P99_TIMES: f64 = 10.0;
const RATE: u32 = 150;

/// The world of one attack.
pub(crate) struct Scene {
    pub origin: Origin,
    pub node: Node,
    pub deadlines: Deadlines,
}

/// `[timeouts]` of the node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    pub handshake: u64,
    pub head: u64,
    pub body: u64,
    pub write: u64,
    pub idle: u64,
}

/// As in production, and so short that a short run can wait for them.
const PRODUCTION: Deadlines = Deadlines { handshake: 10, head: 10, body: 20, write: 30, idle: 60 };
const SHORT: Deadlines = Deadlines { handshake: 2, head: 2, body: 3, write: 3, idle: 3 };

impl Attacks {
    pub(crate) fn run(&self, common: &Common) -> Result<Suite> {
        let mut suite = Suite::new("attacks", ABOUT);
        for attack in floods::ALL.iter().chain(slow::ALL).chain(heads::ALL) {
            if self.selection.has(attack.name) && (!common.short || attack.in_short) {
                suite.part(attack.name, attack.about, |part| self.attack(common, attack, part));
            }
        }
        for case in corpus::ALL.iter().chain(identity::ALL) {
            if self.selection.has(case.name) {
                suite.part(case.name, case.about, |part| {
                    let scene = Scene::start(common)?;
                    scene.serves()?;
                    (case.run)(&scene, part)?;
                    scene.serves()
                });
            }
        }
        Ok(suite)
    }

    fn attack(&self, common: &Common, attack: &'static Attack, part: &mut Part) -> Result<()> {
        let connections = self.connections.unwrap_or(if common.short { 16 } else { 20 });
        let quiet_time = Duration::from_secs(if common.short { 2 } else { 5 });
        let scene = Scene::start(common)?;
        scene.serves()?;
        let sampler = Sampler::start(&scene.node)?;
        let beside = || Beside::start(&scene.node, &host("web"), "/", RATE);
        let quiet = beside()?.for_a_while(quiet_time);
        let before = scene.node.scrape()?;
        let (others, at) = (beside()?, quiet_time.as_secs_f64());
        // Attack together, as long as the slowest deadline that ends them, and a little.
        let limit = attack.limit(&scene.deadlines);
        let again = Duration::from_secs(if common.short { 2 } else { 8 });
        let offenders: Vec<Offender> = thread::scope(|scope| {
            let spawn = |_| scope.spawn(|| Offender::attack(&scene, attack, limit, again));
            let threads: Vec<_> = (0..connections).map(spawn).collect();
            threads.into_iter().map(|one| one.join().expect("offenders do not panic")).collect()
        });
        thread::sleep(Duration::from_millis(300));
        let others = others.end();
        let after = scene.node.scrape()?;
        let samples = sampler.end();
        let was = |point: &&(f64, f64)| point.0 <= at;
        let base = samples.of(OWN).iter().filter(was).map(|point| point.1).fold(0.0, f64::max);
        let each = (samples.max(OWN) - base).max(0.0) / connections as f64;
        part.check(
            Check::at_most("memory of a connection", "MiB", MEMORY_MIB_MAX, each, 2)
                .because(format!("{base:.0} MiB before, {:.0} at most", samples.max(OWN))),
        );
        bystanders(part, &quiet, &others);
        self.ending(part, attack, &offenders, limit);
        counted(part, attack, &before, &after);
        afterwards(part, &scene)?;
        part.plots.push(samples.memory("Memory").mark(at, "the attack begins"));
        part.plots.push(others.plot("What others saw during the attack"));
        Ok(())
    }

    fn ending(&self, part: &mut Part, attack: &Attack, offenders: &[Offender], limit: Duration) {
        let sent: u64 = offenders.iter().map(|offender| offender.sent).sum();
        let rounds: u64 = offenders.iter().map(|offender| offender.rounds).sum();
        let made = format!("{sent} × {}, on {rounds} connections", attack.unit);
        part.check(Check::told("sent", made));
        let broken: Vec<&str> =
            offenders.iter().filter_map(|offender| offender.failed.as_deref()).collect();
        if let Some(error) = broken.first() {
            let error = anyhow::anyhow!("{} of {}: {error}", broken.len(), offenders.len());
            part.check(Check::broken("the attack takes place", &error));
        }
        match attack.ends {
            Ends::Closed(_) => {
                let closed: Vec<Duration> =
                    offenders.iter().filter_map(|offender| offender.closed_after).collect();
                let last = closed.iter().max().copied().unwrap_or_default();
                let measured = format!(
                    "{} of {}, the last after {:.1} s",
                    closed.len(),
                    offenders.len(),
                    last.as_secs_f64()
                );
                let bar = format!("all, within {} s", limit.as_secs());
                let why = offenders.iter().find_map(|offender| offender.said.clone());
                part.check(
                    Check::that(
                        "offenders are closed",
                        bar,
                        measured,
                        closed.len() == offenders.len(),
                    )
                    .because(why.unwrap_or_default()),
                );
            }
            Ends::Refused => {
                let said: Vec<&str> =
                    offenders.iter().filter_map(|offender| offender.said.as_deref()).collect();
                let holds = said.len() == offenders.len();
                let measured = format!("{} of {}", said.len(), offenders.len());
                let why = said.first().copied().unwrap_or_default();
                part.check(
                    Check::that("offenders are refused", "all", measured, holds).because(why),
                );
            }
            Ends::Endured => {}
        }
    }
}

/// Who did nothing wrong must not notice.
fn bystanders(part: &mut Part, quiet: &Seen, others: &Seen) {
    let control = format!("{} requests while quiet", quiet.total());
    let holds = quiet.errors() == 0 && quiet.total() > 0;
    part.check(
        Check::that("control: others are served while quiet", "0 errors", quiet.errors(), holds)
            .because(control),
    );
    let (errors, total) = (others.errors(), others.total());
    let measured = format!("{errors} of {total}");
    let why = if errors > 0 { others.said() } else { String::new() };
    part.check(
        Check::that("errors of others", "0", measured, errors == 0 && total > 0).because(why),
    );
    let bar = P99_MS_MIN.max(P99_TIMES * quiet.latency().p99);
    let why = format!("quiet: {:.1} ms", quiet.latency().p99);
    part.check(
        Check::at_most("p99 of others", "ms", bar.round(), others.latency().p99, 1)
            .because(why)
            .timed(),
    );
}

/// The counter says which.
fn counted(part: &mut Part, attack: &Attack, before: &Scrape, after: &Scrape) {
    let mut risen = after.risen(before, "ferrule_errors_total");
    risen.extend(after.risen(before, "ferrule_tls_handshakes_total"));
    risen.extend(after.risen(before, "ferrule_requests_total"));
    let told: Vec<String> = risen
        .iter()
        .filter(|(name, _)| !name.contains("\"ok\"") && !name.contains("class=\"2xx\""))
        .map(|(name, value)| format!("{name} +{value}"))
        .collect();
    if attack.counters.is_empty() {
        part.check(Check::told("counters that rose", told.join(", ")));
        return;
    }
    let counted =
        attack.counters.iter().any(|counter| risen.iter().any(|(name, _)| name.contains(counter)));
    let bar = format!("one of {} rises", attack.counters.join(", "));
    part.check(Check::that("the counter says which", bar, told.join(", "), counted));
}

fn afterwards(part: &mut Part, scene: &Scene) -> Result<()> {
    let settles = scene.node.settles(Duration::from_secs(20));
    let left = settles.as_ref().err().map_or_else(|| "nothing".to_owned(), ToString::to_string);
    part.check(Check::that("left afterwards", "nothing", left, settles.is_ok()));
    let serves = scene.serves();
    let said = serves.as_ref().err().map_or_else(|| "200".to_owned(), |error| format!("{error:#}"));
    part.check(Check::that("control: a good request afterwards", "200", said, serves.is_ok()));
    Ok(())
}

pub(crate) fn host(app: &str) -> String {
    format!("{app}.{DOMAIN}")
}

// === impl Scene ===

impl Scene {
    fn start(common: &Common) -> Result<Self> {
        let deadlines = if common.short { SHORT } else { PRODUCTION };
        let origin = Origin::start()?;
        let seconds = |seconds: u64| format!("\"{seconds}s\"");
        let setup = Setup::new(&common.ferrule)?
            .set("timeouts", "handshake", seconds(deadlines.handshake))
            .set("timeouts", "request_head", seconds(deadlines.head))
            .set("timeouts", "request_body", seconds(deadlines.body))
            .set("timeouts", "response_write", seconds(deadlines.write))
            .set("timeouts", "h1_idle", seconds(deadlines.idle))
            .set("timeouts", "h2_idle", seconds(deadlines.idle));
        let ports = setup.ports;
        let setup = setup
            .app(App::web("web", &ports, origin.address()))
            .app(App::web("other", &ports, origin.address()))
            .app(App::web("odd", &ports, origin.address()));
        let node = Node::start(&setup)?;
        Ok(Self { origin, node, deadlines })
    }

    /// A good request, in cleartext and in TLS.
    fn serves(&self) -> Result<()> {
        let host = host("web");
        for stream in [self.clear()?, self.tls(&["http/1.1"])?] {
            let answer = Http1::new(stream).get(&host, "/control")?;
            ensure!(answer.status == 200, "a good request got {}", answer.status);
        }
        Ok(())
    }

    pub(crate) fn clear(&self) -> Result<Stream> {
        Stream::clear(self.node.http())
    }

    pub(crate) fn tls(&self, protocols: &[&str]) -> Result<Stream> {
        self.tls_to(&host("web"), protocols)
    }

    pub(crate) fn tls_to(&self, name: &str, protocols: &[&str]) -> Result<Stream> {
        let config: tls::Config = self.node.tls(protocols)?;
        Stream::tls(self.node.https(), name, &config)
    }
}
