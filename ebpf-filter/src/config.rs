//! What the filter is told.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ebpf_filter_common::LAYOUT;
use ipnet::IpNet;

/// Where and how packets are judged.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which place of attachment. Default: [`Mode::Auto`].
    pub mode: Mode,
    /// Interfaces on which the anycast prefixes arrive. Default: none, which leaves the cgroup.
    pub interfaces: Vec<String>,
    /// The cgroup (v2) whose sockets are guarded in [`Mode::Cgroup`]. Default: the process's own.
    pub cgroup: Option<PathBuf>,
    /// The anycast prefixes. Inside them nothing passes that no app asked for; outside the filter has
    /// no opinion.
    pub prefixes: Vec<IpNet>,
    /// A directory in a BPF file system, of this node alone. What is pinned there outlives the process
    /// and is what the next one replaces. Default: `/sys/fs/bpf/ferrule/v<layout>`.
    pub pins: PathBuf,
    /// Count and report what would be dropped, and pass it. Default: false.
    pub dry_run: bool,
    /// Report one drop of so many (per reason and core); 0 = none. Default: 100.
    pub sample_drops_every: u32,
    /// Sizes.
    pub limits: Limits,
}

/// Sizes of maps. They are given when a map is made: to change one, `ferrule filter detach` first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Exact addresses per family. Default: 1,048,576, which costs the kernel 16 MiB per family at once
    /// and about 130 bytes more for each address in use.
    pub addresses_max: u32,
    /// Prefixes per family, about 215 bytes each in use. Default: 16,384.
    pub prefixes_max: u32,
    /// Blocks of 64 ports, for apps with more ranges than fit inline. Default: 65,536, which costs the
    /// kernel 1 MiB at once.
    pub port_blocks_max: u32,
    /// Reported drops per second, of all cores together. Default: 100.
    pub reports_per_second: u32,
}

/// Which place of attachment is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The earliest that works, in the order of the others; user space where none does.
    #[default]
    Auto,
    /// In the device's driver.
    Xdp,
    /// Right behind the driver.
    XdpGeneric,
    /// Before the device's queueing discipline.
    Tcx,
    /// Where a packet has found a socket.
    Cgroup,
    /// Nowhere.
    Off,
}

/// Where packets are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActiveMode {
    /// In the device's driver.
    Xdp,
    /// Right behind the driver.
    XdpGeneric,
    /// Before the device's queueing discipline.
    Tcx,
    /// Where a packet has found a socket.
    Cgroup,
    /// Nowhere in the kernel: every connection is judged when it was accepted.
    Userspace,
    /// As [`ActiveMode::Userspace`], because it was asked for.
    Off,
}

/// A mode that there is not.
#[derive(Debug, thiserror::Error)]
#[error("not one of auto, xdp, xdp-generic, tcx, cgroup, off")]
pub struct UnknownMode;

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            interfaces: Vec::new(),
            cgroup: None,
            prefixes: Vec::new(),
            pins: PathBuf::from(format!("/sys/fs/bpf/ferrule/v{LAYOUT}")),
            dry_run: false,
            sample_drops_every: 100,
            limits: Limits::default(),
        }
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses_max: 1 << 20,
            prefixes_max: 1 << 14,
            port_blocks_max: 1 << 16,
            reports_per_second: 100,
        }
    }
}

// === impl Mode ===

impl Mode {
    /// As in the configuration file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tcx => "tcx",
            Self::Cgroup => "cgroup",
            Self::Off => "off",
        }
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        let all = [Self::Auto, Self::Xdp, Self::XdpGeneric, Self::Tcx, Self::Cgroup, Self::Off];
        all.into_iter().find(|mode| mode.as_str() == text).ok_or(UnknownMode)
    }
}

// === impl ActiveMode ===

impl ActiveMode {
    /// As in logs, `status` and the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Tcx => "tcx",
            Self::Cgroup => "cgroup",
            Self::Userspace => "userspace",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for ActiveMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
