//! A file or a pipe that never makes the writer wait for a reader.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Target;

pub(super) struct Output {
    path: Option<PathBuf>,
    file: File,
    is_regular: bool,
    /// Whether what was written last ended within a line.
    pub(super) is_torn: bool,
}

/// Bytes that a pipe takes at once when it is ready for any (POSIX's `PIPE_BUF` on Linux; pipe(7)).
const PIPE_BUF: usize = 4096;

// === impl Output ===

impl Output {
    pub(super) fn open(target: &Target) -> io::Result<Self> {
        let (path, file) = match target {
            // A descriptor of its own, past the buffer of `std::io::stdout`.
            Target::Stdout => (None, File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            Target::File(path) => (Some(path.clone()), append(path)?),
        };
        let is_regular = file.metadata()?.is_file();
        Ok(Self { path, file, is_regular, is_torn: false })
    }

    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.file = append(path)?;
            self.is_regular = self.file.metadata()?.is_file();
        }
        Ok(())
    }

    /// Whether the name leads to another file than the open one, or to none.
    pub(super) fn is_elsewhere(&self) -> bool {
        let Some(path) = &self.path else { return false };
        match (self.file.metadata(), path.metadata()) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) != (named.dev(), named.ino()),
            (_, Err(error)) => error.kind() == ErrorKind::NotFound,
            (Err(_), _) => false,
        }
    }

    /// Writes as much as is taken without waiting, and says how much that was.
    pub(super) fn write(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let piece_max = if self.is_regular { usize::MAX } else { PIPE_BUF };
        let mut written = 0;
        while written < bytes.len() {
            match self.is_ready() {
                Ok(true) => {}
                Ok(false) => return (written, Ok(())),
                Err(error) => return (written, Err(error)),
            }
            let piece = &bytes[written..bytes.len().min(written.saturating_add(piece_max))];
            match self.file.write(piece) {
                Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (written, Ok(())),
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    /// Whether a piece can be written at once.
    fn is_ready(&self) -> io::Result<bool> {
        if self.is_regular {
            return Ok(true);
        }
        let mut ready = [PollFd::new(&self.file, PollFlags::OUT)];
        Ok(poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
    }
}

fn append(path: &Path) -> io::Result<File> {
    // Not to wait for the reader of a FIFO either; a regular file does not care.
    let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(no_wait).open(path)
}
