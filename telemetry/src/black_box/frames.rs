//! The stack of the calling thread as return addresses, read by following frame pointers.
//!
//! Safe in the allocator and in a panic: nothing is allocated or locked, and nothing can fault,
//! because the stack is not read through pointers but through `/proc/self/mem`, where the kernel
//! answers an address that is not there with an error. That costs a system call per 4 KiB of stack
//! (some 10 µs for a deep one), which is fine for what is written a few hundred times a second at
//! the very most. Frames are there because everything is built with frame pointers
//! (`.cargo/config.toml`); code without them ends the walk or leaves out its callers.

use std::fs::File;

use rustix::io::pread;

use super::layout::FRAMES_MAX;
use crate::stack;

/// Return addresses, innermost first.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Frames {
    pcs: [u64; FRAMES_MAX],
    depth: usize,
}

/// A frame is at least a saved frame pointer and a return address.
const FRAME_BYTES: u64 = 16;

/// Nothing is mapped below; a frame pointer there was used as an ordinary register.
const LOWEST_ADDRESS: u64 = 0x1_0000;

const WINDOW_BYTES: usize = 4096;

impl Frames {
    /// Walks up from the caller; `memory` is `/proc/self/mem`.
    #[inline(never)]
    pub(super) fn walk(memory: &File) -> Self {
        Self::from(memory, stack::frame_pointer() as u64)
    }

    pub(super) fn pcs(&self) -> &[u64] {
        &self.pcs[..self.depth]
    }

    fn from(memory: &File, mut frame: u64) -> Self {
        let mut frames = Self { pcs: [0; FRAMES_MAX], depth: 0 };
        let mut window = Window { bytes: [0; WINDOW_BYTES], start: 0, length: 0 };
        while frames.depth < FRAMES_MAX && frame >= LOWEST_ADDRESS && frame.is_multiple_of(8) {
            let Some([caller, pc]) = window.frame(memory, frame) else { break };
            if pc < LOWEST_ADDRESS {
                break;
            }
            frames.pcs[frames.depth] = pc;
            frames.depth += 1;
            // The stack grows down, so a caller's frame lies above: anything else is no frame.
            if caller < frame + FRAME_BYTES {
                break;
            }
            frame = caller;
        }
        frames
    }
}

/// A part of the stack, as read.
struct Window {
    bytes: [u8; WINDOW_BYTES],
    start: u64,
    length: u64,
}

impl Window {
    /// The saved frame pointer and return address at `frame`.
    fn frame(&mut self, memory: &File, frame: u64) -> Option<[u64; 2]> {
        if frame < self.start || frame.checked_add(FRAME_BYTES)? > self.start + self.length {
            // Up to the stack's end the kernel reads what there is.
            self.length = pread(memory, &mut self.bytes[..], frame).ok()? as u64;
            self.start = frame;
        }
        let at = usize::try_from(frame - self.start).ok()?;
        let word = |at: usize| {
            let bytes = self.bytes[..self.length as usize].get(at..at + 8)?;
            Some(u64::from_ne_bytes(bytes.try_into().ok()?))
        };
        Some([word(at)?, word(at + 8)?])
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    fn memory() -> File {
        File::open("/proc/self/mem").expect("a process may read itself")
    }

    #[inline(never)]
    fn deep(memory: &File, depth: u32) -> Frames {
        if depth == 0 {
            return black_box(Frames::walk(memory));
        }
        black_box(deep(memory, black_box(depth - 1)))
    }

    fn is_within(pc: u64, function: usize) -> bool {
        (function as u64..function as u64 + 1024).contains(&pc)
    }

    #[test]
    fn every_caller_is_in_the_stack() {
        let frames = deep(&memory(), 5);
        let start = deep as fn(&File, u32) -> Frames as usize;
        let found = frames.pcs().iter().filter(|pc| is_within(**pc, start)).count();
        assert!((5..=6).contains(&found), "{found} of 6 in {frames:x?}");
    }

    #[test]
    fn a_deeper_stack_is_cut_at_its_inner_end() {
        let frames = deep(&memory(), 200);
        assert_eq!(frames.pcs().len(), FRAMES_MAX);
    }

    #[test]
    fn a_frame_pointer_that_points_nowhere_ends_the_walk() {
        for frame in [0, 1, 8, LOWEST_ADDRESS, 0xdead_beef_0000, u64::MAX - 7, u64::MAX - 15] {
            assert_eq!(Frames::from(&memory(), frame).pcs(), [0; 0], "{frame:x}");
        }
        // A loop: a frame that names itself as its caller.
        let mut words = [0_u64, 0x40_0000];
        let address = words.as_ptr() as u64;
        words[0] = address;
        assert_eq!(Frames::from(&memory(), black_box(&words).as_ptr() as u64).pcs(), [0x40_0000]);
    }
}
