//! A kernel of one's own, as far as a test can see: a thread with a mount and a network namespace.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ebpf_filter::Config;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};

/// What a test has for itself.
pub(crate) struct Own {
    directory: tempfile::TempDir,
    cgroup: PathBuf,
}

/// Runs a test in a thread with namespaces of its own, or notes why it does not run.
///
/// # Panics
/// When the test does; with `CI=true` also when it cannot run.
pub(crate) fn alone(test: impl FnOnce(&Own) + Send + 'static) {
    if let Some(reason) = missing() {
        return skip(&reason);
    }
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(|| {
        let own = Own::new();
        test(&own);
    });
    if let Err(panic) = thread.expect("a thread can be started").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command that must succeed.
pub(crate) fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().expect("a command")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
}

fn missing() -> Option<String> {
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::NET_ADMIN
        | CapabilitySet::BPF
        | CapabilitySet::PERFMON;
    let has = capabilities(None).expect("a thread knows its capabilities").effective;
    if !has.contains(needed) {
        return Some(String::from("programs in the kernel need root"));
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some(String::from("ip is not installed (iproute2)"));
    }
    cgroups().is_none().then(|| String::from("no cgroup v2 is mounted"))
}

fn cgroups() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut of| {
        Some((of.nth(1)?, of.next()?))
            .filter(|(_, kind)| *kind == "cgroup2")
            .map(|(place, _)| PathBuf::from(place))
    })
}

/// As the harness of the other tests does.
fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("a test"));
    let ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!ci, "{line}nothing may be skipped with CI=true");
    eprint!("{line}");
    let Some(file) = std::env::var_os("FERRULE_SKIPPED") else { return };
    let file = OpenOptions::new().create(true).append(true).open(file);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("FERRULE_SKIPPED is writable");
}

// === impl Own ===

impl Own {
    #[allow(unsafe_code, reason = "namespaces are the thread's")]
    fn new() -> Self {
        // SAFETY: the thread is fresh and ours, and has no descriptor whose table would be unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }
            .expect("root may have namespaces");
        // Nothing that is mounted here shows up outside.
        let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
        mount_change("/", private).expect("the namespace is ours");
        let directory = tempfile::tempdir().expect("a temporary directory");
        mount("bpf", directory.path(), "bpf", MountFlags::empty(), None::<&std::ffi::CStr>)
            .expect("a BPF file system can be mounted");
        run("ip link set lo up");
        for prefix in crate::table::prefixes() {
            run(&format!("ip route add local {prefix} dev lo"));
        }
        // Of the machine's, so it has a name that no other test has, and nobody in it.
        let name = directory.path().file_name().expect("it has a name").to_string_lossy();
        let cgroup = cgroups().expect("it was there before").join(format!("ferrule-test{name}"));
        std::fs::create_dir(&cgroup).expect("root may make a cgroup");
        Self { directory, cgroup }
    }

    /// Lets other users make directories in the BPF file system.
    pub(crate) fn open_to_others(&self) {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        std::fs::set_permissions(self.directory.path(), mode).expect("it is ours");
    }

    /// An empty cgroup.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.directory.path().join("pins")
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.pins().join(format!("program-{name}"))
    }

    /// A configuration for the tables' prefixes, on the loopback interface.
    pub(crate) fn config(&self) -> Config {
        Config {
            interfaces: vec![String::from("lo")],
            cgroup: Some(self.cgroup.clone()),
            prefixes: crate::table::prefixes(),
            pins: self.pins(),
            sample_drops_every: 1,
            ..Config::default()
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // The cgroup is the machine's: it would stay.
        let cgroup = std::fs::remove_dir(&self.cgroup);
        let pins = self.directory.path();
        let pins = rustix::mount::unmount(pins, rustix::mount::UnmountFlags::DETACH);
        if !std::thread::panicking() {
            cgroup.expect("nobody is in the cgroup any more");
            pins.expect("it is mounted");
        }
    }
}
