//! Looking at a folder of app files: what is there, and what has changed since the last look.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::app_file;
use crate::document::Problem;
use crate::snapshot::{App, AppName};
use crate::source::Notice;

use super::files::{Files, Read};

/// What a folder may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) file_bytes_max: u64,
    pub(crate) files_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes_max: 1 << 20, files_max: 100_000 }
    }
}

/// Looks at a folder again and again.
pub(super) struct Scanner {
    folder: PathBuf,
    limits: Limits,
    files: Files,
    seen: HashMap<Arc<str>, Seen>,
    hasher: RandomState,
    /// Device and inode of the folder as it was last seen.
    identity: Option<(u64, u64)>,
    trust: Trust,
}

/// How a file looked when it was last read.
struct Seen {
    stamp: Stamp,
    /// Hash of its content; `None` when it could not be read.
    hash: Option<u64>,
    /// The file was old enough when it was read that a later change must show in the stamp.
    settled: bool,
}

#[derive(PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
}

/// Whether a file that is not in the folder is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    Yes,
    /// The folder is another one than before and may still be filled: only if it stays away.
    NextTime,
}

/// A file changed as late as this before it was read may change again with the same stamp: the
/// kernel's clock for stamps moves in ticks, and some filesystems keep whole seconds.
const STAMP_GRAIN: Duration = Duration::from_secs(2);

/// Problems kept of one file; the rest is what `ferrule check` is for.
const PROBLEMS_MAX: usize = 10;

impl Scanner {
    /// A scanner of `folder` that starts with what files are known to have said before.
    pub(super) fn new(
        folder: &Path,
        limits: Limits,
        known: impl IntoIterator<Item = (Arc<str>, AppName)>,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            limits,
            files: Files::new(folder, known),
            seen: HashMap::new(),
            hasher: RandomState::new(),
            identity: None,
            trust: Trust::Yes,
        }
    }

    /// Looks at every file; `say` may end that. Whether the folder could be read.
    pub(super) fn everything(
        &mut self,
        say: &mut impl FnMut(Notice) -> ControlFlow<()>,
    ) -> ControlFlow<(), bool> {
        let (identity, names) = match self.look_at_folder() {
            Ok(looked) => looked,
            Err(problem) => {
                self.trust = Trust::NextTime;
                say(Notice::Unavailable(problem))?;
                return ControlFlow::Continue(false);
            }
        };
        if self.identity.replace(identity).is_some_and(|former| former != identity) {
            self.trust = Trust::NextTime;
        }
        for name in &names {
            self.file(name, say)?;
        }
        if std::mem::replace(&mut self.trust, Trust::Yes) == Trust::Yes {
            let absent = self.files.names().filter(|name| !names.contains(&***name));
            let absent: Vec<Arc<str>> = absent.cloned().collect();
            for name in absent {
                self.gone(&name, say)?;
            }
            let mut notices = Vec::new();
            self.files.orphans(&mut notices);
            notices.into_iter().try_for_each(&mut *say)?;
        }
        say(Notice::Synced)?;
        ControlFlow::Continue(true)
    }

    /// Looks at the files named. `Err` when only a look at everything can tell what happened.
    pub(super) fn some(
        &mut self,
        names: &BTreeSet<String>,
        say: &mut impl FnMut(Notice) -> ControlFlow<()>,
    ) -> ControlFlow<(), Result<(), ()>> {
        let same = self.identity.is_some() && identity(&self.folder) == self.identity;
        let new = names.iter().filter(|name| !self.files.contains(name)).count();
        if !same || self.trust != Trust::Yes || self.files.len() + new > self.limits.files_max {
            return ControlFlow::Continue(Err(()));
        }
        // Those that are there first: a renamed file then takes over before its old name is gone.
        let (present, absent): (Vec<_>, Vec<_>) =
            names.iter().partition(|name| self.folder.join(name).exists());
        for name in present {
            self.file(name, say)?;
        }
        // All files being gone because the folder is must not look like each being deleted.
        if !self.folder.exists() {
            return ControlFlow::Continue(Err(()));
        }
        for name in absent {
            self.gone(name, say)?;
        }
        say(Notice::Synced)?;
        ControlFlow::Continue(Ok(()))
    }

    fn look_at_folder(&self) -> Result<((u64, u64), BTreeSet<String>), Problem> {
        let unreadable = |error: io::Error| {
            Problem::with_file(&self.folder, format!("the folder of apps cannot be read: {error}"))
        };
        let identity = std::fs::metadata(&self.folder).map(|folder| (folder.dev(), folder.ino()));
        let identity = identity.map_err(unreadable)?;
        let names = list(&self.folder, self.limits).map_err(unreadable)?;
        if names.len() > self.limits.files_max {
            let message = format!("has more than {} app files", self.limits.files_max);
            return Err(Problem::with_file(&self.folder, message));
        }
        Ok((identity, names))
    }

    /// Looks at one file and reads it if it has changed.
    fn file(
        &mut self,
        name: &str,
        say: &mut impl FnMut(Notice) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let path = self.folder.join(name);
        let stamp = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Stamp::of(&metadata),
            Ok(_) => return ControlFlow::Continue(()), // a folder or a device is no app file
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Gone since the folder was listed; the next look says whether it stays away.
                return ControlFlow::Continue(());
            }
            Err(_) => Stamp::unknown(),
        };
        let seen = self.seen.get(name);
        if seen.is_some_and(|seen| seen.settled && seen.stamp == stamp) {
            return ControlFlow::Continue(());
        }
        let text = read(&path, self.limits);
        let hash = text.as_ref().ok().map(|text| self.hasher.hash_one(text));
        let same = seen.is_some_and(|seen| seen.hash == hash);
        let settled = stamp.is_older_than(STAMP_GRAIN);
        self.seen.insert(name.into(), Seen { stamp, hash, settled });
        if same {
            return ControlFlow::Continue(());
        }
        let mut notices = Vec::new();
        self.files.changed(name, parse(&path, text), &mut notices);
        notices.into_iter().try_for_each(say)
    }

    fn gone(
        &mut self,
        name: &str,
        say: &mut impl FnMut(Notice) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.seen.remove(name);
        let mut notices = Vec::new();
        self.files.gone(name, &mut notices);
        notices.into_iter().try_for_each(say)
    }
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    fn unknown() -> Self {
        Self { bytes: 0, modified: (i64::MAX, 0), changed: (i64::MAX, 0), inode: 0 }
    }

    /// By the kernel's own time of change, which no program can set.
    fn is_older_than(&self, age: Duration) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = u64::try_from(self.changed.0).unwrap_or_default();
        Duration::from_secs(changed).checked_add(age + Duration::from_secs(1)) < Some(now)
    }
}

