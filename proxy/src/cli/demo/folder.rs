//! Where the demo's files are.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{self, Path, PathBuf};
use std::process;

/// A folder that was empty; removed at the end when it is temporary.
pub(super) struct Folder {
    path: PathBuf,
    temporary: bool,
}

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    #[error("{} cannot be used; name a folder that does not exist yet or is empty", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
}

// === impl Folder ===

impl Folder {
    /// The folder that was named, or a temporary one.
    pub(super) fn new(named: Option<PathBuf>) -> Result<Self, FolderError> {
        let temporary = named.is_none();
        let path = named
            .unwrap_or_else(|| env::temp_dir().join(format!("ferrule-demo-{}", process::id())));
        let unusable = |source| FolderError::Unusable { path: path.clone(), source };
        // What is printed has to work from everywhere.
        let absolute = path::absolute(&path).map_err(unusable)?;
        let mut create = fs::DirBuilder::new();
        // A temporary folder must be new: somebody else's could lead our files elsewhere.
        create.mode(0o700).recursive(!temporary).create(&absolute).map_err(unusable)?;
        let folder = Self { path: absolute, temporary };
        if fs::read_dir(&folder.path).map_err(unusable)?.next().is_some() {
            return Err(FolderError::NotEmpty(path));
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.temporary {
            // What cannot be removed is in a folder for temporary files.
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("precious"), "").expect("the folder is ours");
        let path = folder.path().to_owned();
        assert!(matches!(Folder::new(Some(path.clone())), Err(FolderError::NotEmpty(_))));
        assert!(path.join("precious").exists());
        let fresh = Folder::new(Some(path.join("fresh"))).expect("it can be made");
        drop(fresh);
        assert!(path.join("fresh").exists(), "a folder that was named is kept");
    }

    #[test]
    fn a_temporary_folder_goes_with_the_demo() {
        let folder = Folder::new(None).expect("it can be made");
        let path = folder.path().to_owned();
        fs::write(path.join("file"), "").expect("the folder is ours");
        drop(folder);
        assert!(!path.exists());
    }
}
