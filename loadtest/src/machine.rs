//! What the kernel says of a process and its children: CPU time and proportional memory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::process::find;

/// Ticks per second of `/proc/*/stat`; Linux shows 100 to user space on every architecture we run on.
const TICKS_PER_SECOND: u64 = 100;

/// How much of the machine everyone else uses meanwhile.
pub(crate) struct CpuOfOthers {
    start: Instant,
    machine: u64,
    ours: u64,
}

/// CPU time, user and system, of `pid` and its living descendants.
pub(crate) fn cpu_of_tree(pid: u32) -> Result<(Duration, Duration)> {
    let tree = tree(pid)?;
    let time = |ticks: u64| Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
    let user = tree.iter().map(|process| process.own.0).sum();
    let system = tree.iter().map(|process| process.own.1).sum();
    Ok((time(user), time(system)))
}

/// `pid` and its living descendants.
pub(crate) fn tree_of(pid: u32) -> Result<Vec<u32>> {
    Ok(tree(pid)?.iter().map(|process| process.pid).collect())
}

/// How many connections of `wanted` this process and those it starts may hold, with some descriptors
/// to spare; the soft limit is raised to the hard one for it.
pub(crate) fn descriptors_for(wanted: usize) -> Result<usize> {
    const SPARE: usize = 200;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let most = limit.maximum.map_or(usize::MAX, |limit| limit as usize);
    Ok(wanted.min(most.saturating_sub(SPARE)))
}

/// CPU time (user and system) of one process.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration> {
    let ticks = {
        let (user, system) = read(pid).with_context(|| format!("no process {pid}"))?.own;
        user + system
    };
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
    /// User and system.
    own: (u64, u64),
    reaped_ticks: u64,
}

fn our_ticks() -> Result<u64> {
    let tree = tree(std::process::id())?;
    Ok(tree.iter().map(|process| process.own.0 + process.own.1 + process.reaped_ticks).sum())
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
        own: (number(11)?, number(12)?),
        reaped_ticks: number(13)? + number(14)?,
    })
}

/// Where a run took place.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub model: String,
    pub cpus: usize,
    pub memory_gib: u64,
    pub kernel: String,
    /// CPUs that everybody else used in half a second before the run.
    pub others: f64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
                .unwrap_or_default()
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let others = CpuOfOthers::start().and_then(|others| {
            std::thread::sleep(Duration::from_millis(500));
            others.share()
        });
        Self {
            model: value(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            others: others.unwrap_or(f64::NAN),
        }
    }
}

/// The time of day, by `date`: a report names it, nothing is measured with it.
pub(crate) fn now() -> String {
    first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default()
}

/// What took part.
pub(crate) fn versions(ferrule: &Path) -> Vec<(String, String)> {
    let program =
        |name: &str| find(name).map_or_else(String::new, |path| path.display().to_string());
    let mut versions = Vec::new();
    let mut ask = |name: &str, program: &str, arguments: &[&str]| {
        if let Some(line) = first_line(program, arguments) {
            versions.push((name.to_owned(), line));
        }
    };
    ask("ferrule", &ferrule.display().to_string(), &["--version"]);
    ask("source", "git", &["describe", "--always", "--dirty", "--exclude=*"]);
    ask("compiler", "rustc", &["--version"]);
    for (name, flag) in
        [("oha", "--version"), ("h2load", "--version"), ("nginx", "-v"), ("haproxy", "-v")]
    {
        ask(name, &program(name), &[flag]);
    }
    versions
}

/// The first line of what a program says.
fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
    (!line.is_empty() && output.status.success()).then_some(line)
}

/// Resident memory of one process in KiB.
pub(crate) fn resident_of(pid: u32) -> Result<u64> {
    status_of(pid, "VmRSS:")
}

/// What of it is the process's own, in KiB: without pages of files, which are its program.
pub(crate) fn own_of(pid: u32) -> Result<u64> {
    status_of(pid, "RssAnon:")
}

fn status_of(pid: u32, field: &'static str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context(field)?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
