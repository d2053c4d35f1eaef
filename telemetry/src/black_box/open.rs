//! Opening the box of a new process: the old one is read, judged, and moved aside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::layout::{self, UNKNOWN, header};
use super::map::Map;
use super::read::{Found, ReadError, read};
use super::report::Report;
use super::verdict::{Judgement, Surroundings, Verdict, judge};
use super::{BlackBox, modules};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::process::Process;
use crate::stack;

/// Name of the file within the storage directory.
pub const FILE: &str = "blackbox";

/// Files of earlier processes that are kept, as `blackbox.1` (the last) and so on.
pub const KEPT: usize = 4;

/// The box of this process, and how the last one ended.
#[derive(Debug)]
pub struct Opened {
    pub black_box: BlackBox,
    pub last: Report,
}

/// Why there is no black box. The node can do without; its next start will know less.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the folder {} cannot be made", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("the black box of the last process cannot be moved aside")]
    Rotate(#[source] io::Error),
    #[error("the file {} cannot be made", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("the file {} cannot be mapped", path.display())]
    Map { path: PathBuf, source: io::Error },
}

/// Judges what the last process left in `directory`, and begins the box of this one, which is node
/// `node` running version `program`.
///
/// # Errors
///
/// When the file cannot be had. The verdict on the last exit is lost with it.
pub fn open(directory: &Path, node: &str, program: &str) -> Result<Opened, OpenError> {
    fs::create_dir_all(directory)
        .map_err(|source| OpenError::Folder { path: directory.to_owned(), source })?;
    let cgroup = Cgroup::find();
    let now = Surroundings::now(cgroup.as_ref());
    let last = judge_and_sign(&directory.join(FILE), &now);
    rotate(directory).map_err(OpenError::Rotate)?;
    match create(directory, cgroup.as_ref(), &now, node, program) {
        Ok(black_box) => Ok(Opened { black_box, last }),
        Err(error) => {
            // What is worse than no box is one that says nothing in the place of one that does.
            if !error.is_anothers() {
                rotate_back(directory).ok();
            }
            Err(error)
        }
    }
}

/// What the file at `path` says of its process, asked by nobody who starts.
///
/// A file that a later start judged is judged by what was around then.
///
/// # Errors
///
/// When the file cannot be understood.
pub fn postmortem(path: &Path) -> Result<Report, ReadError> {
    let found = read(path)?;
    let now = || Surroundings::now(Cgroup::find().as_ref());
    let judgement = if found.is_live {
        running()
    } else {
        let around = found.contents.judged.clone().unwrap_or_else(now);
        judge(&found.contents, &around)
    };
    Ok(Report::new(&found.contents, judgement))
}

impl OpenError {
    /// Another process that starts at the same time was faster, and the file is its.
    fn is_anothers(&self) -> bool {
        let exists = io::ErrorKind::AlreadyExists;
        matches!(self, Self::Create { source, .. } if source.kind() == exists)
    }
}

fn running() -> Judgement {
    let why = "the process that writes this black box lives".to_owned();
    Judgement { verdict: Verdict::Running, why }
}

fn judge_and_sign(path: &Path, now: &Surroundings) -> Report {
    match read(path) {
        Ok(found) if found.is_live => Report::new(&found.contents, running()),
        Ok(Found { contents, .. }) => {
            // A start that failed gave the file back with its verdict.
            let judgement = judge(&contents, contents.judged.as_ref().unwrap_or(now));
            if contents.judged.is_none() {
                // Unsigned it is judged by a later machine; that is all that is lost.
                sign(path, now).ok();
            }
            Report::new(&contents, judgement)
        }
        Err(ReadError::Absent) => {
            let why = "there is no black box of an earlier process".to_owned();
            Report::without(Judgement { verdict: Verdict::FirstStart, why })
        }
        Err(error) => {
            let why = crate::error::chain(&error);
            Report::without(Judgement { verdict: Verdict::Unreadable, why })
        }
    }
}

/// Writes what is around into the file, so that it is judged the same way ever after.
fn sign(path: &Path, now: &Surroundings) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let word = |index: usize, value: u64| file.write_all_at(&value.to_ne_bytes(), index as u64 * 8);
    let known = |value: Option<u64>| value.unwrap_or(UNKNOWN);
    let Surroundings { boot_id, cgroup, oom_kills, machine_kills } = now;
    word(header::JUDGED_OOM_KILLS, known(*oom_kills))?;
    word(header::JUDGED_MACHINE_KILLS, known(*machine_kills))?;
    word(header::JUDGED_CGROUP, known(*cgroup))?;
    let (start, words) = header::JUDGED_BOOT;
    let mut text = vec![0; words * 8];
    let length = boot_id.len().min((words - 1) * 8);
    text[..8].copy_from_slice(&(length as u64).to_ne_bytes());
    text[8..8 + length].copy_from_slice(&boot_id.as_bytes()[..length]);
    file.write_all_at(&text, start as u64 * 8)?;
    word(header::JUDGED, 1)
}

