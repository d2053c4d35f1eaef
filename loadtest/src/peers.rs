//! What a request, a handshake, a byte and an idle connection cost in ferrule beside nginx and
//! HAProxy, in one run.

mod peer;
mod scenario;
mod handshakes;
mod idle;
mod syscalls;
mod table;
mod telemetry;

use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tempfile::TempDir;

use crate::machine;
use crate::options::Common;
use crate::suite::{Part, Suite};
use crate::verdict::Check;
use peer::{Certificate, Collectors, Origins, Peer};
use scenario::Scenario;
use table::{Memory, Sample};
pub(crate) use telemetry::Telemetry;

#[derive(Debug, Clone, Args)]
pub(crate) struct Peers {
    /// Seconds of load per sample.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Samples of each scenario and peer; the tables show medians.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Idle connections per memory sample; 0 leaves memory out.
    #[arg(long, default_value_t = 9_500)]
    idle: usize,
    /// Another build of it, the peer `before`.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Peers to run, of `ferrule`, `observed` (with a collector), `logged` (and an access log),
    /// `refused`, `hanging`, `busy`, `closing`, `trickling` (with a collector that does that),
    /// `before`, `nginx` and `haproxy`; those not installed are left out.
    #[arg(long, value_delimiter = ',', default_value = "ferrule,nginx,haproxy")]
    peers: Vec<String>,
    /// Scenarios to run; by default all.
    #[arg(long, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
}

const ABOUT: &str = "Peers take turns (A B C A B C …), each with one worker on CPU 0; the load and the \
    origins share CPU 1. The same certificate, kept-alive connections to the origin, no request log; \
    ferrule with its limits, metrics and inventory as in production. CPU is user and system time of \
    the proxy's process tree. Ratios are medians of those of samples taken one after the other, with \
    their spread.";

impl Default for Peers {
    fn default() -> Self {
        let peers = ["ferrule", "nginx", "haproxy"].map(str::to_owned).into();
        let scenarios = Vec::new();
        Self { seconds: 3, repetitions: 5, idle: 9_500, before: None, peers, scenarios }
    }
}

/// What every peer of a run needs.
struct Scene<'a> {
    directory: TempDir,
    origins: Origins,
    certificate: Certificate,
    collectors: Collectors,
    arguments: &'a Peers,
    ferrule: &'a Path,
}

impl Peers {
    pub(crate) fn run(&self, common: &Common) -> Result<Suite> {
        let mut suite = Suite::new("peers", ABOUT);
        let scene = Scene::start(self, &common.ferrule)?;
        let peers = scene.peers()?;
        let names: Vec<String> = peers.iter().map(|peer| peer.name().to_owned()).collect();
        for scenario in Scenario::ALL {
            if self.scenarios.is_empty() || self.scenarios.contains(&scenario) {
                suite.part(scenario.name(), scenario.about(), |part| {
                    self.scenario(scenario, &peers, &names, part)
                });
            }
        }
        drop(peers);
        if self.idle > 0 {
            let about = "Growth of the proportional set size while so many connections, each after \
                one complete request, are held open, divided by their number; in a process that did \
                nothing else, when it has stood still for three seconds.";
            suite.part("idle connections", about, |part| scene.memory(&names, part));
        }
        Ok(suite)
    }

    fn scenario(
        &self,
        scenario: Scenario,
        peers: &[Peer],
        names: &[String],
        part: &mut Part,
    ) -> Result<()> {
        let samples = self.samples(scenario, peers)?;
        let mut syscalls = Vec::new();
        for peer in peers {
            match syscalls::per_unit(scenario, peer, Duration::from_secs(1)) {
                Ok(count) => syscalls.push((peer.name().to_owned(), count)),
                Err(error) => {
                    part.check(Check::skipped("system calls", format!("{error:#}")));
                    break;
                }
            }
        }
        table::show(part, scenario, names, &samples, &syscalls);
        Ok(())
    }