// === reading ===

/// Device and inode of a folder: another folder in its place has others.
pub(super) fn identity(folder: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(folder).ok().map(|folder| (folder.dev(), folder.ino()))
}

/// Names of the app files in `folder`: `*.toml`, not hidden. At most one more than is allowed.
///
/// Names that are not UTF-8 are left out, as are the backups and swap files of editors, none of
/// which end in `.toml` without beginning with a dot.
pub(crate) fn list(folder: &Path, limits: Limits) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string()
            && is_app_file(&name)
        {
            names.insert(name);
            if names.len() > limits.files_max {
                break;
            }
        }
    }
    Ok(names)
}

pub(super) fn is_app_file(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with('.')
}

/// The text of an app file.
pub(crate) fn read(path: &Path, limits: Limits) -> Result<String, Problem> {
    let cannot = |error: io::Error| Problem::with_file(path, format!("cannot be read: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(limits.file_bytes_max + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > limits.file_bytes_max {
        let message = format!("is larger than {} bytes", limits.file_bytes_max);
        return Err(Problem::with_file(path, message));
    }
    String::from_utf8(bytes).map_err(|_| Problem::with_file(path, "is not UTF-8"))
}

fn parse(path: &Path, text: Result<String, Problem>) -> Read {
    let text = text.map_err(|problem| vec![problem])?;
    let mut problems = Vec::new();
    let app: Option<App> = app_file::parse(path, &text, &mut problems);
    app.map(Box::new).ok_or_else(|| {
        problems.retain(Problem::is_error);
        problems.truncate(PROBLEMS_MAX);
        problems
    })
}
