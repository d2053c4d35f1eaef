//! Where another thread is at this moment: it is interrupted by a signal and walks its own stack.
//!
//! SIGURG, because its default is to be ignored (Go's runtime chose it for the same reason), and
//! with `SA_RESTART`, so that hardly a system call of the interrupted thread notices. The handler
//! follows frame pointers into a fixed buffer: it allocates nothing, takes no lock, and symbolises
//! nothing.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicUsize};
use std::time::Duration;

use tokio::time::Instant;

use crate::stack;

/// Most return addresses of one stack.
pub const FRAMES_MAX: usize = 64;

/// A thread that can be asked where it is, as long as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    id: libc::pid_t,
}

/// Return addresses, innermost first.
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    pcs: [usize; FRAMES_MAX],
    len: usize,
}

/// What the handler fills. There is one, because one thread asks, and one answer at a time.
static ANSWER: Answer = Answer {
    asked: AtomicI32::new(NOBODY),
    answered: AtomicI32::new(NOBODY),
    len: AtomicUsize::new(0),
    pcs: [const { AtomicUsize::new(0) }; FRAMES_MAX],
};

struct Answer {
    /// The thread whose turn it is; whoever interrupts others first takes it from `NOBODY`.
    asked: AtomicI32,
    answered: AtomicI32,
    len: AtomicUsize,
    pcs: [AtomicUsize; FRAMES_MAX],
}

const NOBODY: i32 = 0;

/// How often the answer is looked for.
const LOOK: Duration = Duration::from_micros(100);

// === impl Thread ===

impl Thread {
    /// The calling thread, from now on ready to be asked.
    pub fn current() -> Self {
        stack::prepare();
        Self { id: rustix::thread::gettid().as_raw_nonzero().get() }
    }

    /// One that made itself ready before and gave its number.
    pub(crate) fn of(id: libc::pid_t) -> Self {
        Self { id }
    }

    pub(crate) fn id(self) -> libc::pid_t {
        self.id
    }

    /// As the kernel knows it; empty once it has ended.
    pub fn name(self) -> String {
        let name = std::fs::read_to_string(format!("/proc/self/task/{}/comm", self.id));
        name.map(|name| name.trim_end().to_owned()).unwrap_or_default()
    }

    /// Whether it has ended.
    pub fn has_ended(self) -> bool {
        !signal(self.id, 0)
    }

    /// Interrupts the thread and returns where it was; `None` when it does not answer within
    /// `patience` (it is in the kernel, uninterruptibly, or has ended), or somebody else is asking.
    ///
    /// Needs [`install`]. The caller waits, so it must be a thread that may.
    pub fn stack(self, patience: Duration) -> Option<Stack> {
        ANSWER.asked.compare_exchange(NOBODY, self.id, AcqRel, Relaxed).ok()?;
        ANSWER.answered.store(NOBODY, Relaxed);
        let deadline = Instant::now() + patience;
        let mut taken = None;
        if interrupt(self.id) {
            while taken.is_none() && Instant::now() < deadline {
                if ANSWER.answered.load(Acquire) == self.id {
                    taken = Some(Stack::taken());
                } else {
                    std::thread::sleep(LOOK);
                }
            }
        }
        // A late answer finds that nobody asked, or a later question of the same thread, whose
        // answer it then is.
        ANSWER.asked.store(NOBODY, Release);
        taken
    }
}

// === impl Stack ===

impl Stack {
    fn taken() -> Self {
        let len = ANSWER.len.load(Relaxed).min(FRAMES_MAX);
        let mut pcs = [0; FRAMES_MAX];
        for (pc, answered) in pcs.iter_mut().zip(&ANSWER.pcs[..len]) {
            *pc = answered.load(Relaxed);
        }
        Self { pcs, len }
    }

    pub fn pcs(&self) -> &[usize] {
        &self.pcs[..self.len]
    }
}

