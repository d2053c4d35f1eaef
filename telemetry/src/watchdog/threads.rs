//! Every watched thread: its pulse is taken each tick, and who does not come back is reported with its
//! stack, first as addresses, then with names.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::RuntimeMetrics;
use tokio::time::Instant;

use super::{Config, Finding, Pulse, Watchdog, capture};
use crate::lock::{self, Held};
use crate::stack;
use crate::symbols::child;

/// What a thread with a runtime shows to whoever watches it.
pub struct Watched {
    pub name: String,
    pub runtime: RuntimeMetrics,
    pub thread: capture::Thread,
}

/// The threads of a process. For one thread that ticks and may wait for a stack, some ms at worst.
pub struct Threads {
    watchdog: Watchdog,
    threads: Vec<Watched>,
    blocked: Duration,
    /// Holdings of locks that were reported and may last.
    reported: Vec<lock::Turn>,
    /// Looks up names; there is one at a time, and it ends by its own deadline.
    naming: Option<JoinHandle<()>>,
}

/// How long a thread that is asked for its stack may take; it answers at once or not at all.
const PATIENCE: Duration = Duration::from_millis(20);

// === impl Threads ===

impl Threads {
    /// Needs [`capture::install`].
    pub fn new(config: Config, threads: Vec<Watched>, now: Instant) -> Self {
        let blocked = config.blocked;
        let watchdog = Watchdog::new(config, threads.len(), now);
        Self { watchdog, threads, blocked, reported: Vec::new(), naming: None }
    }

    /// Takes every pulse, reports what there is to report, and says what is left to be done about it.
    pub fn look(&mut self, now: Instant, mut act: impl FnMut(Finding)) {
        for thread in 0..self.threads.len() {
            let Watched { runtime, thread: asked, .. } = &self.threads[thread];
            let mut pulse = Pulse::of(runtime);
            // A thread that has ended rests. Asked only of who seems to hang, for it is a system call.
            if self.watchdog.would_report(thread, pulse, now) && asked.has_ended() {
                pulse.parked = true;
            }
            if let Some(finding) = self.watchdog.observe(thread, pulse, now) {
                self.report(finding);
                act(finding);
            }
        }
    }

    /// Reports every lock that is held for as long as a thread may take for a poll, each holding once;
    /// says how many those were.
    pub fn look_at_locks(&mut self) -> u64 {
        let held: Vec<Held> = lock::held_for(self.blocked).collect();
        self.reported.retain(|turn| held.iter().any(|held| held.turn == *turn));
        let mut found = 0;
        for held in held {
            if self.reported.contains(&held.turn) {
                continue;
            }
            self.reported.push(held.turn);
            found += 1;
            let Held { lock, thread, lasted, .. } = held;
            let name = thread.name();
            let taken = thread.stack(PATIENCE);
            let pcs = taken.as_ref().map_or(&[][..], capture::Stack::pcs);
            tracing::error!(
                lock,
                thread = name,
                milliseconds = lasted.as_millis() as u64,
                build = stack::build_id(),
                stack = %stack::Raw(pcs),
                "a lock is held for too long"
            );
            self.name(name, pcs);
        }
        found
    }

    /// For how long the one that hangs longest has not come back.
    pub fn longest(&self, now: Instant) -> Duration {
        self.watchdog.longest(now)
    }

    fn report(&mut self, finding: Finding) {
        let name = |thread: usize| self.threads[thread].name.as_str();
        match finding {
            Finding::Blocked { worker, lasted } => {
                let taken = self.threads[worker].thread.stack(PATIENCE);
                let pcs = taken.as_ref().map_or(&[][..], capture::Stack::pcs);
                // Names come from a child that reads the binary; nothing is symbolised in here.
                tracing::error!(
                    thread = name(worker),
                    milliseconds = lasted.as_millis() as u64,
                    build = stack::build_id(),
                    stack = %stack::Raw(pcs),
                    "a thread does not come back from a poll"
                );
                self.name(name(worker).to_owned(), pcs);
            }
            Finding::Recovered { worker, lasted } => {
                let lasted = lasted.as_millis() as u64;
                tracing::warn!(thread = name(worker), milliseconds = lasted, "a thread came back");
            }
            Finding::Drain { worker, lasted } => {
                let seconds = lasted.as_secs();
                tracing::error!(thread = name(worker), seconds, "a thread hangs: draining");
            }
            Finding::Abort { worker, lasted } => {
                let seconds = lasted.as_secs();
                tracing::error!(
                    thread = name(worker),
                    seconds,
                    "a thread hangs for good: aborting"
                );
            }
        }
    }

    /// Logs the names of a stack, once a child has found them. One stack at a time: who hangs often
    /// is known after the first.
    fn name(&mut self, thread: String, pcs: &[usize]) {
        let Some((at, returns)) = pcs.split_first() else { return };
        if self.naming.as_ref().is_some_and(|naming| !naming.is_finished()) {
            return;
        }
        let offsets = stack::offsets(*at, returns);
        let run = move || {
            for form in [child::Form::Quick, child::Form::Full] {
                let program = Path::new("/proc/self/exe");
                let found = match child::ask_for(form, program, &[child::COMMAND], &offsets) {
                    Ok(found) => found,
                    Err(error) => return tracing::warn!(%error, "a stack stays without names"),
                };
                let calls = offsets.iter().filter_map(|offset| found.get(offset)).flatten();
                let names: Vec<_> = calls.map(|call| call.function.as_str()).collect();
                let stack = names.join(" < ");
                match form {
                    child::Form::Quick => tracing::error!(thread, stack, "where a thread hangs"),
                    child::Form::Full => {
                        tracing::warn!(thread, stack, "where a thread hung, with what was inlined");
                    }
                }
            }
        };
        self.naming = std::thread::Builder::new().name("names".to_owned()).spawn(run).ok();
    }
}
