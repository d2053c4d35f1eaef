//! A memory cgroup of a test's own, version 1 or 2, removed when it is dropped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::need;
use crate::wait;

/// A cgroup with a memory limit.
pub struct MemoryCgroup {
    path: PathBuf,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl MemoryCgroup {
    /// A cgroup that may hold `bytes`, or `None` after noting that the test is skipped.
    ///
    /// # Panics
    /// With `CI=true` when there can be none.
    pub fn new(bytes: u64) -> Option<Self> {
        match Self::make(bytes) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                need::skip(&format!("no memory cgroup can be made here ({error}); it needs root"));
                None
            }
        }
    }

    fn make(bytes: u64) -> io::Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let is_v1 = v1.join("memory.limit_in_bytes").exists();
        let root = if is_v1 { v1 } else { Path::new("/sys/fs/cgroup") };
        let number = COUNT.fetch_add(1, Relaxed);
        let path = root.join(format!("ferrule-test-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        let cgroup = Self { path };
        let limit = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(cgroup.path.join(limit), bytes.to_string())?;
        if !is_v1 {
            fs::write(cgroup.path.join("memory.swap.max"), "0").ok(); // a kernel without swap
        }
        Ok(cgroup)
    }

    /// The beginning of a command line whose rest will be in here before its first instruction.
    pub fn wrapper(&self) -> Vec<String> {
        let enter = "echo $$ > \"$0\" && exec \"$@\"";
        let procs = self.path.join("cgroup.procs");
        ["sh", "-c", enter]
            .map(str::to_owned)
            .into_iter()
            .chain([procs.display().to_string()])
            .collect()
    }

    /// `program`, which will be in here before its first instruction.
    pub fn command(&self, program: &Path) -> Command {
        let wrapper = self.wrapper();
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]).arg(program);
        command
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // The kernel lets go of a process some time after its end was waited for.
        wait::until("the cgroup is empty", || fs::remove_dir(&self.path).is_ok());
    }
}
