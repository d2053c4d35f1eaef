//! What is used of which limit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Config;
use crate::cgroup::Cgroup;
use crate::process::{self, Process};

/// What memory is held against, as configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Limit {
    /// The cgroup's limit, else the machine's memory.
    #[default]
    Auto,
    /// So many bytes of resident memory. Where the cgroup allows less, that holds as well.
    Bytes(u64),
}

/// Where a limit comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Source {
    /// There is none.
    #[default]
    None,
    Config,
    Cgroup,
    /// The memory of the machine.
    Physical,
}

/// Memory at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Of this process.
    pub resident: u64,
    /// What counts against `limit`: resident memory, or the cgroup's usage without the cached pages
    /// of files, whichever is nearer to its limit.
    pub used: u64,
    pub limit: u64,
}

/// Reads memory; several threads may at once.
#[derive(Debug)]
pub(crate) struct Meter {
    process: Process,
    cgroup: Option<Cgroup>,
    /// For resident memory; 0 is none.
    own: u64,
    own_source: Source,
    /// For the cgroup's usage, as last read, for it can be changed while we run; 0 is none.
    shared: AtomicU64,
    /// Bytes of the cgroup's usage that are cached pages of files, as last read.
    cache: AtomicU64,
}

// === impl Meter ===

impl Meter {
    pub(super) fn open(config: &Config) -> Self {
        let Config { limit } = *config;
        Self::new(limit, Process::open(), Cgroup::find(), process::physical_memory())
    }

    fn new(limit: Limit, process: Process, cgroup: Option<Cgroup>, physical: Option<u64>) -> Self {
        let shared = cgroup.as_ref().and_then(Cgroup::limit);
        let (own, own_source) = match (limit, shared, physical) {
            (Limit::Bytes(bytes), _, _) => (bytes, Source::Config),
            // A limit that is larger than the machine limits nothing.
            (Limit::Auto, Some(shared), Some(physical)) if shared <= physical => (0, Source::None),
            (Limit::Auto, _, Some(physical)) => (physical, Source::Physical),
            (Limit::Auto, _, None) => (0, Source::None),
        };
        let (shared, cache) = (AtomicU64::new(shared.unwrap_or(0)), AtomicU64::new(0));
        let meter = Self { process, cgroup, own, own_source, shared, cache };
        meter.refresh();
        meter
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Memory now. Costs one or two `pread`s.
    pub(crate) fn read(&self) -> Option<Sample> {
        let resident = self.process.resident()?;
        let (own, shared) = (self.own, self.shared.load(Relaxed));
        let usage = if shared > 0 { self.cgroup.as_ref().and_then(Cgroup::usage) } else { None };
        let Some(usage) = usage else {
            return Some(Sample { resident, used: resident, limit: own });
        };
        let used = usage.saturating_sub(self.cache.load(Relaxed));
        // Compared as fractions: used / shared against resident / own.
        let nearer =
            u128::from(used) * u128::from(own) >= u128::from(resident) * u128::from(shared);
        if own == 0 || nearer {
            Some(Sample { resident, used, limit: shared })
        } else {
            Some(Sample { resident, used: resident, limit: own })
        }
    }

    /// The lower limit, and where it comes from.
    pub(super) fn limit(&self) -> u64 {
        let shared = self.shared.load(Relaxed);
        [self.own, shared].into_iter().filter(|limit| *limit > 0).min().unwrap_or(0)
    }

    pub(super) fn source(&self) -> Source {
        match self.limit() {
            0 => Source::None,
            limit if limit == self.own => self.own_source,
            _ => Source::Cgroup,
        }
    }

    /// Reads again what changes slowly or costs much; whether there was anything to read.
    pub(super) fn refresh(&self) -> bool {
        let Some(cgroup) = &self.cgroup else { return false };
        self.shared.store(cgroup.limit().unwrap_or(0), Relaxed);
        let Some(cache) = cgroup.cache() else { return false };
        self.cache.store(cache, Relaxed);
        true
    }

    pub(super) fn cache(&self) -> u64 {
        self.cache.load(Relaxed)
    }
}

// === impl Source ===

impl Source {
    pub(crate) fn word(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Config => 1,
            Self::Cgroup => 2,
            Self::Physical => 3,
        }
    }

    pub(crate) fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Config,
            2 => Self::Cgroup,
            3 => Self::Physical,
            _ => Self::None,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Config => "configuration",
            Self::Cgroup => "cgroup",
            Self::Physical => "machine",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::cgroup::Version;

    const MIB: u64 = 1 << 20;
    const MACHINE: u64 = 1 << 34;

    fn cgroup(directory: &Path, limit: &str, usage: u64, cache: u64) -> Cgroup {
        let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
        write("memory.max", limit.to_owned());
        write("memory.current", usage.to_string());
        write("memory.stat", format!("inactive_file {cache}\nactive_file 0\n"));
        Cgroup::open(Version::V2, directory, directory).unwrap()
    }

    fn meter(limit: Limit, cgroup: Option<Cgroup>) -> Meter {
        Meter::new(limit, Process::open(), cgroup, Some(MACHINE))
    }

    #[test]
    fn automatic_is_the_cgroups_limit_else_the_machines_memory() {
        let directory = TempDir::new().unwrap();
        let limited = meter(Limit::Auto, Some(cgroup(directory.path(), "268435456", 1, 0)));
        assert_eq!((limited.limit(), limited.source()), (256 * MIB, Source::Cgroup));
        let unlimited = meter(Limit::Auto, Some(cgroup(directory.path(), "max", 1, 0)));
        assert_eq!((unlimited.limit(), unlimited.source()), (MACHINE, Source::Physical));
        let larger = cgroup(directory.path(), &(2 * MACHINE).to_string(), 1, 0);
        assert_eq!(meter(Limit::Auto, Some(larger)).source(), Source::Physical);
        assert_eq!(meter(Limit::Auto, None).limit(), MACHINE);
    }

    #[test]
    fn bytes_of_the_configuration_hold_unless_the_cgroup_allows_less() {
        let directory = TempDir::new().unwrap();
        let own = || cgroup(directory.path(), "268435456", 1, 0);
        let less = meter(Limit::Bytes(64 * MIB), Some(own()));
        assert_eq!((less.limit(), less.source()), (64 * MIB, Source::Config));
        let more = meter(Limit::Bytes(512 * MIB), Some(own()));
        assert_eq!((more.limit(), more.source()), (256 * MIB, Source::Cgroup));
    }

    #[test]
    fn cached_files_do_not_count_and_the_nearer_limit_is_told() {
        let directory = TempDir::new().unwrap();
        let own = cgroup(directory.path(), "268435456", 200 * MIB, 150 * MIB);
        let auto = meter(Limit::Auto, Some(own));
        let sample = auto.read().unwrap();
        assert_eq!((sample.used, sample.limit), (50 * MIB, 256 * MIB));
        // The kernel's own numbers move; the cache is as last read until it is read again.
        cgroup(directory.path(), "134217728", 220 * MIB, 160 * MIB);
        assert_eq!(auto.read().unwrap().used, 70 * MIB);
        auto.refresh();
        let sample = auto.read().unwrap();
        assert_eq!((sample.used, sample.limit), (60 * MIB, 128 * MIB));
        // This process is certainly over a limit of one byte.
        let own = cgroup(directory.path(), "268435456", MIB, 0);
        let sample = meter(Limit::Bytes(1), Some(own)).read().unwrap();
        assert_eq!((sample.used, sample.limit), (sample.resident, 1));
    }
}
