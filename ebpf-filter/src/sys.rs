//! The bpf() calls that aya does not have, or has only for some kinds of programs: links that are
//! replaced in place, maps that are filled in batches, pins.
//!
//! Every function here is one system call. The structures are the parts of the kernel's `union
//! bpf_attr` that the call reads (uapi/linux/bpf.h); the kernel takes a shorter union than its own
//! and reads zeros for the rest.
#![allow(unsafe_code, reason = "bpf() takes pointers, and this file is nothing but calls of it")]

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use aya::maps::MapData;

/// A type whose bytes are all there is to it: no padding, no pointer, any bytes are a value.
///
/// # Safety
/// That is what the implementation promises.
pub(crate) unsafe trait Plain: Copy + 'static {}

/// A program's place of attachment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A device's driver or, generic, right behind it.
    Xdp { interface: u32, generic: bool },
    /// A device's ingress.
    Tcx { interface: u32 },
    /// What arrives for a cgroup's sockets.
    Cgroup(BorrowedFd<'a>),
    /// The search for listening sockets of a network namespace.
    SkLookup(BorrowedFd<'a>),
}

/// A hash or trie with keys `K` and values `V`.
pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K, V)>,
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Attaches a program; it stays until the link's last descriptor and pin are gone.
pub(crate) fn link_create(program: BorrowedFd<'_>, target: Target<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: i32,
        target: u32,
        attach_type: u32,
        flags: u32,
        /// What some kinds of links add (tcx: relative to whom, and the expected revision).
        rest: [u64; 4],
    }
    const BPF_CGROUP_INET_INGRESS: u32 = 0;
    const BPF_SK_LOOKUP: u32 = 36;
    const BPF_XDP: u32 = 37;
    const BPF_TCX_INGRESS: u32 = 46;
    const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let (target, attach_type, flags) = match target {
        Target::Xdp { interface, generic: true } => (interface, BPF_XDP, XDP_FLAGS_SKB_MODE),
        Target::Xdp { interface, generic: false } => (interface, BPF_XDP, XDP_FLAGS_DRV_MODE),
        Target::Tcx { interface } => (interface, BPF_TCX_INGRESS, 0),
        Target::Cgroup(cgroup) => (cgroup.as_raw_fd().cast_unsigned(), BPF_CGROUP_INET_INGRESS, 0),
        Target::SkLookup(netns) => (netns.as_raw_fd().cast_unsigned(), BPF_SK_LOOKUP, 0),
    };
    let mut attr = Attr { program: program.as_raw_fd(), target, attach_type, flags, rest: [0; 4] };
    // SAFETY: there is no pointer in it.
    descriptor(unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?)
}

/// Puts another program in the place of a link's. Packets meet either the old or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: i32,
        program: i32,
        flags: u32,
        old_program: i32,
    }
    let mut attr =
        Attr { link: link.as_raw_fd(), program: program.as_raw_fd(), flags: 0, old_program: 0 };
    // SAFETY: there is no pointer in it.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link now. Without this it goes some time after its last name and descriptor.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: i32,
    }
    // SAFETY: there is no pointer in it.
    unsafe { bpf(BPF_LINK_DETACH, &mut Attr { link: link.as_raw_fd() }) }.map(drop)
}

/// What the kernel says of a link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkInfo {
    /// Kind of link: see [`LinkInfo::XDP`] and its neighbours.
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    padding: u32,
    /// Interface index, or the network namespace's inode, or half of a cgroup's id; 0 when what it
    /// was attached to is gone.
    pub(crate) place: u32,
    rest: [u32; 11],
}

impl LinkInfo {
    pub(crate) const CGROUP: u32 = 3;
    pub(crate) const NETNS: u32 = 5;
    pub(crate) const XDP: u32 = 6;
    pub(crate) const TCX: u32 = 11;
}