/// Makes threads answer; once, before any is asked.
///
/// # Errors
///
/// When the kernel does not take the handler.
#[allow(unsafe_code, reason = "a handler of signals is a C function")]
pub fn install() -> io::Result<()> {
    stack::map(); // what is code; asked for here, because a handler must not
    // SAFETY: an all-zero sigaction is a valid one: no handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = answer as *const () as usize;
    // Not SA_ONSTACK: the walk believes only what lies between its own frame and the top of the
    // thread's stack, so it must run there.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is initialised, its handler has the signature that SA_SIGINFO asks for and is
    // async-signal-safe (see `answer`); the old action is not wanted.
    match unsafe { libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn interrupt(thread: libc::pid_t) -> bool {
    signal(thread, libc::SIGURG)
}

/// Sends a signal; 0 only asks whether the thread is there.
#[allow(unsafe_code, reason = "no library sends a signal to a thread by its id")]
fn signal(thread: libc::pid_t, signal: libc::c_int) -> bool {
    // SAFETY: a system call with numbers only; a thread that has ended makes it fail with ESRCH.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
    sent == 0
}

/// The handler. Async-signal-safe: a system call, a walk over this thread's own stack, atomics.
#[allow(unsafe_code, reason = "the interrupted registers lie behind a raw pointer")]
extern "C" fn answer(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    if ANSWER.asked.load(Acquire) != own {
        return; // somebody else's SIGURG, or an answer that comes too late
    }
    // SAFETY: with SA_SIGINFO the kernel passes a valid, aligned ucontext_t that lives until the
    // handler returns.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let [pc, frame] = registers(context);
    let mut pcs = [0; FRAMES_MAX];
    pcs[0] = pc;
    let len = 1 + stack::walk_from(frame, &mut pcs[1..]);
    for (to, from) in ANSWER.pcs.iter().zip(&pcs[..len]) {
        to.store(*from, Relaxed);
    }
    ANSWER.len.store(len, Relaxed);
    ANSWER.answered.store(own, Release);
}

/// Program counter and frame pointer.
#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> [usize; 2] {
    let registers = &context.uc_mcontext.gregs;
    [libc::REG_RIP, libc::REG_RBP].map(|register| registers[register as usize] as usize)
}

/// Program counter and frame pointer.
#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> [usize; 2] {
    [context.uc_mcontext.pc as usize, context.uc_mcontext.regs[29] as usize]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;

    static SPIN: AtomicBool = AtomicBool::new(true);

    #[inline(never)]
    fn a_poll_that_never_ends() {
        while SPIN.load(Relaxed) {
            std::hint::spin_loop();
        }
    }

    /// The size of a function is not known, but that of this one is less.
    fn is_in(function: fn(), pc: usize) -> bool {
        let start = function as usize;
        (start..start + 256).contains(&pc)
    }

    // One test, because one question is asked at a time.
    #[test]
    fn a_thread_says_where_it_is_while_it_hangs_and_nothing_once_it_has_ended() {
        install().unwrap();
        let (sender, receiver) = mpsc::channel();
        let hanging = std::thread::spawn(move || {
            sender.send(Thread::current()).unwrap();
            a_poll_that_never_ends();
        });
        let thread = receiver.recv().unwrap();
        let patience = Duration::from_secs(5);
        // It may be on its way there at first.
        let found = (0..1_000).any(|_| {
            let stack = thread.stack(patience).expect("it runs, so it answers");
            stack.pcs().iter().any(|pc| is_in(a_poll_that_never_ends, *pc)) && stack.pcs().len() > 3
        });
        assert!(found);
        assert!(!thread.has_ended());
        SPIN.store(false, Relaxed);
        hanging.join().unwrap();
        assert!(thread.has_ended());
        assert!(thread.stack(Duration::from_millis(50)).is_none());
        // A signal that nobody here sent is ignored.
        assert!(interrupt(Thread::current().id));
    }
}
