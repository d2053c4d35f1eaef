//! What the kernel says of this process: memory, descriptors, threads, sockets, by count.
//!
//! All of it is read through kept descriptors into the stack, so that the thread that samples
//! allocates nothing.

use std::fs;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::param::page_size;

use crate::kernel_file::{KernelFile, field};

/// The process's own entries in `/proc`, kept open.
#[derive(Debug)]
pub struct Process {
    page: u64,
    statm: Option<KernelFile>,
    sockstat: Option<KernelFile>,
    vmstat: Option<KernelFile>,
    threads: Option<OwnedFd>,
    descriptors: Option<OwnedFd>,
}

/// One reading of the counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open file descriptors (since kernel 6.2; 0 before, for counting them would cost a
    /// millisecond per ten thousand).
    pub descriptors: u64,
    pub threads: u64,
    /// Sockets of the network namespace, which are this process's where it is alone there.
    pub sockets: u64,
    /// TCP sockets that wait for late segments after the end of their connection.
    pub time_wait: u64,
    /// Bytes in the buffers of all TCP sockets of the namespace.
    pub tcp_bytes: u64,
}

/// `/proc/vmstat` has some 180 lines, 4.5 KiB, and grows with the kernel's version.
const VMSTAT_BYTES_MAX: usize = 16 * 1024;

// === impl Process ===

impl Process {
    pub fn open() -> Self {
        let kept = |path: &str| KernelFile::open(path).ok();
        let folder = |path: &str| {
            open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
        };
        Self {
            page: page_size() as u64,
            statm: kept("/proc/self/statm"),
            sockstat: kept("/proc/self/net/sockstat"),
            vmstat: kept("/proc/vmstat"),
            threads: folder("/proc/self/task"),
            descriptors: folder("/proc/self/fd"),
        }
    }

    /// Bytes that are physically there, shared pages included; the second field of `statm`.
    pub fn resident(&self) -> Option<u64> {
        let pages = self.statm.as_ref()?.with_up_to::<128, _>(|text| {
            let field = text.split(' ').nth(1)?;
            field.parse::<u64>().ok()
        })?;
        Some(pages * self.page)
    }

    pub fn counts(&self) -> Counts {
        let status =
            |folder: &Option<OwnedFd>| folder.as_ref().and_then(|folder| fstat(folder).ok());
        // The size of `/proc/PID/fd` is their number; a folder has two links besides its entries.
        let descriptors = status(&self.descriptors).map_or(0, |status| status.st_size as u64);
        let threads = status(&self.threads).map_or(0, |status| status.st_nlink.saturating_sub(2));
        let mut counts = Counts { descriptors, threads, ..Counts::default() };
        if let Some(sockstat) = &self.sockstat {
            let page = self.page;
            sockstat.with(|text| {
                counts.sockets = after(text, "sockets:", "used").unwrap_or_default();
                counts.time_wait = after(text, "TCP:", "tw").unwrap_or_default();
                counts.tcp_bytes = after(text, "TCP:", "mem").unwrap_or_default() * page;
                Some(())
            });
        }
        counts
    }

    /// Processes that the kernel killed for memory since the machine started, wherever they were.
    pub fn oom_kills_of_machine(&self) -> Option<u64> {
        self.vmstat.as_ref()?.with_up_to::<VMSTAT_BYTES_MAX, _>(|text| field(text, "oom_kill"))
    }
}

/// Physical memory of the machine, in bytes.
pub fn physical_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, "MemTotal").map(|kibibytes| kibibytes * 1024)
}

/// The number after `key` in the line that begins with `line`.
fn after(text: &str, line: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|found| found.strip_prefix(line))?;
    let mut words = rest.split_whitespace();
    words.by_ref().find(|word| *word == key)?;
    words.next()?.parse().ok()
}

/// Sockets that are open; 0 when the kernel does not tell. For the end of the process: a system call
/// each.
pub fn sockets() -> usize {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else { return 0 };
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    descriptors.flatten().filter(is_socket).count()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn sockets_are_read_from_their_line() {
        let text =
            "sockets: used 188\nTCP: inuse 9 orphan 0 tw 3 alloc 11 mem 4\nUDP: inuse 1 mem 0\n";
        assert_eq!(after(text, "sockets:", "used"), Some(188));
        assert_eq!(after(text, "TCP:", "tw"), Some(3));
        assert_eq!(after(text, "TCP:", "mem"), Some(4));
        assert_eq!(after(text, "UDPLITE:", "mem"), None);
    }

    #[test]
    fn what_is_opened_and_started_is_counted() {
        let process = Process::open();
        let before = process.counts();
        assert!(process.resident().expect("statm can be read") > 1 << 20);
        assert!(before.threads >= 1);
        if before.descriptors == 0 {
            eprintln!("skipped: this kernel does not count descriptors");
            return;
        }
        let files: Vec<_> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        assert!(process.counts().descriptors >= before.descriptors.min(5) + 200);
        drop(files);
    }
}
