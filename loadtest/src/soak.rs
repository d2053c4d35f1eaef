//! Everything at once, for long: all kinds of work, while apps, instances and certificates change on
//! disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::flat::{
    Bodies, Errors, Grpc, Load, Outcome, Plan, Records, Resets, SlowReader, Target, Tcp, Team,
    WebSockets, Window, measure,
};
use crate::histogram::Histogram;
use crate::node::Node;
use crate::node::config::{App, Ports, Setup};
use crate::options::Common;
use crate::origin::{Collector, Origin, Server, Takes};
use crate::process::free;
use crate::sampler::{Sampler, Samples};
use crate::suite::{Part, Suite};
use crate::verdict::Check;

#[derive(Debug, Clone, Args)]
pub(crate) struct Soak {
    /// How long; by default 10, in the short form 1.
    #[arg(long)]
    minutes: Option<u64>,
}

/// Bytes per request: what is resolved in ten minutes of so many kinds of work. Whoever forgets
/// anything forgets more than the allocator's smallest blocks.
const LEAST: f64 = 16.0;

const ABOUT: &str = "Requests, WebSockets, raw TCP, gRPC, large bodies, slow readers, resets and \
    errors at the same time, with pauses in which memory is read. Meanwhile an app comes or goes \
    twice a second, another gets and loses an instance, and the certificate is renewed. The bars are \
    those of `flat`, but 16 B per request; besides, nothing may be taken for a leak, and descriptors and threads must not \
    become more.";

impl Soak {
    pub(crate) fn new() -> Self {
        Self { minutes: None }
    }

    pub(crate) fn run(&self, common: &Common) -> Result<Suite> {
        let minutes = self.minutes.unwrap_or(if common.short { 1 } else { 10 });
        let mut suite = Suite::new("soak", ABOUT);
        suite.part(format!("{minutes} minutes"), "", |part| soak(common, minutes, part));
        Ok(suite)
    }
}

