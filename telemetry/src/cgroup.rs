//! What the kernel says of the memory cgroup this process lives in, version 1 and 2.
//!
//! The cgroup is found through `/proc/self/cgroup` (its path) and `/proc/self/mountinfo` (where that
//! is mounted). A limit above it counts too: a pod's limit kills its containers. So usage and limit
//! are those of the level with the lowest limit, while kills are counted where the kernel counts
//! them, at the level the process is in.
//!
//! Sources: kernel `Documentation/admin-guide/cgroup-v1/memory.rst` and `cgroup-v2.rst`.

mod find;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::kernel_file::{KernelFile, field};

/// Which of the two interfaces the memory controller is mounted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// The memory cgroup of this process, with its files kept open.
#[derive(Debug)]
pub struct Cgroup {
    version: Version,
    own: PathBuf,
    identity: u64,
    bound: Option<Bound>,
    peak: Option<KernelFile>,
    events: Option<KernelFile>,
}

/// The lowest limit on the way from the process up to the root of what can be seen.
#[derive(Debug)]
struct Bound {
    limit: KernelFile,
    usage: KernelFile,
    stat: Option<KernelFile>,
}

/// How often the kernel had to do something about this cgroup's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Times usage was about to pass the limit and memory had to be reclaimed (v2; v1: `failcnt`).
    pub max: u64,
    /// Times that was not enough (v2 only).
    pub oom: u64,
    /// Processes killed for it.
    pub oom_kill: u64,
}

/// v1 writes "no limit" as the largest number of pages; nothing real comes near.
const NO_LIMIT: u64 = 1 << 60;

// === impl Cgroup ===

impl Cgroup {
    /// The cgroup of this process, or `None` where there is no memory controller.
    pub fn find() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let (version, root, path) = find::directory(&own, &mounts)?;
        Self::open(version, &root, &path).ok()
    }

    /// The cgroup at `own`, whose ancestors can be seen up to `root`.
    ///
    /// # Errors
    ///
    /// When the directory is not there.
    pub fn open(version: Version, root: &Path, own: &Path) -> io::Result<Self> {
        let identity = fs::metadata(own)?.ino();
        let kept = |name: &str| KernelFile::open(own.join(name)).ok();
        let (peak, events) = match version {
            Version::V1 => (kept("memory.max_usage_in_bytes"), kept("memory.oom_control")),
            Version::V2 => (kept("memory.peak"), kept("memory.events")),
        };
        let bound = lowest_limit(version, root, own);
        Ok(Self { version, own: own.to_owned(), identity, bound, peak, events })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.own
    }

    /// Tells it from another cgroup at the same path, until the machine starts again.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<u64> {
        self.bound.as_ref()?.limit.number().filter(|limit| *limit < NO_LIMIT)
    }

    /// Bytes charged where the limit is, the page cache included. Costs one `pread`.
    pub fn usage(&self) -> Option<u64> {
        self.bound.as_ref()?.usage.number()
    }

    /// Bytes of the usage that the kernel takes back before it kills: cached pages of files.
    ///
    /// Shared memory is not among them. Costs some 50 µs, for the kernel sums up over the cores.
    pub fn cache(&self) -> Option<u64> {
        self.bound.as_ref()?.stat.as_ref()?.with(|text| {
            let of = |v1: &str, v2: &str| field(text, v1).or_else(|| field(text, v2));
            let inactive = of("total_inactive_file", "inactive_file")?;
            Some(inactive + of("total_active_file", "active_file")?)
        })
    }

    /// Highest usage of the cgroup so far (v2: since kernel 5.19).
    pub fn peak(&self) -> Option<u64> {
        self.peak.as_ref()?.number()
    }

    pub fn events(&self) -> Option<Events> {
        let events = self.events.as_ref()?;
        match self.version {
            Version::V1 => {
                // Since kernel 4.13. `failcnt` stays at 0 when the kernel kills at once.
                let oom_kill = events.field("oom_kill")?;
                Some(Events { max: 0, oom: 0, oom_kill })
            }
            Version::V2 => events.with(|text| {
                let of = |key| field(text, key).unwrap_or_default();
                Some(Events { max: of("max"), oom: of("oom"), oom_kill: field(text, "oom_kill")? })
            }),
        }
    }
}

/// The level with the lowest limit; of equal ones the outermost, which fills first.
fn lowest_limit(version: Version, root: &Path, own: &Path) -> Option<Bound> {
    let (limit_file, usage_file) = match version {
        Version::V1 => ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        Version::V2 => ("memory.max", "memory.current"),
    };
    let levels = own.ancestors().take_while(|level| level.starts_with(root));
    let bounds = levels.filter_map(|level| {
        // The root of v2 has no such files.
        let limit = KernelFile::open(level.join(limit_file)).ok()?;
        let usage = KernelFile::open(level.join(usage_file)).ok()?;
        let stat = KernelFile::open(level.join("memory.stat")).ok();
        Some((limit.number()?, Bound { limit, usage, stat }))
    });
    // The own level when none has a limit: the first, if all are the same and not lower.
    bounds
        .reduce(|lowest, level| {
            let limited = level.0 < NO_LIMIT && level.0 <= lowest.0;
            if limited { level } else { lowest }
        })
        .map(|(_, bound)| bound)
}

#[cfg(test)]
mod tests;