/// Asks about a link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attr {
        fd: i32,
        length: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).expect("it is small");
    let mut attr = Attr { fd: link.as_raw_fd(), length, info: &raw mut info as u64 };
    // SAFETY: the pointer is to `info`, and its length is beside it.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Gives a map, program or link a name in a BPF file system.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    let mut attr = ByName { name: name.as_ptr() as u64, fd: object.as_raw_fd(), flags: 0 };
    // SAFETY: the pointer is to a terminated string that lives until the end of this function.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// The object of this name.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = c_path(path)?;
    let mut attr = ByName { name: name.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the pointer is to a terminated string that lives until the end of this function.
    descriptor(unsafe { bpf(BPF_OBJ_GET, &mut attr) }?)
}

#[repr(C)]
struct ByName {
    name: u64,
    fd: i32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[repr(C)]
struct Element {
    map: i32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: i32,
    element_flags: u64,
    flags: u64,
}

/// Waiting for memory that will come.
///
/// A map without preallocation takes elements from a small store per CPU, which the kernel fills
/// behind the caller's back. Who puts faster than that gets ENOMEM from a machine with plenty.
#[derive(Default)]
struct Patience {
    waited: u32,
}

// === impl Patience ===

impl Patience {
    /// Returns when it is worth another try; gives the error back when it is another one, or after a
    /// tenth of a second without progress.
    fn wait(&mut self, error: io::Error) -> io::Result<()> {
        if error.raw_os_error() != Some(libc::ENOMEM) || self.waited == 1000 {
            return Err(error);
        }
        self.waited += 1;
        std::thread::sleep(Duration::from_micros(100));
        Ok(())
    }
}

// === impl Table ===

impl<K: Plain, V: Plain> Table<K, V> {
    /// A map, if it has keys and values of these sizes: so much is what the kernel reads and writes.
    pub(crate) fn of(map: &MapData) -> io::Result<(Self, u32)> {
        let info = map.info().map_err(io::Error::other)?;
        let same = |size: u32, expected: usize| usize::try_from(size) == Ok(expected);
        if !same(info.key_size(), size_of::<K>()) || !same(info.value_size(), size_of::<V>()) {
            return Err(io::Error::other("it is of another shape"));
        }
        let fd = map.fd().as_fd().try_clone_to_owned()?;
        Ok((Self { fd, types: PhantomData }, info.max_entries()))
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = std::mem::MaybeUninit::<V>::zeroed();
        let mut attr = self.element(key, value.as_mut_ptr() as u64);
        // SAFETY: key and value are a `K` and room for a `V`, which is what the map was made with.
        match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => {
                // SAFETY: it was zeroed before, and any bytes are a `V`.
                let value = unsafe { value.assume_init() };
                Ok(Some(value))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Inserts, or replaces what is there as a whole.
    pub(crate) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        let mut patience = Patience::default();
        loop {
            let mut attr = self.element(key, std::ptr::from_ref(value) as u64);
            // SAFETY: key and value are a `K` and a `V`, which is what the map was made with.
            match unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) } {
                Ok(_) => return Ok(()),
                Err(error) => patience.wait(error)?,
            }
        }
    }