/// `blackbox` becomes `blackbox.1`, and so on; the oldest goes.
fn rotate(directory: &Path) -> io::Result<()> {
    (0..KEPT).rev().try_for_each(|number| rename(directory, number, number + 1))
}

/// The file that begins goes, and those before it are called as they were.
pub(super) fn rotate_back(directory: &Path) -> io::Result<()> {
    fs::remove_file(name(directory, 0)).ok(); // it may not have come so far
    (0..KEPT).try_for_each(|number| rename(directory, number + 1, number))
}

/// Undoes one opening by another process, if there was one.
pub(super) fn reclaim(directory: &Path, own: &Map) -> io::Result<()> {
    let is_own = |number| {
        let found = fs::metadata(name(directory, number));
        found.is_ok_and(|found| own.is_of(found.dev(), found.ino()))
    };
    if !is_own(0) && is_own(1) { rotate_back(directory) } else { Ok(()) }
}

fn rename(directory: &Path, from: usize, to: usize) -> io::Result<()> {
    match fs::rename(name(directory, from), name(directory, to)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Number 0 is the file of the process itself.
fn name(directory: &Path, number: usize) -> PathBuf {
    directory.join(if number == 0 { FILE.to_owned() } else { format!("{FILE}.{number}") })
}

fn create(
    directory: &Path,
    cgroup: Option<&Cgroup>,
    now: &Surroundings,
    node: &str,
    program: &str,
) -> Result<BlackBox, OpenError> {
    let path = &name(directory, 0);
    let create = |source| OpenError::Create { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(create)?;
    // Waits for nobody but a reader that found the file in this very moment.
    flock(&file, FlockOperation::LockExclusive).map_err(|error| create(error.into()))?;
    let map =
        Map::create(file).map_err(|source| OpenError::Map { path: path.to_owned(), source })?;
    // Refused to a process that gained capabilities when it was started; its stacks are empty then.
    let memory = File::open("/proc/self/mem").ok();
    begin(&map, cgroup, now, node, program);
    Ok(BlackBox::new(map, memory, directory.to_owned()))
}

/// Fills the header; the magic last, so that a file is either begun or not.
fn begin(map: &Map, cgroup: Option<&Cgroup>, now: &Surroundings, node: &str, program: &str) {
    let Surroundings { boot_id, cgroup: identity, oom_kills, machine_kills } = now;
    let started = clock::now();
    map.store(header::VERSION, layout::VERSION);
    map.store(header::LAYOUT, layout::hash());
    map.store(header::PID, u64::from(std::process::id()));
    map.store(header::STARTED, started);
    map.store(header::HEARTBEAT, started);
    map.store(header::CGROUP, identity.unwrap_or(UNKNOWN));
    for word in [header::OOM_KILLS_AT_START, header::OOM_KILLS] {
        map.store(word, oom_kills.unwrap_or(UNKNOWN));
    }
    for word in [header::MACHINE_KILLS_AT_START, header::MACHINE_KILLS] {
        map.store(word, machine_kills.unwrap_or(UNKNOWN));
    }
    map.store(header::PEAK, UNKNOWN);
    map.store_text(header::BOOT, boot_id);
    map.store_text(header::BUILD, stack::build_id());
    map.store_text(header::PROGRAM, program);
    map.store_text(header::NODE, node);
    let path = cgroup.map(|cgroup| cgroup.path().to_string_lossy()).unwrap_or_default();
    map.store_text(header::CGROUP_PATH, &path);
    for (slot, module) in (0..).zip(modules::mapped()) {
        map.record(layout::MODULES, slot, |words| module.write(words));
    }
    map.seal();
    map.store(header::MAGIC, layout::MAGIC);
}

// === impl Surroundings ===

impl Surroundings {
    /// The machine and cgroup as they are.
    pub fn now(cgroup: Option<&Cgroup>) -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            boot_id: boot_id.trim().to_owned(),
            cgroup: cgroup.map(Cgroup::identity),
            oom_kills: cgroup.and_then(Cgroup::events).map(|events| events.oom_kill),
            machine_kills: Process::open().oom_kills_of_machine(),
        }
    }
}