fn soak(common: &Common, minutes: u64, part: &mut Part) -> Result<()> {
    let origin = Origin::start()?;
    let second = Origin::beside(&origin, 2)?;
    let (echo, h2c) = (Server::echo()?, Server::h2c()?);
    let collector = Collector::start(Takes::Everything)?;
    let setup = Setup::new(&common.ferrule)?
        .exports_to(&collector.endpoint())
        .set("telemetry.otlp", "ring_bytes", "\"128KiB\"")
        .set("telemetry.otlp", "schedule_delay", "\"200ms\"")
        .set("timeouts", "response_head", "\"5s\"");
    let ports = setup.ports;
    let setup = setup
        .app(App::web("web", &ports, origin.address()).with_subdomains())
        .app(App::web("odd", &ports, origin.address()))
        .app(App::web("refusing", &ports, free()?))
        .app(App::grpc("grpc", &ports, h2c.address()))
        .app(App::tcp("tcp", &ports, echo.address()));
    let node = Arc::new(Node::start(&setup)?);
    let target = Target::of(&node)?;
    let mut mix = Mix::new(&target, Duration::from_secs(60 * minutes) / 60);
    let sampler = Sampler::start(&node)?;
    let churn = Churn::start(&node, ports, origin.address().port(), second.address());
    let plan = Plan {
        requests: 1,
        requests_max: 1,
        time: Some(Duration::from_secs(60 * minutes)),
        grows_is_enough: false,
        windows: 50,
        at_most: LEAST,
        recovery: Duration::from_secs(60),
    };
    let descriptors =
        || Ok::<_, anyhow::Error>(node.scrape()?.value("ferrule_process_descriptors"));
    mix.window(0)?;
    mix.rest();
    let before = descriptors()?;
    let outcome: Outcome = measure(&node, &mut mix, &plan)?;
    let changes = churn.end()?;
    let samples = sampler.end();
    outcome.show(part, &plan);
    part.check(Check::told("changes on disk meanwhile", changes));
    quiet_watch(&node, part)?;
    // The pools of both are empty by then: upstream connections idle for four seconds.
    thread::sleep(Duration::from_secs(6));
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
fn quiet_watch(node: &Node, part: &mut Part) -> Result<()> {
    let scrape = node.scrape()?;
    let sure = ["probable", "leak"]
        .map(|state| scrape.value(&format!("ferrule_leak_suspects{{state=\"{state}\"}}")))
        .iter()
        .sum::<f64>();
    part.check(Check::that("false alarms of the watch for leaks", "0", sure, sure == 0.0));
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

/// All kinds of work side by side, for the time of a window.
struct Mix {
    teams: Vec<Box<dyn Load + Send>>,
    time: Duration,
}

impl Mix {
    fn new(target: &Target, time: Duration) -> Self {
        let target = || target.clone();
        let teams: Vec<Box<dyn Load + Send>> = vec![
            Box::new(Team::new(4, |_| Records::new(target(), 100))),
            Box::new(Team::new(2, |_| WebSockets::new(target()))),
            Box::new(Team::new(2, |_| Tcp::new(target()))),
            Box::new(Team::new(2, |_| Grpc::new(target()))),
            Box::new(Team::new(1, |_| Bodies::new(target()))),
            Box::new(Team::new(4, |_| SlowReader::new(target()))),
            Box::new(Team::new(2, |_| Resets::new(target()))),
            Box::new(Team::new(2, |_| Errors::new(target()))),
        ];
        Self { teams, time }
    }
}

impl Load for Mix {
    fn window(&mut self, _: u64) -> Result<Window> {
        /// Units of a team at a time: it looks at the clock in between.
        const TURN: u64 = 4;
        let began = Instant::now();
        let (done, time) = (AtomicU64::new(0), self.time);
        let ended: Vec<Result<Histogram>> = thread::scope(|scope| {
            let done = &done;
            let run = |team: &mut Box<dyn Load + Send>| -> Result<Histogram> {
                let mut histogram = Histogram::default();
                while began.elapsed() < time {
                    let window = team.window(TURN)?;
                    done.fetch_add(window.done, SeqCst);
                    histogram.add(Duration::from_secs_f64(window.latency.p50 / 1e3));
                }
                Ok(histogram)
            };
            let threads: Vec<_> =
                self.teams.iter_mut().map(|team| scope.spawn(move || run(team))).collect();
            threads.into_iter().map(|one| one.join().expect("teams do not panic")).collect()
        });
        let mut latency = Histogram::default();
        for histogram in ended {
            latency.merge(&histogram?);
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Window { done: done.load(SeqCst), seconds, latency: latency.quantiles() })
    }

    fn rest(&mut self) {
        self.teams.iter_mut().for_each(|team| team.rest());
    }

    fn wrong(&self) -> Vec<(String, u64)> {
        self.teams.iter().flat_map(|team| team.wrong()).collect()
    }
}

/// Changes on disk until it is told to end.
struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Churn {
    fn start(node: &Arc<Node>, ports: Ports, instance: u16, second: std::net::SocketAddr) -> Self {
        const PAUSE: Duration = Duration::from_millis(500);
        const APPS: u64 = 50;
        let stop = Arc::<AtomicBool>::default();
        let (stopped, node) = (stop.clone(), node.clone());
        let run = move || {
            let mut round = 0u64;
            while !stopped.load(SeqCst) {
                let name = format!("churn-{}", round % APPS);
                match (round / APPS).is_multiple_of(2) {
                    true => {
                        let first = (ports.ip, instance).into();
                        node.write_app(&App::web(&name, &ports, first))?;
                    }
                    false => node.remove_app(&name)?,
                }
                let web = App::web("web", &ports, (ports.ip, instance).into()).with_subdomains();
                match round % 8 {
                    2 => node.write_app(&web.instance("web-2", "a", second.ip()))?,
                    6 => node.write_app(&web)?,
                    7 => node.renew_certificate()?,
                    _ => {}
                }
                round += 1;
                thread::sleep(PAUSE);
            }
            Ok(round)
        };
        Self { stop, thread: thread::spawn(run) }
    }

    fn end(self) -> Result<u64> {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("churn does not panic")
    }
}
