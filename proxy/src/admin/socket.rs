//! The unix socket and its file: private before anybody can connect, gone when its owner is.

use std::fs;
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};

use super::BindError;
use crate::handoff::{Inherited, Place};

/// A listening socket with the file that names it.
pub(super) struct Socket {
    listener: UnixListener,
    file: File,
}

/// Removes the file when dropped, unless somebody put another one in its place.
pub(super) struct File {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

const BACKLOG: i32 = 64;

// === impl Socket ===

impl Socket {
    /// The one that was inherited, whose file is there, else a new one.
    pub(super) fn bind(path: &Path, inherited: &mut Inherited) -> Result<Self, BindError> {
        let place = Place::AdminSocket { path: path.to_owned() };
        let inherited = inherited.unix(&place, BACKLOG.unsigned_abs());
        // One whose file was removed is found by nobody.
        if let Some(listener) = inherited.filter(|_| path.exists()) {
            // Until it is served here, the file is its.
            return Ok(Self { listener, file: File { path: path.to_owned(), identity: None } });
        }
        let failed = |source| BindError::Socket { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let mut create = fs::DirBuilder::new();
            create.recursive(true).mode(0o755).create(folder).map_err(failed)?;
        }
        clear_the_way(path)?;
        listen(path).map_err(failed)
    }

    /// The listener alone, for somebody else.
    pub(super) fn try_clone(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// For whoever serves it: the file is this process's from now on.
    pub(super) fn into_parts(self) -> (UnixListener, File) {
        let Self { listener, mut file } = self;
        file.identity = identity(&file.path);
        (listener, file)
    }
}

/// Removes the file of a process that is gone.
fn clear_the_way(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::Occupied { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::Live { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn listen(path: &Path) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = File::of(path);
    // Between bind and listen nobody can connect: the moment to shut the door.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(Socket { listener: socket.into(), file })
}

// === impl File ===

impl File {
    /// The file stays: another process has the socket.
    pub(super) fn leave(mut self) {
        self.identity = None;
    }

    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nothing to do about it if it fails: the next start finds it stale and replaces it.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
