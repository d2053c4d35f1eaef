//! How many system calls a request costs, counted by perf in the kernel.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::peer::Peer;
use super::scenario::Scenario;
use crate::machine;
use crate::process::{find, signal_process};

/// Of the whole process tree, over a run.
///
/// # Errors
///
/// When this machine does not let them be counted.
pub(super) fn per_unit(scenario: Scenario, peer: &Peer, duration: Duration) -> Result<f64> {
    let perf = find("perf").context("perf is not installed")?;
    let pids = machine::tree_of(peer.pid())?;
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let mut command = Command::new(perf);
    command.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pids.join(",")]);
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    thread::sleep(Duration::from_millis(200)); // until it counts
    let load = scenario.run(peer, duration);
    signal_process(child.id(), Signal::INT)?;
    let said = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stderr);
    let count = said.lines().find(|line| line.contains("raw_syscalls")).and_then(|line| {
        let first = line.split(',').next()?;
        first.parse::<f64>().ok()
    });
    let Some(count) = count else { bail!("perf cannot count here: {}", said.trim()) };
    Ok(count / load?.units)
}