    /// Peers taking turns: what disturbs the machine disturbs all of them.
    fn samples(&self, scenario: Scenario, peers: &[Peer]) -> Result<Vec<Sample>> {
        let duration = Duration::from_secs(self.seconds);
        for peer in peers {
            scenario.run(peer, Duration::from_secs(1)).with_context(|| peer.name().to_owned())?;
        }
        let mut samples = Vec::new();
        for repetition in 0..self.repetitions {
            for peer in peers {
                let before = machine::cpu_of_tree(peer.pid())?;
                let others = machine::CpuOfOthers::start()?;
                let load = scenario.run(peer, duration).with_context(|| peer.name().to_owned())?;
                let after = machine::cpu_of_tree(peer.pid())?;
                let others = others.share()?;
                ensure!(load.failed == 0, "{}: {} failed", peer.name(), load.failed);
                let cpu = (after.0 - before.0, after.1 - before.1);
                let sample = Sample::of(scenario, peer.name(), &load, cpu, others);
                eprintln!(
                    "{:>2}. {:<8} {:>8.1} µs/{}  {:>8.0}/s  CPU {:.2}  others {:.2}",
                    repetition + 1,
                    sample.peer,
                    sample.cpu(),
                    scenario.unit(),
                    sample.per_second,
                    sample.utilisation,
                    sample.others
                );
                samples.push(sample);
            }
        }
        Ok(samples)
    }
}

impl<'a> Scene<'a> {
    fn start(arguments: &'a Peers, ferrule: &'a Path) -> Result<Self> {
        let directory = TempDir::with_prefix("ferrule-peers-")?;
        Ok(Self {
            origins: Origins::start(directory.path())?,
            certificate: Certificate::write(directory.path())?,
            collectors: Collectors::start()?,
            directory,
            arguments,
            ferrule,
        })
    }

    /// Those that were asked for and are installed.
    fn peers(&self) -> Result<Vec<Peer>> {
        let mut peers = Vec::new();
        for name in &self.arguments.peers {
            match self.peer(name)? {
                Some(peer) => peers.push(peer),
                None => eprintln!("{name} is not installed: left out"),
            }
        }
        ensure!(!peers.is_empty(), "no peer to measure");
        Ok(peers)
    }

    fn peer(&self, name: &str) -> Result<Option<Peer>> {
        let Self { directory, origins, certificate, collectors, arguments, ferrule } = self;
        let program = match name {
            "before" => arguments.before.as_deref().context("--before is not given")?,
            _ => ferrule,
        };
        Peer::start(name, program, directory.path(), certificate, origins, collectors)
            .with_context(|| format!("starting {name}"))
    }

    fn memory(&self, names: &[String], part: &mut Part) -> Result<()> {
        let count = machine::descriptors_for(self.arguments.idle)?;
        if count < self.arguments.idle {
            part.check(Check::told("connections, for want of descriptors", count));
        }
        let mut samples = Vec::new();
        for scenario in [Scenario::H1, Scenario::H1tls, Scenario::H2] {
            for name in names {
                let peer = self.peer(name)?.context("it was installed a minute ago")?;
                let kib = memory(scenario, &peer, count)?;
                eprintln!("    {:<12} {name:<8} {kib:>6.1} KiB/idle connection", scenario.name());
                samples.push(Memory { scenario, peer: name.clone(), kib, connections: count });
            }
        }
        table::show_memory(part, names, &samples);
        Ok(())
    }
}

/// The memory of a peer once it stands still: idle is what lasts, and an allocator gives pages back
/// a second or more after they were freed. Every peer is given the same time.
fn settled(peer: &Peer) -> Result<u64> {
    const STEP: Duration = Duration::from_secs(1);
    const STEPS_MAX: usize = 10;
    let mut last = machine::pss_of_tree(peer.pid())?;
    let mut still = 0;
    for _ in 0..STEPS_MAX {
        thread::sleep(STEP);
        let now = machine::pss_of_tree(peer.pid())?;
        // Less than 1 % within a second, three times in a row.
        still = if now.abs_diff(last) * 100 < last { still + 1 } else { 0 };
        last = now;
        if still == 3 {
            break;
        }
    }
    Ok(last)
}

/// KiB of each connection that did one request and now waits, in a process that has done nothing
/// else: what an earlier load left behind would hide what they take.
fn memory(scenario: Scenario, peer: &Peer, count: usize) -> Result<f64> {
    // The first connections pay for what is set up once.
    drop(idle::open(scenario, peer, 10)?);
    peer.settle()?;
    let before = machine::pss_of_tree(peer.pid())?;
    let held = idle::open(scenario, peer, count)?;
    let after = settled(peer)?;
    ensure!(held.iter().all(idle::Held::is_open), "{} closed some", peer.name());
    Ok((after as f64 - before as f64) / count as f64)
}