    /// Puts many with one call each few thousand. Nothing is undone when one fails.
    pub(crate) fn put_all(&self, mut keys: &[K], mut values: &[V]) -> io::Result<()> {
        assert_eq!(keys.len(), values.len(), "a value for each key");
        let mut patience = Patience::default();
        while !keys.is_empty() {
            let mut attr = self.batch(keys, values.as_ptr() as u64);
            let asked = attr.count;
            // SAFETY: `keys` and `values` have at least `count` elements, of the types of the map.
            let result = unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) };
            // An error before the first element leaves the count as it was.
            let done = if result.is_err() && attr.count >= asked { 0 } else { attr.count };
            let done = usize::try_from(done).expect("a usize has 32 bits");
            (keys, values) = (&keys[done..], &values[done..]);
            if let Err(error) = result {
                if done > 0 {
                    patience = Patience::default();
                }
                patience.wait(error)?;
            }
        }
        Ok(())
    }

    /// Whether there was such a key.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attr = self.element(key, 0);
        // SAFETY: the key is a `K`, which is what the map was made with.
        match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes many with one call each few thousand. Those that are not there are no error.
    pub(crate) fn remove_all(&self, mut keys: &[K]) -> io::Result<()> {
        while !keys.is_empty() {
            let mut attr = self.batch(keys, 0);
            let count = usize::try_from(attr.count).expect("a usize has 32 bits");
            // SAFETY: `keys` has at least `count` elements, of the map's type.
            let removed = match unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut attr) } {
                Ok(_) => count,
                // The kernel stops at the first one that is not there, and says how far it came.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    usize::try_from(attr.count).expect("a usize has 32 bits") + 1
                }
                Err(error) => return Err(error),
            };
            keys = keys.get(removed..).unwrap_or_default();
        }
        Ok(())
    }

    /// Everything in the map, in parts, in the order of the kernel. What is changed meanwhile may
    /// be missing or come twice.
    pub(crate) fn visit(&self, mut each: impl FnMut(&[K], &[V])) -> io::Result<()> {
        // A hash gives whole buckets: a call fails when its first one has more elements than fit.
        const COUNT: usize = 4096;
        let mut keys = Vec::<K>::with_capacity(COUNT);
        let mut values = Vec::<V>::with_capacity(COUNT);
        // Where to go on: a bucket's number for a hash, a key for a trie.
        let (mut place, mut next) = ([0_u64; 4], [0_u64; 4]);
        let mut first = true;
        loop {
            let mut attr = Batch {
                in_batch: if first { 0 } else { place.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(COUNT).expect("it is small"),
                map: self.fd.as_raw_fd(),
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: both vectors have room for `count` elements, of the types of the map; a place is a
            // key or a number, and the largest key has 20 bytes of the 32.
            let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let last = match &result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(_) => return result.map(drop),
            };
            let count = usize::try_from(attr.count).expect("a usize has 32 bits").min(COUNT);
            // SAFETY: it wrote `count` elements to each, both have room for `COUNT`, and any bytes
            // are a `K` or a `V`.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            each(&keys, &values);
            keys.clear();
            values.clear();
            if last {
                return Ok(());
            }
            place = next;
            first = false;
        }
    }

    /// As many of the keys as go at once: the kernel copies one element at a time, so the length only
    /// bounds one uninterrupted call.
    fn batch(&self, keys: &[K], values: u64) -> Batch {
        Batch {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values,
            count: u32::try_from(keys.len().min(16_384)).expect("it is small"),
            map: self.fd.as_raw_fd(),
            element_flags: 0,
            flags: 0,
        }
    }

    fn element(&self, key: &K, value: u64) -> Element {
        Element {
            map: self.fd.as_raw_fd(),
            padding: 0,
            key: std::ptr::from_ref(key) as u64,
            value,
            flags: 0,
        }
    }
}

mod plain {
    use ebpf_filter_common::{Policy, PortBlock, Steered, V4Prefix, V6Prefix};

    use super::Plain;

    // SAFETY: integers and arrays of bytes.
    unsafe impl Plain for u64 {}
    // SAFETY: as above.
    unsafe impl Plain for [u8; 4] {}
    // SAFETY: as above.
    unsafe impl Plain for [u8; 16] {}
    // SAFETY: `repr(C)`, only integers, and its size is the sum of its fields.
    unsafe impl Plain for Policy {}
    // SAFETY: as above.
    unsafe impl Plain for PortBlock {}
    // SAFETY: as above.
    unsafe impl Plain for Steered {}
    // SAFETY: as above.
    unsafe impl Plain for V4Prefix {}
    // SAFETY: as above.
    unsafe impl Plain for V6Prefix {}
}

/// What the kernel answers, as a fresh descriptor that is ours.
fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the call that returned it opened it for us, with close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The call itself.
///
/// # Safety
/// `attr` begins like the part of `union bpf_attr` that the command reads; what its pointers point to
/// lives until this returns and is as large as the command makes of it, from the map's key and value
/// size, a count in `attr`, or a terminated string.
unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the kernel stays within `attr`, whose size it is told, and the caller vouches for the
    // memory behind it.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
