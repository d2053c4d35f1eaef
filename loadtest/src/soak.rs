//! Everything at once, for long: all kinds of work, while apps, instances and certificates change on
//! disk.

mod mix;
mod churn;
mod standing;
mod fill;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::flat::{Load as _, Outcome, Plan, Target, measure};
use crate::node::Node;
use crate::node::config::{App, Setup};
use crate::options::Common;
use crate::origin::{Collector, Origin, Server, Takes};
use crate::process::free;
use crate::sampler::{SUSPECTS, Sampler, Samples};
use crate::suite::{Part, Suite};
use crate::verdict::Check;
use churn::{Changes, Churn};
use mix::{Mix, WINDOWS};
use standing::Standing;

#[derive(Debug, Clone, Args)]
pub(crate) struct Soak {
    /// How long; by default 10, in the short form 1.
    #[arg(long)]
    minutes: Option<u64>,
    /// The scales on which the node looks for leaks: by default `production`, which takes hours to
    /// say anything; `test` takes 20 s, and costs more memory.
    #[arg(long, value_parser = ["production", "test"], default_value = "production")]
    heap: String,
}

/// Bytes per request: what is resolved in ten minutes of so many kinds of work. Whoever forgets
/// anything forgets more than the allocator's smallest blocks.
const LEAST: f64 = 16.0;

const ABOUT: &str = "Requests, WebSockets, raw TCP, gRPC, large bodies, slow readers, resets and \
    errors at the same time, with pauses in which memory is read; besides, requests for more apps than \
    metrics have room for, and to more instances than idle connections are kept to. Twenty WebSockets \
    are open from the beginning to the end. Twice a crowd comes with ten times as many clients, for a \
    tenth of the time and a minute at most. Meanwhile an app comes or goes twice a second, another gets \
    and loses an instance, the certificate is renewed, and each minute the whole inventory is written \
    anew. The bars are those of `flat`, but 16 B per request; besides, nothing may ever be taken for a \
    leak, and descriptors must not become more.";

impl Soak {
    pub(crate) fn new() -> Self {
        Self { minutes: None, heap: "production".to_owned() }
    }

    pub(crate) fn run(&self, common: &Common) -> Result<Suite> {
        let minutes = self.minutes.unwrap_or(if common.short { 1 } else { 10 });
        let mut suite = Suite::new("soak", ABOUT);
        suite.part(format!("{minutes} minutes"), "", |part| {
            soak(common, Duration::from_secs(60 * minutes), &self.heap, part)
        });
        Ok(suite)
    }
}

fn soak(common: &Common, time: Duration, heap: &str, part: &mut Part) -> Result<()> {
    let origin = Origin::start()?;
    // Instances of one app, of which the first is the one that others have too.
    let beside = (2..=fill::INSTANCES).map(|last| Origin::beside(&origin, last));
    let beside = beside.collect::<Result<Vec<_>>>()?;
    let (echo, h2c) = (Server::echo()?, Server::h2c()?);
    let collector = Collector::start(Takes::Everything)?;
    let setup = fill::bounded(Setup::new(&common.ferrule)?)
        .exports_to(&collector.endpoint())
        .set("telemetry.otlp", "schedule_delay", "\"200ms\"")
        .set("timeouts", "response_head", "\"5s\"")
        .set("memory", "profile", format!("\"{heap}\""));
    let ports = setup.ports;
    let many = beside
        .iter()
        .enumerate()
        .fold(App::web(fill::MANY, &ports, origin.address()), |many, (number, origin)| {
            many.instance(&format!("{number}"), "a", origin.address().ip())
        });
    let apps = vec![
        App::web("web", &ports, origin.address()).with_subdomains(),
        App::web("odd", &ports, origin.address()),
        App::web("refusing", &ports, free()?),
        App::grpc("grpc", &ports, h2c.address()),
        App::tcp("tcp", &ports, echo.address()),
        App::web(standing::APP, &ports, origin.address()),
        many,
    ];
    let setup = apps.iter().cloned().fold(setup, Setup::app);
    let node = Arc::new(Node::start(&setup)?);
    let target = Target::of(&node)?;
    let mut mix = Mix::new(&target, time);
    let standing = Standing::start(&target)?;
    let sampler = Sampler::start(&node)?;
    let reload = (time / 10).min(Duration::from_secs(60));
    let churn = Churn::start(&node, apps, beside[0].address(), reload);
    let plan = Plan {
        requests: 2,
        // What is to be full after two minutes of ten is not after twelve seconds of a minute.
        requests_max: if common.short { 8 } else { 3 },
        time: Some(time),
        grows_is_enough: false,
        windows: WINDOWS,
        at_most: LEAST,
        standing: standing::SOCKETS,
        recovery: Duration::from_secs(60),
    };
    let descriptors =
        || Ok::<_, anyhow::Error>(node.scrape()?.value("ferrule_process_descriptors"));
    mix.window(0)?;
    mix.rest();
    let before = descriptors()?;
    let outcome: Outcome = measure(&node, &mut mix, &plan)?;
    let Changes { single, reloads } = churn.end()?;
    fill::show(&node, part)?;
    let said = standing.end();
    let samples = sampler.end();
    outcome.show(part, &plan);
    part.check(Check::told("changes on disk meanwhile", single));
    part.check(Check::that("inventories written anew", "≥ 9", reloads, reloads >= 9));
    part.check(Check::that("windows with a crowd", "≥ 2", mix.crowded(), mix.crowded() >= 2));
    let lasted = said.is_ok();
    let said = said.map_or_else(|error| format!("{error:#}"), |said| format!("{said} echoes"));
    let sockets = format!("all {} last", standing::SOCKETS);
    part.check(Check::that("WebSockets of the whole time", sockets, said, lasted));
    quiet_watch(&node, &samples, part)?;
    // The pools of both are empty by then: upstream connections idle for four seconds.
    thread::sleep(Duration::from_secs(6));
    let left = node.settles(Duration::from_secs(10)).err().map(|error| format!("{error:#}"));
    let nothing = left.is_none();
    let left = left.unwrap_or_else(|| "nothing".to_owned());
    part.check(Check::that("left when the WebSockets have gone", "nothing", left, nothing));
    let after = descriptors()?;
    part.check(Check::at_most(
        "descriptors beyond those of the beginning",
        "",
        32.0,
        after - before,
        0,
    ));
    draw(part, &samples);
    Ok(())
}

/// The node itself must not see a leak where there is none.
fn quiet_watch(node: &Node, samples: &Samples, part: &mut Part) -> Result<()> {
    let most = samples.max(SUSPECTS);
    let looks = format!("at each of {} looks", samples.of(SUSPECTS).len());
    let quiet = most == 0.0 && !samples.of(SUSPECTS).is_empty();
    part.check(Check::that("false alarms of the watch for leaks", "0", most, quiet).because(looks));
    let scrape = node.scrape()?;
    let blocked = scrape.value("ferrule_threads_blocked_total");
    part.check(Check::that("polls longer than 200 ms", "0", blocked, blocked == 0.0).timed());
    Ok(())
}

fn draw(part: &mut Part, samples: &Samples) {
    part.plots.push(samples.memory("Memory over time"));
    part.plots.push(samples.load("Connections and requests"));
    let rate = samples.rate(crate::sampler::REQUESTS);
    let plot = crate::suite::Plot::new("Requests that the node received", "s", "requests/s");
    part.plots.push(plot.line("requests", rate));
}
