//! Where a program is attached: the pins of links, and what is done when one is there already.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::ActiveMode;
use crate::error::FilterError;
use crate::pins;
use crate::sys::{self, LinkInfo, Target};

/// A place of attachment, and the name that its link has among the pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Xdp {
        interface: Interface,
        generic: bool,
    },
    Tcx {
        interface: Interface,
    },
    Cgroup(PathBuf),
    /// The search for listening sockets in this thread's network namespace.
    Steering,
}

/// An interface with Ethernet frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) index: u32,
}

// === impl Place ===

impl Place {
    pub(crate) fn pin(&self, directory: &Path) -> PathBuf {
        match self {
            Self::Xdp { interface, generic: false } => {
                pins::link(directory, &format!("xdp-{}", interface.name))
            }
            // Not "xdp-generic-": an interface may be called "generic-0".
            Self::Xdp { interface, generic: true } => {
                pins::link(directory, &format!("generic-{}", interface.name))
            }
            Self::Tcx { interface } => pins::link(directory, &format!("tcx-{}", interface.name)),
            Self::Cgroup(_) => pins::link(directory, "cgroup"),
            Self::Steering => pins::link(directory, "steering"),
        }
    }

    /// Attaches a program here, or puts it in the place of the one that is pinned here: packets meet
    /// the old one until they meet the new one.
    pub(crate) fn attach(
        &self,
        directory: &Path,
        program: BorrowedFd<'_>,
    ) -> Result<(), FilterError> {
        let pin = self.pin(directory);
        if pin.exists() {
            let link = sys::pinned(&pin)
                .map_err(|source| pins::failed(&pin, "cannot be opened", source))?;
            if self.replaced(&pin, link.as_fd(), program)? {
                return Ok(());
            }
            // What it was attached to is gone, and the link with it.
            pins::remove(&pin)?;
        }
        let link = self.create(program)?;
        sys::pin(link.as_fd(), &pin)
            .map_err(|source| pins::failed(&pin, "cannot be pinned", source))
    }

    fn replaced(
        &self,
        pin: &Path,
        link: BorrowedFd<'_>,
        program: BorrowedFd<'_>,
    ) -> Result<bool, FilterError> {
        let failed = |source| pins::failed(pin, "cannot be replaced", source);
        let info = sys::link_info(link).map_err(failed)?;
        let ours = match self {
            Self::Xdp { interface, .. } | Self::Tcx { interface } => interface.index,
            // The lower half of the identity is as good as the whole.
            Self::Cgroup(path) => {
                let inode = path.metadata().map_err(failed)?.ino();
                u32::try_from(inode & u64::from(u32::MAX)).expect("it is masked")
            }
            Self::Steering => {
                let inode =
                    netns().and_then(|netns| Ok(netns.metadata()?.ino())).map_err(failed)?;
                u32::try_from(inode).map_err(|error| failed(io::Error::other(error)))?
            }
        };
        if info.place == 0 || info.kind != self.kind() {
            return Ok(false);
        }
        if let Self::Cgroup(path) = self
            && info.place != ours
            && !is_there(path, info.place)
        {
            // systemd makes the cgroup of a service anew at each start, and sockets that were opened
            // in the old one, as those a service manager keeps are, hold the link to it.
            return Ok(false);
        }
        if info.place != ours {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            let reason = "belongs to another place (two nodes need two directories of pins)";
            return Err(pins::failed(pin, reason, source));
        }
        sys::link_update(link, program).map_err(failed)?;
        Ok(true)
    }

    fn create(&self, program: BorrowedFd<'_>) -> Result<OwnedFd, FilterError> {
        let link = match self {
            Self::Xdp { interface, generic } => {
                let target = Target::Xdp { interface: interface.index, generic: *generic };
                sys::link_create(program, target)
            }
            Self::Tcx { interface } => {
                sys::link_create(program, Target::Tcx { interface: interface.index })
            }
            Self::Cgroup(path) => File::open(path)
                .and_then(|cgroup| sys::link_create(program, Target::Cgroup(cgroup.as_fd()))),
            Self::Steering => {
                netns().and_then(|netns| sys::link_create(program, Target::SkLookup(netns.as_fd())))
            }
        };
        link.map_err(|source| FilterError::Kernel {
            what: self.what(),
            place: self.name(),
            reason: self.why(&source),
            source,
        })
    }

