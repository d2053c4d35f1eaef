//! Metrics over generations of the process: a counter does not go back because of an upgrade.
//!
//! ```text
//! first process    counts ──▶ told once a second, and at its end
//! second process                  carries ──▶ shows own + carried ──▶ told …
//! ```
//!
//! A process that is asked writes all it would show ([`Registry::tell`]), its own and what it carries
//! itself, so that a chain of any length is one sum. The next one [carries](Registry::carry) that:
//! every scrape and export is made from sums of both. Once the first has ended
//! ([`Registry::carry_ended`]) its counters and histograms stay as they were last told, and its
//! gauges go with what they counted.
//!
//! What adds up is declared with the metric ([`Metric::adds_up`](super::Metric::adds_up)): counters
//! and histograms unless something outside keeps them, gauges only when they say so. Exemplars are
//! not carried. What the other catalogue calls otherwise, or buckets otherwise, is left out.
//!
//! Carried label sets have the same caps as own ones and are apart from them, so that a scrape shows
//! at most twice as many, which takes two processes that serve altogether different apps. What is
//! beyond counts under `__other__`. Series that idle are hidden here as there, and return.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::family::{Family, Listed, Told, What};
use super::source::Looks;
use super::{Labels, Registry, owned};

/// Bytes in which a process tells its metrics, at most; what does not fit is not carried. A series
/// takes about a hundred, so it is enough for some 80,000.
pub const BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why what another process tells cannot be carried.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    #[error("the file of metrics cannot be read")]
    Read(#[source] io::Error),
    #[error("{bytes} bytes of metrics are more than are taken")]
    Size { bytes: usize },
    #[error("the metrics are not written as they should be")]
    Format(#[source] serde_json::Error),
    #[error("the metrics are written in version {theirs}, this process knows {ours}")]
    Version { theirs: u32, ours: u32 },
    #[error("generation {generation} has ended before")]
    Ended { generation: u64 },
}

/// Whose metrics are carried.
#[derive(Default)]
pub(super) struct Generations {
    running: Option<u64>,
    /// The newest that has ended, which must not be counted again.
    ended: Option<u64>,
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct All<'a> {
    version: u32,
    #[serde(borrow)]
    families: Vec<OneFamily<'a>>,
}

#[derive(Serialize, Deserialize)]
struct OneFamily<'a> {
    name: Cow<'a, str>,
    kind: Cow<'a, str>,
    labels: Vec<Cow<'a, str>>,
    /// The bounds of a histogram's buckets as the bits of their numbers, to be compared.
    bounds: Vec<u64>,
    #[serde(borrow)]
    sets: Vec<OneSet<'a>>,
}

/// One label set. The names are short, because there are thousands.
#[derive(Serialize, Deserialize)]
struct OneSet<'a> {
    /// Values of the labels.
    #[serde(rename = "l", borrow)]
    values: Vec<Cow<'a, str>>,
    #[serde(rename = "n")]
    cells: Vec<i64>,
    /// When these were zero, in milliseconds since the Unix epoch.
    #[serde(rename = "b")]
    born: u64,
    #[serde(rename = "h", default, skip_serializing_if = "std::ops::Not::not")]
    hidden: bool,
}

// === impl Registry ===

impl Registry {
    /// All that adds up, for the process that takes over: its own and what it carries. At most
    /// [`BYTES_MAX`]. Takes milliseconds with thousands of series, and the memory of it.
    pub fn tell(&self) -> Vec<u8> {
        let mut left = BYTES_MAX - 100; // of what is around it
        let families = self.families();
        let listed = families.iter().filter(|family| family.metric.adds_up);
        let listed: Vec<_> = listed.map(|family| (family, family.list_all())).collect();
        let (mut families, mut looks) = (Vec::new(), Looks::default());
        for (family, listed) in &listed {
            let mut told = OneFamily::of(family);
            let Some(room) = left.checked_sub(size(&told) + 1) else { continue }; // a comma
            left = room;
            for set in listed.iter().filter_map(|listed| OneSet::of(family, listed, &mut looks)) {
                let bytes = size(&set) + 1;
                if bytes <= left {
                    left -= bytes;
                    told.sets.push(set);
                }
            }
            families.push(told);
        }
        serde_json::to_vec(&All { version: VERSION, families }).unwrap_or_default()
    }

