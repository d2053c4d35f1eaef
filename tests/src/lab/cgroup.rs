//! A cgroup (v2) of a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::need;
use crate::wait;

/// An empty group; removed when dropped, after its processes have ended.
pub struct Cgroup {
    path: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

// === impl Cgroup ===

impl Cgroup {
    /// A group, or `None` after noting that this machine does not let the test have one.
    ///
    /// # Panics
    /// With `CI=true` when it cannot be had.
    pub fn new() -> Option<Self> {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let is_v2 = |root: &&str| Path::new(root).join("cgroup.subtree_control").exists();
        let Some(root) = roots.into_iter().find(is_v2) else {
            need::skip("there is no cgroup v2 hierarchy");
            return None;
        };
        let name = format!("ferrule-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = Path::new(root).join(name);
        if let Err(error) = fs::create_dir(&path) {
            need::skip(&format!("{} cannot be created: {error}", path.display()));
            return None;
        }
        Some(Self { path })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The command that starts a program inside.
    pub fn wrapper(&self) -> Vec<String> {
        let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let path = self.path.display().to_string();
        ["sh", "-c", enter, &path].map(str::to_owned).to_vec()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let gone = || fs::remove_dir(&self.path).is_ok() || !self.path.exists();
        if std::thread::panicking() {
            gone(); // whatever still runs in it has another owner
        } else {
            wait::until("the cgroup is empty and removed", gone);
        }
    }
}
