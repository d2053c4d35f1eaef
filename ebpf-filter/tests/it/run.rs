//! `BPF_PROG_TEST_RUN` on a pinned program: the kernel runs it on a packet of ours.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

/// A program in the kernel.
pub(crate) struct Program(OwnedFd);

// === impl Program ===

impl Program {
    /// The one that is pinned there.
    pub(crate) fn pinned(path: &Path) -> Self {
        #[repr(C)]
        struct Attr {
            name: u64,
            fd: i32,
            flags: u32,
        }
        let name = CString::new(path.as_os_str().as_bytes()).expect("a path");
        let mut attr = Attr { name: name.as_ptr() as u64, fd: 0, flags: 0 };
        const BPF_OBJ_GET: libc::c_long = 7;
        let fd = bpf(BPF_OBJ_GET, &mut attr);
        Self::own(fd.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    #[allow(unsafe_code, reason = "a descriptor that came as a number")]
    pub(crate) fn own(fd: libc::c_long) -> Self {
        // SAFETY: the kernel has just opened it for us.
        Self(unsafe { OwnedFd::from_raw_fd(fd.try_into().expect("a descriptor")) })
    }

    /// What the program answers, and how long one run of `repeat` took on average.
    pub(crate) fn run(&self, packet: &[u8], repeat: u32) -> io::Result<(u32, Duration)> {
        #[repr(C)]
        struct Attr {
            program: i32,
            answer: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration_ns: u32,
        }
        let mut attr = Attr {
            program: self.0.as_raw_fd(),
            answer: 0,
            size_in: packet.len().try_into().expect("a packet"),
            size_out: 0,
            data_in: packet.as_ptr() as u64,
            data_out: 0,
            repeat,
            duration_ns: 0,
        };
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        bpf(BPF_PROG_TEST_RUN, &mut attr)?;
        Ok((attr.answer, Duration::from_nanos(attr.duration_ns.into())))
    }
}

#[allow(unsafe_code, reason = "there is no other way to call bpf()")]
pub(crate) fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the pointers in the structures above are to memory that is borrowed meanwhile.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
