//! The memory file: its rows, made to be written here or opened to be read.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::pread;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{JoinError, Key, WINDOW};

/// Rows of one file at most: 64 MiB.
pub const ROWS_MAX: usize = 1 << 20;

pub(super) const ROW_BYTES: usize = size_of::<Row>();

/// One count, on a cache line of its own. Zero is a free row.
#[repr(C, align(64))]
pub(super) struct Row {
    key: [AtomicU64; 2],
    pub(super) count: AtomicU32,
    /// How many of the owner's `Count`s stand for it; changed under the owner's lock.
    pub(super) holders: AtomicU32,
}

/// The rows of one file, mapped. Of another process's nothing but relaxed loads may be asked.
pub(super) struct Rows {
    rows: &'static [Row],
    file: OwnedFd,
}

/// The first words of the first row.
const MAGIC: u64 = u64::from_le_bytes(*b"ferrulec");

/// Of the rows, and of where a key is looked for.
const VERSION: u32 = 1;

/// Nobody can change the size, or write to it through the descriptor.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

// === impl Rows ===

impl Rows {
    pub(super) fn create(rows: usize) -> io::Result<Self> {
        if !(1..=ROWS_MAX).contains(&rows) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("ferrule-counts", flags | MemfdFlags::NOEXEC_SEAL)
            // A kernel before 6.3 does not know that it could be executed.
            .or_else(|_| memfd_create("ferrule-counts", flags))?;
        ftruncate(&file, bytes(rows))?;
        let created = Self::map(file, rows, ProtFlags::READ | ProtFlags::WRITE)?;
        let [magic, format] = &created.head().key;
        magic.store(MAGIC, Relaxed);
        format.store(u64::from(VERSION) << 32 | rows as u64, Relaxed);
        fcntl_add_seals(&created.file, SEALS)?;
        Ok(created)
    }

    /// Another process's file. Its size cannot change any more once it was looked at.
    pub(super) fn open(file: OwnedFd) -> Result<Self, JoinError> {
        let seals = fcntl_get_seals(&file).map_err(|_| JoinError::NotSealed)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(JoinError::NotSealed);
        }
        let size = fstat(&file).map_err(|error| JoinError::Map(error.into()))?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        if !(bytes(1)..=bytes(ROWS_MAX)).contains(&size) || !size.is_multiple_of(ROW_BYTES as u64) {
            return Err(JoinError::Size { bytes: size });
        }
        // Before it is mapped, and once: whoever wrote it could write something else later.
        let mut head = [0; 16];
        if !matches!(pread(&file, &mut head, 0), Ok(16)) {
            return Err(JoinError::Format);
        }
        let (words, _) = head.as_chunks::<8>();
        let [magic, format] = [words[0], words[1]].map(u64::from_le_bytes);
        let (version, rows) = ((format >> 32) as u32, format as u32);
        if magic != MAGIC {
            return Err(JoinError::Format);
        }
        if version != VERSION {
            return Err(JoinError::Version { theirs: version, ours: VERSION });
        }
        if bytes(rows as usize) != size {
            return Err(JoinError::Rows { rows, bytes: size });
        }
        Self::map(file, rows as usize, ProtFlags::READ).map_err(JoinError::Map)
    }

    fn map(file: OwnedFd, rows: usize, protection: ProtFlags) -> io::Result<Self> {
        #[allow(unsafe_code, reason = "what two processes count is a mapping of a memory file")]
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing. The file
        // has bytes(rows) bytes: `create` made it so, `open` looked after making sure that the size
        // cannot change, so no access is beyond its end. A mapping is aligned to a page, so for
        // rows, and any bytes are a valid Row, which is atomics only: the other process may change
        // them at any time. What is mapped to be read is read by relaxed loads of 8 bytes and less,
        // which std::sync::atomic allows for memory that cannot be written. The reference is
        // 'static within this module and `Held` only: it does not outlive this value, which
        // unmaps when it is dropped.
        let rows = unsafe {
            let length = (rows + 1) * ROW_BYTES;
            let start = mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, &file, 0)?;
            slice::from_raw_parts(start.cast::<Row>(), rows + 1)
        };
        Ok(Self { rows, file })
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        let inode = |file| fstat(file).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        inode(&self.file) == inode(&other.file)
    }

    /// Of the first row as well.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Memory that it takes: pages with a row in use, now or once.
    pub(super) fn bytes(&self) -> u64 {
        fstat(&self.file).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Where `key` may be.
    pub(super) fn window(&self, key: Key) -> impl Iterator<Item = &'static Row> {
        let rows = &self.rows[1..];
        let start = start(key, rows.len());
        (0..WINDOW.min(rows.len())).map(move |step| &rows[(start + step) % rows.len()])
    }

    /// The count of `key`; 0 when it has none. `there` remembers where it was.
    pub(super) fn count(&self, key: Key, there: &AtomicU32) -> u32 {
        let step = there.load(Relaxed);
        let remembered = self.window(key).nth(step as usize).filter(|row| row.is(key));
        let row = remembered.or_else(|| {
            let (step, row) = self.window(key).enumerate().find(|(_, row)| row.is(key))?;
            there.store(step as u32, Relaxed);
            Some(row)
        });
        // A row that changes hands in this moment may show another's count for an instant: at
        // worst somebody is refused once.
        row.map_or(0, |row| row.count.load(Relaxed))
    }

    fn head(&self) -> &Row {
        &self.rows[0]
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let start = self.rows.as_ptr().cast_mut().cast();
        #[allow(unsafe_code, reason = "what two processes count is a mapping of a memory file")]
        // SAFETY: exactly the mapping that `map` made, and nobody refers to it any longer: rows are
        // handed out to whoever holds an Arc of the Counts that own this.
        let unmapped = unsafe { munmap(start, self.rows.len() * ROW_BYTES) };
        debug_assert!(unmapped.is_ok(), "our own mapping");
    }
}

// === impl Row ===

impl Row {
    pub(super) fn key(&self) -> Key {
        Key([self.key[0].load(Relaxed), self.key[1].load(Relaxed)])
    }

    pub(super) fn is(&self, key: Key) -> bool {
        self.key() == key
    }

    pub(super) fn is_free(&self) -> bool {
        self.key() == Key([0, 0])
    }

    /// Before anything is counted here: who adds orders it before what the other process reads.
    pub(super) fn take(&self, key: Key) {
        let Key([first, second]) = key;
        self.count.store(0, Relaxed);
        self.key[0].store(first, Relaxed);
        self.key[1].store(second, Relaxed);
    }

    pub(super) fn clear(&self) {
        self.key.iter().for_each(|word| word.store(0, Relaxed));
    }
}

/// Of a file with so many rows, and the first one.
fn bytes(rows: usize) -> u64 {
    ((rows + 1) * ROW_BYTES) as u64
}

/// The row, of `rows`, that a key points to.
fn start(Key([_, word]): Key, rows: usize) -> usize {
    ((u128::from(word) * rows as u128) >> 64) as usize
}

#[cfg(test)]
mod tests;
