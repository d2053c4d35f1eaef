//! Process 1 of a container: starts the node as its child, and stays what the container lives by while
//! nodes replace each other.
//!
//! A node that hands over to a successor ends, and process 1 must not end with it, or the kernel kills
//! the successor. So `ferrule run` as process 1 (or with `--init`) is this supervisor instead: it passes
//! signals on to the process that is the node at present, reaps whatever ends (a successor becomes its
//! child when its predecessor ends), and ends with the last of them, with its exit code. Who the node
//! is it hears as systemd does, by `MAINPID=` at the socket that `NOTIFY_SOCKET` names.
//!
//! It is one thread that waits, and knows nothing of the node's configuration.

mod family;
mod notify;

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, wait,
};
use telemetry::service::prepare_child;
use tokio::io::unix::AsyncFd;
use tokio::runtime::LocalOptions;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::Instant;

use self::family::{Family, Next};
use self::notify::Notify;

/// Why a node cannot be supervised.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("the supervisor's runtime cannot start")]
    Runtime(#[source] io::Error),
    #[error("signals cannot be heard")]
    Signals(#[source] io::Error),
    #[error("no folder can hold the socket on which the node says who it is")]
    Notify(#[source] io::Error),
    #[error("orphans cannot be adopted")]
    Adopt(#[source] io::Error),
    #[error("the node cannot be started")]
    Start(#[source] io::Error),
    #[error("the node cannot be followed")]
    Follow(#[source] io::Error),
}

/// Signals that are meant for the node. `SIGKILL` and `SIGSTOP` cannot be passed on.
const PASSED_ON: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2];

/// For so long after the end of a failed node its predecessor may say that it serves again.
///
/// It notices in an instant, because the channel between them ends; what is spent here is time without
/// a node, if there is nobody to take over.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// Whether this process is the first of its pid namespace.
pub fn is_process_1() -> bool {
    getpid().is_init()
}

/// Runs `node` and its successors to the end of the last one; its exit code, or 128 and the signal that
/// ended it.
///
/// # Errors
///
/// When the node cannot be started or followed.
pub fn supervise(node: Command) -> Result<u8, InitError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(InitError::Runtime)?
        .block_on(run(node))
}

async fn run(mut node: Command) -> Result<u8, InitError> {
    // Before there is a child that could end.
    let mut signals = Signals::hear().map_err(InitError::Signals)?;
    let notify = Notify::offer().map_err(InitError::Notify)?;
    if !is_process_1() {
        // Any process but 1 has to ask for its orphans.
        set_child_subreaper(Some(getpid())).map_err(|error| InitError::Adopt(error.into()))?;
    }
    prepare_child(&mut node).env("NOTIFY_SOCKET", notify.path());
    let child = node.spawn().map_err(InitError::Start)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let mut supervisor = Supervisor::new(pid.expect("a child has an id"))?;
    loop {
        let next = tokio::select! {
            heard = signals.next() => match heard {
                Heard::Child => supervisor.reap(),
                Heard::Passed(signal) => { supervisor.pass_on(signal); Next::Go }
            },
            announced = notify.main_pid() => { supervisor.follow(announced); Next::Go },
            Some(pid) = supervisor.ends.next() => supervisor.ended(pid),
            () = until(supervisor.deadline) => supervisor.give_up(),
        };
        match next {
            Next::Go => {}
            Next::Hope => supervisor.deadline = Some(Instant::now() + TAKE_OVER),
            Next::End(code) => return Ok(code),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The nodes there are, and how to reach them.
struct Supervisor {
    family: Family,
    /// A pidfd names a process even if its number is somebody else's by now.
    known: Vec<(Pid, Rc<AsyncFd<OwnedFd>>)>,
    ends: FuturesUnordered<LocalBoxFuture<'static, Pid>>,
    /// When the hope ends that a predecessor takes over again.
    deadline: Option<Instant>,
}

/// Nodes that are followed at the same time: two of an upgrade, and room for one that goes wrong.
const KNOWN_MAX: usize = 8;

// === impl Supervisor ===

impl Supervisor {
    fn new(node: Pid) -> Result<Self, InitError> {
        let mut supervisor = Self {
            family: Family::new(node),
            known: Vec::new(),
            ends: FuturesUnordered::new(),
            deadline: None,
        };
        supervisor.know(node).map_err(InitError::Follow)?;
        Ok(supervisor)
    }

    fn know(&mut self, pid: Pid) -> io::Result<()> {
        if self.known.iter().any(|(known, _)| *known == pid) {
            return Ok(());
        }
        if self.known.len() == KNOWN_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let pidfd = Rc::new(register(pidfd_open(pid, PidfdFlags::NONBLOCK)?)?);
        self.known.push((pid, pidfd.clone()));
        self.ends.push(Box::pin(async move {
            // It is readable when the process has ended, reaped or not.
            drop(pidfd.readable().await);
            pid
        }));
        Ok(())
    }

    /// Another process says that it is the node.
    fn follow(&mut self, pid: Pid) {
        if self.family.main() == Some(pid) {
            return;
        }
        match self.know(pid) {
            Ok(()) => {
                tracing::info!(pid = pid.as_raw_pid(), "another process is the node");
                self.family.follow(pid);
                self.deadline = None;
            }
            Err(error) => {
                tracing::warn!(pid = pid.as_raw_pid(), %error, "a new node cannot be followed");
            }
        }
    }

    fn pass_on(&self, signal: Signal) {
        for pid in self.family.addressees() {
            let Some((_, pidfd)) = self.known.iter().find(|(known, _)| *known == pid) else {
                continue;
            };
            if let Err(error) = pidfd_send_signal(&**pidfd, signal) {
                tracing::debug!(pid = pid.as_raw_pid(), %error, "a signal cannot be passed on");
            }
        }
    }

    /// Takes note of every child that has ended, whoever's it was first.
    fn reap(&mut self) -> Next {
        let mut next = Next::Go;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            next = next.and_then(self.forget(pid, exit_code(status)));
        }
        next
    }

    /// A node has ended; if it was its parent that reaped it, nobody here knows how.
    fn ended(&mut self, pid: Pid) -> Next {
        let next = self.reap();
        next.and_then(self.forget(pid, None))
    }

    fn forget(&mut self, pid: Pid, code: Option<u8>) -> Next {
        self.known.retain(|(known, _)| *known != pid);
        self.family.ended(pid, code)
    }

    /// Nobody took over from a node that failed. What is left of its predecessor accepts nothing, and
    /// keeps the next start waiting.
    fn give_up(&self) -> Next {
        self.pass_on(Signal::KILL);
        Next::End(self.family.exit_code())
    }
}

#[expect(deprecated, reason = "its successor is unsafe code; an OwnedFd keeps its descriptor")]
fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// As a shell has it.
fn exit_code(status: WaitStatus) -> Option<u8> {
    let code = match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status()?, // or it was only stopped
    };
    Some(u8::try_from(code).unwrap_or(u8::MAX))
}

/// What comes by signal.
enum Heard {
    Child,
    Passed(Signal),
}

struct Signals {
    child: unix::Signal,
    passed_on: [(Signal, unix::Signal); PASSED_ON.len()],
}

// === impl Signals ===

impl Signals {
    fn hear() -> io::Result<Self> {
        let hear = |signal: Signal| unix::signal(SignalKind::from_raw(signal.as_raw()));
        let [a, b, c, d, e, f] =
            PASSED_ON.map(|signal| Ok::<_, io::Error>((signal, hear(signal)?)));
        Ok(Self { child: unix::signal(SignalKind::child())?, passed_on: [a?, b?, c?, d?, e?, f?] })
    }

    /// The next signal. Cancel safe: what is not taken is given the next time.
    async fn next(&mut self) -> Heard {
        poll_fn(|context| {
            // Before children are counted: who is told to stop has not been missed then.
            for (signal, heard) in &mut self.passed_on {
                if heard.poll_recv(context).is_ready() {
                    return Poll::Ready(Heard::Passed(*signal));
                }
            }
            self.child.poll_recv(context).map(|_| Heard::Child)
        })
        .await
    }
}
