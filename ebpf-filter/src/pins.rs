//! What outlives the process: programs, maps and links, by name in a BPF file system.
//!
//! The directory is one node's. Its name carries the layout version, so that a program never finds
//! maps of another shape there. Links are `link-…`, programs `program-…`, maps have their own names.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use rustix::mount::{MountFlags, mount};

use crate::error::FilterError;
use crate::sys::{self, LinkInfo};

/// Something pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Its name in the directory.
    pub name: String,
    /// What it is.
    pub kind: PinnedKind,
    /// In words: type and size of a map, identity of a program, place of a link.
    pub detail: String,
}

/// What can be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PinnedKind {
    /// A program's attachment.
    Link,
    /// A program.
    Program,
    /// A map.
    Map,
}

const LINK: &str = "link-";
const PROGRAM: &str = "program-";

/// What is pinned in a directory; nothing where there is none.
///
/// # Errors
/// When the directory or something in it cannot be read (needs the filter's capabilities).
pub fn show(directory: &Path) -> Result<Vec<Pinned>, FilterError> {
    let mut pinned = Vec::new();
    for name in names(directory)? {
        let path = directory.join(&name);
        let kind = PinnedKind::of(&name);
        let detail = match kind {
            PinnedKind::Link => link_detail(&path),
            PinnedKind::Program => program_detail(&path),
            PinnedKind::Map => map_detail(&path),
        };
        let detail = detail.map_err(|source| failed(&path, "cannot be looked at", source))?;
        pinned.push(Pinned { name, kind, detail });
    }
    pinned.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    Ok(pinned)
}

/// Removes everything pinned in a directory, and the directory: programs are detached, maps are freed
/// when no process has them open. Returns what was there.
///
/// # Errors
/// When something cannot be removed.
pub fn detach(directory: &Path) -> Result<Vec<String>, FilterError> {
    let mut removed = names(directory)?;
    // Links first: a program without its maps judges nothing wrongly, but a link without a name could
    // not be found again.
    removed.sort_by_key(|name| PinnedKind::of(name));
    for name in &removed {
        remove(&directory.join(name))?;
    }
    match fs::remove_dir(directory) {
        // It may be where the file system is mounted.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(removed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(removed),
        Err(source) => Err(failed(directory, "cannot be removed", source)),
        Ok(()) => Ok(removed),
    }
}

/// Makes the directory, in a BPF file system that is mounted for it where there is none.
pub(crate) fn prepare(directory: &Path) -> Result<(), FilterError> {
    let existing = directory.ancestors().find(|path| path.exists());
    if !is_bpf(existing.unwrap_or_else(|| Path::new("/")))? {
        let standard = Path::new("/sys/fs/bpf");
        let place = if directory.starts_with(standard) { standard } else { directory };
        if place != standard {
            fs::create_dir_all(place).map_err(|source| failed(place, "cannot be made", source))?;
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("bpf", place, "bpf", flags, None::<&std::ffi::CStr>).map_err(|source| {
            failed(place, "no BPF file system, and none can be mounted here", source.into())
        })?;
        tracing::info!(directory = %place.display(), "mounted a BPF file system");
    }
    fs::create_dir_all(directory).map_err(|source| failed(directory, "cannot be made", source))
}

/// Where an attachment is pinned. Dots are reserved in these file systems, so a VLAN's becomes a `~`.
pub(crate) fn link(directory: &Path, place: &str) -> PathBuf {
    directory.join(format!("{LINK}{}", place.replace('.', "~")))
}

/// Pins under a name that may be taken, whose old owner is then let go.
pub(crate) fn replace(
    directory: &Path,
    program: &str,
    fd: std::os::fd::BorrowedFd<'_>,
) -> Result<(), FilterError> {
    let path = directory.join(format!("{PROGRAM}{program}"));
    let new = directory.join(format!("{PROGRAM}{program}-new"));
    if new.exists() {
        remove(&new)?;
    }
    sys::pin(fd, &new).map_err(|source| failed(&new, "cannot be pinned", source))?;
    fs::rename(&new, &path).map_err(|source| failed(&path, "cannot be replaced", source))
}

/// The names of links in a directory that begin so.
pub(crate) fn links(directory: &Path) -> Result<Vec<PathBuf>, FilterError> {
    let names = names(directory)?.into_iter().filter(|name| name.starts_with(LINK));
    Ok(names.map(|name| directory.join(name)).collect())
}

/// Removes a pin; a link is detached when this returns.
pub(crate) fn remove(path: &Path) -> Result<(), FilterError> {
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    if PinnedKind::of(&name) == PinnedKind::Link {
        let detached = sys::pinned(path).and_then(|link| sys::link_detach(link.as_fd()));
        // What is gone cannot be detached, and an old kernel does it when the name is removed.
        if let Err(error) = detached {
            tracing::debug!(%error, link = name, "a link is not detached by itself");
        }
    }
    fs::remove_file(path).map_err(|source| failed(path, "cannot be removed", source))
}

pub(crate) fn failed(path: &Path, reason: &'static str, source: io::Error) -> FilterError {
    FilterError::Pins { path: path.to_owned(), reason, source }
}

fn is_bpf(path: &Path) -> Result<bool, FilterError> {
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    let stat = rustix::fs::statfs(path);
    let stat = stat.map_err(|source| failed(path, "cannot be looked at", source.into()))?;
    // The field's type differs between architectures.
    Ok(u64::try_from(stat.f_type).is_ok_and(|kind| kind == BPF_FS_MAGIC))
}

fn names(directory: &Path) -> Result<Vec<String>, FilterError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| failed(directory, "cannot be listed", source))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    // The kernel puts files of its own into the root of such a file system, and only those have dots.
    let ours = names.filter(|name| !name.as_ref().is_ok_and(|name: &String| name.contains('.')));
    let names: io::Result<Vec<String>> = ours.collect();
    names.map_err(|source| failed(directory, "cannot be listed", source))
}

fn link_detail(path: &Path) -> io::Result<String> {
    let info = sys::link_info(sys::pinned(path)?.as_fd())?;
    let place = match (info.kind, info.place) {
        (_, 0) => String::from("nothing: it is gone"),
        (LinkInfo::XDP | LinkInfo::TCX, index) => format!("interface {index}"),
        (LinkInfo::NETNS, inode) => format!("network namespace {inode}"),
        (LinkInfo::CGROUP, id) => format!("cgroup {id}"),
        (kind, _) => format!("something of kind {kind}"),
    };
    Ok(format!("program {} on {place}", info.program))
}

fn program_detail(path: &Path) -> io::Result<String> {
    let info = ProgramInfo::from_pin(path).map_err(io::Error::other)?;
    Ok(format!("program {}, tag {:016x}", info.id(), info.tag().to_be()))
}

fn map_detail(path: &Path) -> io::Result<String> {
    let info = MapInfo::from_pin(path).map_err(io::Error::other)?;
    let entries = info.max_entries();
    Ok(format!(
        "room for {entries}, keys of {} B, values of {} B",
        info.key_size(),
        info.value_size()
    ))
}

// === impl PinnedKind ===

impl PinnedKind {
    /// For listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Program => "program",
            Self::Map => "map",
        }
    }

    fn of(name: &str) -> Self {
        match name {
            name if name.starts_with(LINK) => Self::Link,
            name if name.starts_with(PROGRAM) => Self::Program,
            _ => Self::Map,
        }
    }
}
