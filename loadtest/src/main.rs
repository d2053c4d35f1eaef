//! Proof of what ferrule promises: suites that start the real binary and drive it from outside, and a
//! report that shows what came of it.
//!
//! The method and how to read the figures: `README.md` beside this crate.

mod options;
mod verdict;
mod suite;
mod report;
mod machine;
mod process;
mod histogram;
mod slope;
mod authority;
mod node;
mod sampler;
mod client;
mod origin;
mod oha;
mod beside;
mod flat;
mod attacks;
mod faults;
mod soak;
mod peers;
mod proof;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use options::Common;
use report::{Outcome, Report};

/// Load, leak, fault, attack and peer suites against the real binary.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Whether memory grows with the work that is done.
    Flat(flat::Flat),
    /// Hostile clients, and what others notice of them.
    Attacks(attacks::Attacks),
    /// What breaks, and what clients see of it.
    Faults(faults::Faults),
    /// Everything at once, for long.
    Soak(soak::Soak),
    /// CPU, memory and latency beside nginx and HAProxy.
    Peers(peers::Peers),
    /// What telemetry costs the requests.
    Telemetry(peers::Telemetry),
    /// All of them.
    Proof(proof::Proof),
    /// An instance, for the suites.
    #[command(hide = true)]
    Instance(faults::instance::Serve),
}

fn main() -> ExitCode {
    let Arguments { common, command } = Arguments::parse();
    match run(&common, &command) {
        Ok(outcome) => ExitCode::from(outcome as u8),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::from(Outcome::Broken as u8)
        }
    }
}

fn run(common: &Common, command: &Command) -> Result<Outcome> {
    if let Command::Instance(instance) = command {
        instance.run()?;
    }
    let mut report = Report::new(&common.ferrule, !common.forgive_timing);
    // A thousand connections are nothing for a suite, and more than many a shell allows.
    machine::descriptors_for(usize::MAX)?;
    match command {
        Command::Flat(flat) => report.add(flat.run(common)?),
        Command::Attacks(attacks) => report.add(attacks.run(common)?),
        Command::Faults(faults) => report.add(faults.run(common)?),
        Command::Soak(soak) => report.add(soak.run(common)?),
        Command::Peers(peers) => report.add(peers.run(common)?),
        Command::Telemetry(telemetry) => report.add(telemetry.run(common)?),
        Command::Proof(proof) => proof.run(common, &mut report)?,
        Command::Instance(_) => {}
    }
    report.write(&common.output)?;
    #[expect(clippy::print_stdout, reason = "the summary is this program's answer")]
    {
        println!("{}", report.summary());
        println!("{}", common.output.join("report.html").display());
    }
    Ok(report.outcome())
}
