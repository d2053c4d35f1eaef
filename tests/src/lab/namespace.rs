//! One network namespace, kept by a child process that ends with the test.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace and, where there is a BPF file system, a mount namespace.
pub struct Namespace {
    /// Reads its standard input to the end, which comes when this process goes, however it goes.
    keeper: Child,
    network: File,
}

// === impl Namespace ===

impl Namespace {
    /// An empty one: not even a loopback that is up.
    pub(super) fn new() -> io::Result<Self> {
        Self::keep(Command::new("unshare").args(["--net", "sh", "-c", "echo; exec cat"]))
    }

    /// One whose processes see a BPF file system of their own at `folder`.
    pub(super) fn with_bpf(folder: &Path) -> io::Result<Self> {
        // For everybody, because a node need not be root.
        let mount = "mount -t bpf -o mode=0777 bpf \"$0\" && echo && exec cat";
        let mut command = Command::new("unshare");
        Self::keep(command.args(["--net", "--mount", "sh", "-c", mount]).arg(folder))
    }

    fn keep(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut keeper = command.spawn()?;
        let mut ready = [0];
        let stdout = keeper.stdout.as_mut().expect("stdout is piped");
        if stdout.read_exact(&mut ready).is_err() {
            let output = keeper.wait_with_output()?;
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let network = File::open(format!("/proc/{}/ns/net", keeper.id()))?;
        Ok(Self { keeper, network })
    }

    /// The process whose namespaces these are.
    pub fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// Does `work` inside, on a thread of its own. Threads and processes it starts are inside too.
    ///
    /// # Panics
    /// When `work` does, and when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name(test).spawn_scoped(scope, || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.network.as_fd(), kind).expect("our own namespace");
                work()
            });
            inside.expect("a thread").join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.keeper.kill().expect("our own child");
        self.keeper.wait().expect("our own child");
    }
}