    fn kind(&self) -> u32 {
        match self {
            Self::Xdp { .. } => LinkInfo::XDP,
            Self::Tcx { .. } => LinkInfo::TCX,
            Self::Cgroup(_) => LinkInfo::CGROUP,
            Self::Steering => LinkInfo::NETNS,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Xdp { generic: false, .. } => ActiveMode::Xdp.as_str(),
            Self::Xdp { generic: true, .. } => ActiveMode::XdpGeneric.as_str(),
            Self::Tcx { .. } => ActiveMode::Tcx.as_str(),
            Self::Cgroup(_) => ActiveMode::Cgroup.as_str(),
            Self::Steering => "steering",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Xdp { interface, .. } | Self::Tcx { interface } => interface.name.clone(),
            Self::Cgroup(path) => path.display().to_string(),
            Self::Steering => String::from("this network namespace"),
        }
    }

    /// What the kernel means by a number, here.
    fn why(&self, error: &io::Error) -> &'static str {
        match (self, error.raw_os_error()) {
            (Self::Xdp { generic: false, .. }, Some(libc::EOPNOTSUPP)) => {
                "the interface's driver has no native XDP"
            }
            (Self::Xdp { .. }, Some(libc::EBUSY | libc::EEXIST)) => {
                "another XDP program is attached to the interface"
            }
            (Self::Xdp { .. }, Some(libc::EINVAL)) => "the kernel has no XDP links (5.9)",
            (Self::Tcx { .. }, Some(libc::EINVAL)) => "the kernel has no tcx (6.6)",
            (Self::Cgroup(_), Some(libc::EBADF | libc::EINVAL)) => {
                "not a cgroup v2, or the kernel has no cgroup links (5.7)"
            }
            (Self::Cgroup(_), Some(libc::ENOENT)) => "there is no such cgroup",
            (Self::Steering, Some(libc::EINVAL)) => "the kernel has no sk_lookup (5.9)",
            (_, Some(libc::EPERM)) => "the kernel forbids it",
            _ => "the kernel refuses it",
        }
    }
}

fn netns() -> io::Result<File> {
    // Of the thread, not of the process: they differ where somebody called setns.
    File::open("/proc/thread-self/ns/net")
}

/// The process's own cgroup in the hierarchy of version 2, where there is one.
pub(crate) fn own_cgroup() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let root = mounts.find_map(|mut fields| {
        let (_device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    })?;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(root.join(own))
}

/// Cgroups that are looked at before one counts as there: better refused than stolen.
const CGROUPS_MAX: usize = 65_536;

/// Whether any cgroup of the hierarchy that `path` is in has this identity (its lower half).
fn is_there(path: &Path, identity: u32) -> bool {
    let is_cgroup = |folder: &&Path| folder.join("cgroup.procs").exists();
    let Some(root) = path.ancestors().take_while(is_cgroup).last() else { return true };
    let (mut folders, mut seen) = (vec![root.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        seen += 1;
        let found =
            folder.metadata().is_ok_and(|it| it.ino() & u64::from(u32::MAX) == identity.into());
        if found || seen == CGROUPS_MAX {
            return true;
        }
        let Ok(entries) = folder.read_dir() else { continue };
        let entries =
            entries.flatten().filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()));
        folders.extend(entries.map(|entry| entry.path()));
    }
    false
}

// === impl Interface ===

impl Interface {
    pub(crate) fn named(name: &str) -> Result<Self, FilterError> {
        let failed = |reason: String| FilterError::Interface { interface: name.to_owned(), reason };
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            None,
        );
        let socket = socket.map_err(|error| failed(error.to_string()))?;
        let index = rustix::net::netdevice::name_to_index(&socket, name)
            .map_err(|_| failed(String::from("there is no such interface")))?;
        match hardware_type(socket.as_fd(), name).map_err(|error| failed(error.to_string()))? {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(Self { name: name.to_owned(), index }),
            other => Err(failed(format!("it has no Ethernet frames (hardware type {other})"))),
        }
    }
}

/// `ARPHRD_…` of an interface, as `ip link` shows it in words.
#[allow(unsafe_code, reason = "there is no safe binding for SIOCGIFHWADDR")]
fn hardware_type(socket: BorrowedFd<'_>, name: &str) -> io::Result<u16> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: a structure of integers and arrays, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays 0: the kernel wants a terminated name. A longer one was refused before.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the kernel reads the name and writes an address, both within the structure.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just written as an address, and any bytes are one.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}
