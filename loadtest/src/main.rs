//! Measures what ferrule costs beside its peers, CPU per request and memory per idle connection, and
//! whether its memory grows with the requests it answers.
//!
//! The method and how to read the numbers: `README.md` beside this crate.

mod machine;
mod peer;
mod load;
mod idle;
mod report;
mod servers;
mod slope;
mod flat;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use tempfile::TempDir;

use flat::Flat;
use load::Scenario;
use peer::{Origin, Peer};
use report::{Report, Sample};
use servers::Collector;

/// CPU per request and memory per idle connection: ferrule, nginx and HAProxy in one interleaved run.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Command {
    /// Whether memory grows with the requests that are answered; fails unless it is flat.
    Flat(Flat),
}

#[derive(Args)]
struct Bench {
    /// The binary under test.
    #[arg(long, default_value = "target/release/ferrule")]
    ferrule: PathBuf,
    /// Seconds of load per sample.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Samples of each scenario and peer; the table shows medians.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Idle connections per memory sample; 0 leaves memory out.
    #[arg(long, default_value_t = 2_000)]
    idle: usize,
    /// Another build of it, the peer `before`.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Peers to run, of `ferrule`, `observed` (with a collector), `logged` (and an access log),
    /// `before`, `nginx` and `haproxy`; those not installed are left out.
    #[arg(long, value_delimiter = ',', default_value = "ferrule,nginx,haproxy")]
    peers: Vec<String>,
    /// Scenarios to run: `h1`, `h1tls`, `h2`.
    #[arg(long, value_delimiter = ',', default_value = "h1,h1tls,h2")]
    scenarios: Vec<Scenario>,
    /// Where the table and the raw samples are written.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { command, bench } = Arguments::parse();
    match command {
        Some(Command::Flat(flat)) => flat.run(),
        None => compare(&bench),
    }
}

fn compare(arguments: &Bench) -> Result<()> {
    let directory = TempDir::with_prefix("ferrule-bench-")?;
    let origin = Origin::start(directory.path())?;
    let collector = Collector::start(true)?;
    let certificate = peer::Certificate::write(directory.path())?;
    let start = |name: &String| {
        let program = match name.as_str() {
            "before" => arguments.before.as_ref().context("--before is not given")?,
            _ => &arguments.ferrule,
        };
        Peer::start(name, program, directory.path(), &certificate, &origin, &collector)
            .with_context(|| format!("starting {name}"))
    };
    let mut peers = Vec::new();
    for name in &arguments.peers {
        match start(name)? {
            Some(peer) => peers.push(peer),
            None => eprintln!("{name} is not installed: left out"),
        }
    }
    ensure!(!peers.is_empty(), "no peer to measure");
    let mut report = Report::new(peers.iter().map(Peer::describe).collect());
    requests(arguments, &peers, &mut report)?;
    let names: Vec<String> = peers.drain(..).map(|peer| peer.name().to_owned()).collect();
    if arguments.idle > 0 {
        for &scenario in &arguments.scenarios {
            for name in &names {
                let peer = start(name)?.context("it was installed a minute ago")?;
                report.add(memory(scenario, &peer, arguments.idle)?);
            }
        }
    }
    fs::create_dir_all(&arguments.output)?;
    let table = report.table();
    fs::write(arguments.output.join("report.md"), &table)?;
    fs::write(arguments.output.join("samples.json"), report.samples()?)?;
    #[expect(clippy::print_stdout, reason = "the table is this program's answer")]
    {
        println!("{table}");
    }
    Ok(())
}

/// Every scenario, peers taking turns: what disturbs the machine disturbs all of them.
fn requests(arguments: &Bench, peers: &[Peer], report: &mut Report) -> Result<()> {
    let duration = Duration::from_secs(arguments.seconds);
    for &scenario in &arguments.scenarios {
        for peer in peers {
            scenario.run(peer, Duration::from_secs(1)).context("warming up")?;
        }
        for repetition in 0..arguments.repetitions {
            for peer in peers {
                let cpu = machine::cpu_of_tree(peer.pid())?;
                let others = machine::CpuOfOthers::start()?;
                let load = scenario.run(peer, duration)?;
                let cpu = machine::cpu_of_tree(peer.pid())? - cpu;
                let others = others.share()?;
                ensure!(load.failed == 0, "{}: {} requests failed", peer.name(), load.failed);
                let sample = Sample::requests(scenario, peer, &load, cpu, others);
                eprintln!("{:>2}. {sample}", repetition + 1);
                report.add(sample);
            }
        }
    }
    Ok(())
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

/// Memory of connections that did one request each and now wait, in a process that has done
/// nothing else: what an earlier load left behind would hide what they take.
fn memory(scenario: Scenario, peer: &Peer, count: usize) -> Result<Sample> {
    // The first connections pay for what is set up once.
    drop(idle::open(scenario, peer, 10)?);
    peer.settle()?;
    let before = machine::pss_of_tree(peer.pid())?;
    let held = idle::open(scenario, peer, count)?;
    let after = settled(peer)?;
    ensure!(held.iter().all(idle::Held::is_open), "{} closed some", peer.name());
    let sample = Sample::memory(scenario, peer, before, after, count);
    eprintln!("    {sample}");
    Ok(sample)
}
