//! Snapshots on disk: what was known, kept for after the process is gone.
//!
//! A restart frees what leaked, and with it the evidence; so one is written when a drain begins,
//! before anything is dropped, and whenever somebody asks. The folder is bounded in files and bytes.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::report::Report;

/// Snapshots kept; the oldest go first.
pub const FILES_MAX: usize = 8;

/// Bytes of all snapshots together.
pub const BYTES_MAX: u64 = 32 << 20;

/// What is read back of one: JSON packs to a tenth.
const UNPACKED_BYTES_MAX: u64 = 512 << 20;

const PREFIX: &str = "heap-";
const SUFFIX: &str = ".json.gz";

/// Why it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Signal,
    Command,
    Drain,
    Pressure,
}

impl Reason {
    /// By their numbers.
    pub const ALL: [Self; 4] = [Self::Signal, Self::Command, Self::Drain, Self::Pressure];
}

/// One file's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub reason: Reason,
    pub pid: u32,
    pub heap: Report,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the folder {} cannot be used", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no snapshot", path.display())]
    Shape { path: PathBuf, source: serde_json::Error },
}

/// Writes `heap` into `directory` and removes what is too much there; the file's name.
///
/// # Errors
///
/// When the folder cannot be made or the file not be written. Nothing half-written stays.
pub fn write(directory: &Path, reason: Reason, heap: Report) -> Result<PathBuf, SnapshotError> {
    let folder = |source| SnapshotError::Folder { path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(folder)?;
    let pid = std::process::id();
    let path = directory.join(format!("{PREFIX}{}-{pid}{SUFFIX}", heap.at_unix_ms));
    let failed = |source| SnapshotError::Write { path: path.clone(), source };
    let temporary = path.with_extension("tmp");
    let written = pack(&temporary, &Snapshot { reason, pid, heap })
        .and_then(|()| fs::rename(&temporary, &path));
    if let Err(source) = written {
        // It may not be there at all.
        drop(fs::remove_file(&temporary));
        return Err(failed(source));
    }
    trim(directory, &path).map_err(folder)?;
    Ok(path)
}

fn pack(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    // Fast rather than small: at a drain somebody waits.
    let mut gzip = GzEncoder::new(io::BufWriter::new(fs::File::create(path)?), Compression::fast());
    serde_json::to_writer(&mut gzip, snapshot)?;
    gzip.finish()?.flush()
}

/// Reads a snapshot, or a saved `/memory.json`, packed or not.
///
/// # Errors
///
/// When it cannot be read or is neither.
pub fn read(path: &Path) -> Result<Report, SnapshotError> {
    let failed = |source| SnapshotError::Read { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(failed)?;
    let mut text = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let unpacked = GzDecoder::new(&*bytes).take(UNPACKED_BYTES_MAX).read_to_end(&mut text);
        unpacked.map_err(failed)?;
    } else {
        text = bytes;
    }
    /// Both shapes have the report under this name.
    #[derive(Deserialize)]
    struct Either {
        heap: Report,
    }
    let either: Result<Either, _> = serde_json::from_slice(&text);
    let shape = |source| SnapshotError::Shape { path: path.to_owned(), source };
    either.map(|either| either.heap).map_err(shape)
}

/// Removes the oldest snapshots until what is left is within bounds; `newest` stays.
fn trim(directory: &Path, newest: &Path) -> io::Result<()> {
    let mut files: Vec<(SystemTime, PathBuf, u64)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|n| n.starts_with(PREFIX) && n.ends_with(SUFFIX));
        if ours && entry.path() != newest {
            let about = entry.metadata()?;
            files.push((about.modified()?, entry.path(), about.len()));
        }
    }
    files.sort_unstable_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    let (mut kept, mut bytes) = (1, fs::metadata(newest)?.len());
    for (_, path, len) in files {
        if kept < FILES_MAX && bytes + len <= BYTES_MAX {
            (kept, bytes) = (kept + 1, bytes + len);
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{report, stack};
    use super::*;

    #[test]
    fn a_snapshot_is_read_back_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let heap = report(vec![stack(100, &["a", "main"])]);
        let path = write(&folder.path().join("new"), Reason::Drain, heap.clone()).expect("room");
        assert_eq!(read(&path).expect("it is there"), heap);
        let plain = folder.path().join("memory.json");
        let page = serde_json::json!({ "ledger": [], "heap": heap });
        fs::write(&plain, page.to_string()).expect("room");
        assert_eq!(read(&plain).expect("it is there"), heap);
        fs::write(&plain, "{}").expect("room");
        assert!(matches!(read(&plain), Err(SnapshotError::Shape { .. })));
    }

    #[test]
    fn the_folder_keeps_the_newest_within_its_bounds() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("other.json"), "not ours").expect("room");
        let large = folder.path().join(format!("{PREFIX}0-1{SUFFIX}"));
        fs::File::create(&large).and_then(|file| file.set_len(BYTES_MAX)).expect("room");
        let mut paths = Vec::new();
        for at in 0..12 {
            let mut heap = report(Vec::new());
            heap.at_unix_ms = 1_000 + at;
            paths.push(write(folder.path(), Reason::Command, heap).expect("room"));
        }
        let there: Vec<_> = paths.iter().map(|path| path.exists()).collect();
        assert_eq!(there.iter().filter(|there| **there).count(), FILES_MAX);
        assert!(there[11] && !large.exists() && folder.path().join("other.json").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_is_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let failed = write(&file.path().join("below"), Reason::Signal, report(Vec::new()));
        assert!(matches!(failed, Err(SnapshotError::Folder { .. })));
    }
}
