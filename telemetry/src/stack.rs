//! Where the current thread is, by following frame pointers.
//!
//! The whole program is compiled with frame pointers (`.cargo/config.toml`), so a stack is a linked
//! list in memory: no unwinding tables, no lock, no allocation. It may be walked inside the
//! allocator and in a signal handler.
//!
//! What keeps it from faulting on a frame of code that uses the register otherwise: a frame must lie
//! between the place of the walk and the top of this thread's stack, frames only go up, and every
//! return address must be in executable memory as it was mapped at the start ([`map`]).

mod modules;
mod raw;

use std::arch::asm;
use std::cell::Cell;

pub use modules::{Module, build_id, image, map, modules};
pub use raw::{Raw, offsets};

thread_local! {
    /// Address above the last byte of this thread's stack; 0: not asked yet; 1: not to be had.
    ///
    /// Constant and without a destructor, so reading it never allocates and works to the very end
    /// of the thread.
    static TOP: Cell<usize> = const { Cell::new(0) };
}

const UNKNOWN: usize = 1;

/// Longest stack that is believed; a top further away than this is another stack's.
const STACK_BYTES_MAX: usize = 1 << 30;

/// Asks for the limits of this thread's stack, which [`walk`] otherwise does at its first call.
///
/// In a signal handler only threads that have asked before can be walked.
pub fn prepare() {
    if TOP.get() == 0 {
        TOP.set(top_of_stack().unwrap_or(UNKNOWN));
    }
}

/// Writes return addresses into `pcs`, innermost first, and says how many.
///
/// The first one is in the caller of whoever called this.
#[inline(never)]
pub fn walk(pcs: &mut [usize]) -> usize {
    prepare();
    walk_from(frame_pointer(), pcs)
}

/// The same from the frame at `frame`: what an interrupted thread had in its frame pointer register.
///
/// Async-signal-safe. Writes nothing for threads that were never [`prepare`]d.
pub fn walk_from(frame: usize, pcs: &mut [usize]) -> usize {
    let top = TOP.get();
    let here = frame_pointer();
    // What lies between here and the top is stack in use, and mapped.
    if top <= here || top - here > STACK_BYTES_MAX {
        return 0;
    }
    let (mut frame, mut written) = (frame, 0);
    for pc in pcs {
        if frame < here || frame > top - 2 * size_of::<usize>() || frame % align_of::<usize>() != 0
        {
            break;
        }
        let [caller, returns_to] = read_frame(frame);
        if !modules::is_code(returns_to) {
            break;
        }
        *pc = returns_to;
        written += 1;
        if caller <= frame {
            break;
        }
        frame = caller;
    }
    written
}

/// The saved frame pointer and the return address of the frame at `frame`.
#[allow(unsafe_code, reason = "a stack is read where it lies")]
fn read_frame(frame: usize) -> [usize; 2] {
    // SAFETY: walk_from has checked that two words at `frame` are aligned and lie between a frame that
    // is running and the top of this thread's stack; that part is mapped, readable, and nobody else's.
    unsafe { (frame as *const [usize; 2]).read_volatile() }
}

#[allow(unsafe_code, reason = "no function of the library reads the register")]
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let frame: usize;
    // SAFETY: copies a register; touches neither memory nor stack nor flags.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags));
    }
    frame
}

#[allow(unsafe_code, reason = "the C library knows where it put a thread's stack")]
fn top_of_stack() -> Option<usize> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: pthread_self always names the caller, and getattr_np initialises the attributes.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut address, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes were initialised by the call above.
    let got = unsafe {
        libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut address, &raw mut size)
    };
    // SAFETY: as above; they are destroyed once.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    (got == 0).then(|| address as usize + size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn nested(depth: usize, pcs: &mut [usize]) -> usize {
        let walked = if depth == 0 { walk(pcs) } else { nested(depth - 1, pcs) };
        std::hint::black_box(walked)
    }

    #[test]
    fn a_stack_is_walked_to_the_depth_of_its_calls() {
        map();
        let walked = |depth| {
            let mut pcs = [0; 64];
            let n = nested(depth, &mut pcs);
            pcs[..n].to_vec()
        };
        let (shallow, deep) = (walked(1), walked(11));
        assert!(shallow.len() > 3, "{shallow:x?}");
        assert_eq!(deep.len(), shallow.len() + 10);
        assert!(deep.iter().all(|pc| modules::is_code(*pc)));
    }

    #[test]
    fn a_walk_ends_where_the_buffer_ends() {
        map();
        assert_eq!(nested(20, &mut [0; 5]), 5);
        assert_eq!(nested(20, &mut []), 0);
    }

    #[test]
    fn a_frame_pointer_that_is_none_reads_nothing() {
        map();
        prepare();
        let here = frame_pointer();
        let top = TOP.get();
        for frame in [0, 1, 8, here + 1, here - 4096, top, top - 8, usize::MAX, usize::MAX - 7] {
            assert_eq!(walk_from(frame, &mut [0; 8]), 0, "{frame:x}");
        }
        // A frame that leads to itself, or down, is the last.
        let mut fake = [0_usize; 2];
        fake[0] = (&raw const fake) as usize;
        fake[1] = a_stack_is_walked_to_the_depth_of_its_calls as fn() as usize;
        std::hint::black_box(&mut fake);
        assert_eq!(walk_from((&raw const fake) as usize, &mut [0; 8]), 1);
    }

    #[test]
    fn a_thread_that_never_asked_is_not_walked_from_outside() {
        map();
        std::thread::spawn(|| assert_eq!(walk_from(frame_pointer(), &mut [0; 8]), 0))
            .join()
            .expect("no fault");
    }

    #[test]
    fn threads_have_stacks_of_their_own() {
        map();
        let threads: Vec<_> =
            (0..8).map(|depth| std::thread::spawn(move || nested(depth, &mut [0; 64]))).collect();
        let walked: Vec<_> = threads.into_iter().map(|t| t.join().expect("no fault")).collect();
        assert!(walked.windows(2).all(|pair| pair[1] == pair[0] + 1), "{walked:?}");
    }
}
