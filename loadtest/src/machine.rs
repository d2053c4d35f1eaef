//! What the kernel says of a process and its children: CPU time and proportional memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Ticks per second of `/proc/*/stat`; Linux shows 100 to user space on every architecture we run on.
const TICKS_PER_SECOND: u64 = 100;

/// How much of the machine everyone else uses meanwhile.
pub(crate) struct CpuOfOthers {
    start: Instant,
    machine: u64,
    ours: u64,
}

/// CPU time (user and system) of `pid` and its living descendants.
pub(crate) fn cpu_of_tree(pid: u32) -> Result<Duration> {
    let mut ticks = 0;
    for process in tree(pid)? {
        ticks += process.own_ticks;
    }
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Proportional set size of `pid` and its living descendants, in KiB.
pub(crate) fn pss_of_tree(pid: u32) -> Result<u64> {
    let mut total = 0;
    for process in tree(pid)? {
        let path = format!("/proc/{}/smaps_rollup", process.pid);
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
        total += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(total)
}

impl CpuOfOthers {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self { start: Instant::now(), machine: machine_ticks()?, ours: our_ticks()? })
    }

    /// CPUs used by processes that are not ours, since the start; 1.0 is one CPU.
    pub(crate) fn share(&self) -> Result<f64> {
        let ours = our_ticks()?.saturating_sub(self.ours);
        let others = machine_ticks()?.saturating_sub(self.machine).saturating_sub(ours);
        let ticks = self.start.elapsed().as_secs_f64() * TICKS_PER_SECOND as f64;
        Ok(others as f64 / ticks)
    }
}

struct Process {
    pid: u32,
    parent: u32,
    own_ticks: u64,
    reaped_ticks: u64,
}

fn our_ticks() -> Result<u64> {
    let tree = tree(std::process::id())?;
    Ok(tree.iter().map(|process| process.own_ticks + process.reaped_ticks).sum())
}

fn machine_ticks() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user, nice, system, (idle, iowait,) irq, softirq
    Ok([0, 1, 2, 5, 6].iter().filter_map(|index| fields.get(*index)).sum())
}

/// `root` and whoever descends from it.
fn tree(root: u32) -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between listing and reading.
        all.extend(read(pid));
    }
    let mut pids = vec![root];
    let mut index = 0;
    while let Some(&parent) = pids.get(index) {
        pids.extend(all.iter().filter(|process| process.parent == parent).map(|p| p.pid));
        index += 1;
    }
    all.retain(|process| pids.contains(&process.pid));
    Ok(all)
}

fn read(pid: u32) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets that may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Process {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        own_ticks: number(11)? + number(12)?,
        reaped_ticks: number(13)? + number(14)?,
    })
}
