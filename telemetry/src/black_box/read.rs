//! A file of the past, decoded. Nothing in it is trusted: it may be cut, older, or not ours at all.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::layout::{self, Area, FILE_BYTES, UNKNOWN, WORDS, header};
use super::record::{Line, Module, OldStack, Panic, Record, Request, Second, Spike, Tick};
use super::verdict::{Ended, Surroundings};
use crate::sampler::Source;

/// Everything a black box holds, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contents {
    pub ended: Ended,
    pub pid: u64,
    pub node: String,
    /// Version of the program that wrote it.
    pub program: String,
    pub build_id: String,
    /// Nanoseconds since 1970, as all times here.
    pub started: u64,
    pub heartbeat: u64,
    pub limit: u64,
    pub limit_source: Source,
    pub cgroup_path: String,
    pub cgroup_peak: Option<u64>,
    pub resident_max: u64,
    /// The machine and cgroup as the process last saw them.
    pub last_seen: Surroundings,
    /// The same when a later start judged the file.
    pub judged: Option<Surroundings>,
    pub ticks: Vec<Tick>,
    pub seconds: Vec<Second>,
    pub lines: Vec<Line>,
    /// Crossings and what followed, by time.
    pub spikes: Vec<Spike>,
    pub panics: Vec<Panic>,
    pub stacks: Vec<OldStack>,
    pub requests: Vec<Request>,
    pub modules: Vec<Module>,
}

/// Why a file cannot be made sense of.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("there is no black box")]
    Absent,
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    #[error("it is cut short: {length} bytes")]
    Short { length: usize },
    #[error("it is not a black box")]
    Foreign,
    #[error("it was never begun: the process died while it started, or the machine lost power")]
    Empty,
    #[error("it was written by another version of the program")]
    Layout,
}

/// A file and whether the process that writes it is alive.
#[derive(Debug)]
pub struct Found {
    pub contents: Contents,
    pub is_live: bool,
}

/// Reads the file at `path`.
///
/// # Errors
///
/// When it is not there or cannot be understood.
pub fn read(path: &Path) -> Result<Found, ReadError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ReadError::Absent,
        _ => ReadError::Io(error),
    })?;
    // The writer holds an exclusive lock as long as it lives; ours goes with the descriptor.
    let locked = flock(&file, FlockOperation::NonBlockingLockShared);
    let is_live = locked == Err(Errno::WOULDBLOCK);
    let mut bytes = Vec::with_capacity(WORDS * 8);
    file.take(WORDS as u64 * 8).read_to_end(&mut bytes).map_err(ReadError::Io)?;
    Ok(Found { contents: decode(&bytes)?, is_live })
}

pub(super) fn decode(bytes: &[u8]) -> Result<Contents, ReadError> {
    debug_assert!(bytes.len() <= FILE_BYTES);
    let (chunks, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = chunks.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
    let word = |index: usize| words.get(index).copied().unwrap_or_default();
    match word(header::MAGIC) {
        layout::MAGIC => {}
        0 if !bytes.is_empty() => return Err(ReadError::Empty),
        _ => return Err(ReadError::Foreign),
    }
    if word(header::VERSION) != layout::VERSION || word(header::LAYOUT) != layout::hash() {
        return Err(ReadError::Layout);
    }
    if words.len() < WORDS {
        return Err(ReadError::Short { length: bytes.len() });
    }
    let text = |(start, length)| Reader { words: &words[start..start + length] }.text(length);
    let known = |index| Some(word(index)).filter(|value| *value != UNKNOWN);
    let judged = (word(header::JUDGED) != 0).then(|| Surroundings {
        boot_id: text(header::JUDGED_BOOT),
        cgroup: known(header::JUDGED_CGROUP),
        oom_kills: known(header::JUDGED_OOM_KILLS),
        machine_kills: known(header::JUDGED_MACHINE_KILLS),
    });
    let mut spikes: Vec<Spike> = records(&words, layout::CROSSINGS);
    spikes.extend(records::<Spike>(&words, layout::SPIKES));
    spikes.sort_by_key(|spike| spike.time);
    Ok(Contents {
        ended: Ended::from_word(word(header::ENDED)),
        pid: word(header::PID),
        node: text(header::NODE),
        program: text(header::PROGRAM),
        build_id: text(header::BUILD),
        started: word(header::STARTED),
        heartbeat: word(header::HEARTBEAT),
        limit: word(header::LIMIT),
        limit_source: Source::from_word(word(header::LIMIT_SOURCE)),
        cgroup_path: text(header::CGROUP_PATH),
        cgroup_peak: known(header::PEAK),
        resident_max: word(header::RESIDENT_MAX),
        last_seen: Surroundings {
            boot_id: text(header::BOOT),
            cgroup: known(header::CGROUP),
            oom_kills: known(header::OOM_KILLS),
            machine_kills: known(header::MACHINE_KILLS),
        },
        judged,
        ticks: records(&words, layout::TICKS),
        seconds: records(&words, layout::SECONDS),
        lines: records(&words, layout::LINES),
        spikes,
        panics: records(&words, layout::PANICS),
        stacks: records(&words, layout::STACKS),
        requests: records(&words, layout::REQUESTS),
        modules: records(&words, layout::MODULES),
    })
}

/// The whole records of an area, in the order they were written.
fn records<T: Record>(words: &[u64], area: Area) -> Vec<T> {
    let slots = words[area.start..].chunks_exact(area.words).take(area.slots);
    let mut records: Vec<(u64, T)> = slots
        .filter(|slot| slot[0] != 0)
        .map(|slot| (slot[0], T::read(&mut Reader { words: &slot[1..] })))
        .collect();
    records.sort_by_key(|(sequence, _)| *sequence);
    records.into_iter().map(|(_, record)| record).collect()
}

/// Takes words from a slot; what is missing is zero.
pub(super) struct Reader<'a> {
    words: &'a [u64],
}

impl Reader<'_> {
    pub(super) fn word(&mut self) -> u64 {
        let Some((word, rest)) = self.words.split_first() else { return 0 };
        self.words = rest;
        *word
    }

    pub(super) fn words<const N: usize>(&mut self) -> [u64; N] {
        std::array::from_fn(|_| self.word())
    }

    /// A text that was written in `words` words.
    pub(super) fn text(&mut self, words: usize) -> String {
        let length = usize::try_from(self.word()).unwrap_or(usize::MAX).min((words - 1) * 8);
        let bytes: Vec<u8> = (1..words).flat_map(|_| self.word().to_le_bytes()).collect();
        // Ours holds no control characters, but the file may not be ours.
        String::from_utf8_lossy(&bytes[..length]).replace(char::is_control, "?")
    }

    pub(super) fn stack(&mut self, frames_max: usize) -> Vec<u64> {
        let depth = usize::try_from(self.word()).unwrap_or(usize::MAX).min(frames_max);
        (0..depth).map(|_| self.word()).collect()
    }
}