    /// The same in a memory file, to be handed over as a descriptor: it does not fit a message.
    ///
    /// # Errors
    /// When there is no memory or descriptor for it.
    pub fn tell_file(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("ferrule-metrics", MemfdFlags::CLOEXEC)?);
        file.write_all(&self.tell())?;
        Ok(file.into())
    }

    /// [Carries](Self::carry) what is in a memory file.
    ///
    /// # Errors
    /// When it cannot be read, and as [`Self::carry`].
    pub fn carry_file(&self, generation: u64, file: OwnedFd) -> Result<(), CarryError> {
        let (mut file, mut told) = (File::from(file), Vec::new());
        file.rewind().map_err(CarryError::Read)?;
        let mut bounded = file.take(BYTES_MAX as u64 + 1);
        bounded.read_to_end(&mut told).map_err(CarryError::Read)?;
        self.carry(generation, &told)
    }

    /// Shows what another process told, of `generation`, together with our own. Each time it tells
    /// anew, that replaces what it told before; a process of another generation comes after it.
    ///
    /// Only of a process before this one: what one tells that carries ours has ours in it.
    ///
    /// # Errors
    /// When it cannot be read, or is of a process that has ended. What was carried before stays.
    pub fn carry(&self, generation: u64, told: &[u8]) -> Result<(), CarryError> {
        if told.len() > BYTES_MAX {
            return Err(CarryError::Size { bytes: told.len() });
        }
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version } = serde_json::from_slice(told).map_err(CarryError::Format)?;
        if version != VERSION {
            return Err(CarryError::Version { theirs: version, ours: VERSION });
        }
        let All { families, .. } = serde_json::from_slice(told).map_err(CarryError::Format)?;
        let mut generations = self.inner.generations.lock();
        if generations.ended.is_some_and(|ended| generation <= ended) {
            return Err(CarryError::Ended { generation });
        }
        if generations.running.is_some_and(|running| running != generation) {
            self.fold(&mut generations);
        }
        generations.running = Some(generation);
        let now = Instant::now();
        for told in families {
            if let Some(family) = self.known(&told) {
                family.carry(told.sets_of(&family), now);
            }
        }
        Ok(())
    }

    /// The process whose metrics are carried has ended.
    pub fn carry_ended(&self) {
        self.fold(&mut self.inner.generations.lock());
    }

    /// Whether there may be numbers of other processes.
    pub fn carries(&self) -> bool {
        let generations = self.inner.generations.lock();
        generations.running.is_some() || generations.ended.is_some()
    }

    fn fold(&self, generations: &mut Generations) {
        let Some(running) = generations.running.take() else { return };
        generations.ended = generations.ended.max(Some(running));
        self.families().iter().for_each(|family| family.carry_ended());
    }

    /// The family that is told of, if it is one here, counts the same and adds up.
    fn known(&self, told: &OneFamily<'_>) -> Option<Arc<Family>> {
        let declared = self.inner.declared.as_ref().map(|declared| declared.get(&*told.name));
        let family = match declared {
            Some(metric) => {
                let metric = **metric?;
                let mut families = self.inner.families.lock();
                let (max, totals) = (self.inner.config.labels_max, self.inner.totals.clone());
                families
                    .entry(metric.name)
                    .or_insert_with(|| Family::new(metric, max, totals))
                    .clone()
            }
            None => self.inner.families.lock().get(&*told.name)?.clone(),
        };
        let ours = OneFamily::of(&family);
        let same =
            ours.kind == told.kind && ours.labels == told.labels && ours.bounds == told.bounds;
        (same && family.metric.adds_up).then_some(family)
    }
}

// === impl OneFamily ===

impl OneFamily<'_> {
    /// Without its sets.
    fn of(family: &Family) -> OneFamily<'static> {
        let metric = &family.metric;
        OneFamily {
            name: metric.name.into(),
            kind: metric.kind.as_str().into(),
            labels: metric.labels.iter().map(|label| (*label).into()).collect(),
            bounds: metric.bounds.iter().map(|bound| bound.to_bits()).collect(),
            sets: Vec::new(),
        }
    }

    fn sets_of(self, family: &Family) -> Vec<Told> {
        let (names, width) = (family.metric.labels, family.metric.width());
        let sets = self.sets.into_iter();
        let sets = sets.filter(|set| set.values.len() == names.len() && set.cells.len() == width);
        let told = sets.map(|OneSet { values, cells, born, hidden }| {
            let labels: Vec<_> =
                names.iter().zip(&values).map(|(name, value)| (*name, &**value)).collect();
            Told {
                labels: owned(&labels),
                born: Duration::from_millis(born),
                hidden,
                cells: cells.into_boxed_slice(),
            }
        });
        told.collect()
    }
}

// === impl OneSet ===

impl<'a> OneSet<'a> {
    fn of(family: &Family, listed: &'a Listed, looks: &mut Looks) -> Option<Self> {
        // A metric of a test may have other labels than it declares.
        let names = |labels: &Labels| labels.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        if names(&listed.labels) != family.metric.labels {
            return None;
        }
        let cells = match &listed.what {
            Some(What::Read(read)) => vec![read(looks).cell().wrapping_add(listed.carried(0))],
            _ => (0..family.metric.width()).map(|cell| listed.sum(cell)).collect(),
        };
        Some(Self {
            values: listed.labels.iter().map(|(_, value)| (&**value).into()).collect(),
            cells,
            born: u64::try_from(listed.born.as_millis()).unwrap_or(u64::MAX),
            hidden: listed.hidden,
        })
    }
}

/// Bytes of `value` as it is written.
fn size(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |written| written.len())
}

#[cfg(test)]
mod tests;
