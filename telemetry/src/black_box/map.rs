//! The mapped file as words, and writing a slot so that a reader can tell whole from half.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release, fence};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::layout::{Area, FILE_BYTES, WORDS};

/// The words of a file of our own making, shared with the kernel's page cache: what is stored here
/// is on its way to the disk whatever becomes of this process.
#[derive(Debug)]
pub(super) struct Map {
    words: &'static [AtomicU64],
    /// Holds the lock that says the file's writer is alive.
    file: File,
}

/// Writes one slot word by word; what does not fit is left out.
pub(super) struct Slot<'a> {
    words: &'a [AtomicU64],
    next: usize,
}

impl Map {
    /// Whether it is the file of this device and number.
    pub(super) fn is_of(&self, device: u64, inode: u64) -> bool {
        let own = self.file.metadata();
        own.is_ok_and(|own| (own.dev(), own.ino()) == (device, inode))
    }

    /// Reserves the blocks of `file` and maps what is used of it. All zero at first.
    pub(super) fn create(file: File) -> io::Result<Self> {
        let bytes = FILE_BYTES as u64;
        // Reserved now: a full disk would otherwise be found out by a SIGBUS at a store.
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(&file)?,
            Err(error) => return Err(error.into()),
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Populated: a first store must not wait for the file system.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        #[allow(unsafe_code, reason = "the black box is a mapping, written by plain stores")]
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing. It is
        // WORDS * 8 bytes long, which the file has (reserved above); a mapping is page-aligned, so
        // aligned for u64, and zero is a valid AtomicU64. The reference is 'static within this
        // type only, which unmaps when it is dropped and hands it out no longer than it lives.
        // Another process that maps the file can change words, which atomics allow for; one that
        // truncates it makes a store fault, as with any mapping of a file one does not own.
        let words = unsafe {
            let start = mmap(ptr::null_mut(), WORDS * 8, protection, flags, &file, 0)?;
            slice::from_raw_parts(start.cast::<AtomicU64>(), WORDS)
        };
        Ok(Self { words, file })
    }

    pub(super) fn store(&self, word: usize, value: u64) {
        self.words[word].store(value, Relaxed);
    }

    /// Raises a word, whoever else does.
    pub(super) fn raise(&self, word: usize, value: u64) {
        self.words[word].fetch_max(value, Relaxed);
    }

    pub(super) fn store_text(&self, (word, words): (usize, usize), text: &str) {
        Slot { words: &self.words[word..word + words], next: 0 }.text(text, words);
    }

    /// Orders what was stored before what is stored from here on.
    pub(super) fn seal(&self) {
        fence(Release);
    }

    /// Writes record number `sequence` of a ring. Its first word is that number plus one, stored
    /// last: 0 says that the slot is being written, and was not finished if that is found later.
    pub(super) fn record(&self, area: Area, sequence: u64, write: impl FnOnce(&mut Slot<'_>)) {
        let start = area.slot(sequence);
        let words = &self.words[start..start + area.words];
        words[0].store(0, Relaxed);
        fence(Release);
        write(&mut Slot { words, next: 1 });
        words[0].store(sequence + 1, Release);
    }

    /// Says that the slot holds nothing.
    pub(super) fn clear(&self, area: Area, slot: usize) {
        self.words[area.slot(slot as u64)].store(0, Relaxed);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "the black box is a mapping, written by plain stores")]
        // SAFETY: exactly the mapping that `create` made, and nobody can refer to it any longer:
        // `words` is private and borrowed from `self` only.
        let unmapped = unsafe { munmap(self.words.as_ptr().cast_mut().cast(), WORDS * 8) };
        debug_assert!(unmapped.is_ok(), "our own mapping");
    }
}

impl Slot<'_> {
    pub(super) fn word(&mut self, value: u64) {
        if let Some(word) = self.words.get(self.next) {
            word.store(value, Relaxed);
            self.next += 1;
        }
    }

    pub(super) fn words<const N: usize>(&mut self, values: [u64; N]) {
        for value in values {
            self.word(value);
        }
    }

    /// A text in `words` words: its length, then its bytes, as far as they fit.
    pub(super) fn text(&mut self, text: &str, words: usize) {
        let end = text.floor_char_boundary((words - 1) * 8);
        let bytes = &text.as_bytes()[..end];
        self.word(bytes.len() as u64);
        let mut chunks = bytes.chunks(8);
        for _ in 1..words {
            let mut word = [0; 8];
            let chunk = chunks.next().unwrap_or_default();
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    /// A stack: the number of its frames, then their return addresses.
    pub(super) fn stack(&mut self, pcs: &[u64]) {
        self.word(pcs.len() as u64);
        pcs.iter().for_each(|pc| self.word(*pc));
    }
}

/// For file systems that cannot reserve.
fn write_zeros(file: &File) -> io::Result<()> {
    let zeros = [0; 64 * 1024];
    for part in 0..FILE_BYTES / zeros.len() {
        rustix::io::pwrite(file, &zeros, (part * zeros.len()) as u64)?;
    }
    Ok(())
}
