//! A folder of app files, watched.
//!
//! The kernel says which file changed, and a slow look at everything heals what it did not say. A
//! thread of its own does the reading, so that neither a hundred thousand files nor a hanging
//! network mount hold up anybody.

mod files;
pub(crate) mod scan;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use telemetry::ledger::scope::INVENTORY;
use tokio::sync::mpsc;

use crate::snapshot::AppName;

use super::{Notice, Source};
use scan::{Limits, Scanner, is_app_file};

/// A folder that is watched until this is dropped.
pub struct Directory {
    notices: mpsc::Receiver<Notice>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<()>>,
}

/// What the watcher says to the thread that reads.
#[derive(Default)]
struct Signals {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Names of files that were touched, at most [`TOUCHED_MAX`].
    touched: BTreeSet<String>,
    /// More was touched than is listed.
    everything: bool,
    stop: bool,
    /// Rises with every signal.
    signals: u64,
}

/// Notices ahead of the listener; the thread waits when it is slower.
const NOTICES_MAX: usize = 256;

/// Files listed as touched; beyond that everything is looked at, which costs about as much.
const TOUCHED_MAX: usize = 1_000;

/// A change is read once nothing has happened for this long: editors write in several steps.
const QUIET: Duration = Duration::from_millis(20);

/// … but no later than this after it was noticed.
const QUIET_MAX: Duration = Duration::from_millis(80);

/// Time between looks at everything.
const RESCAN: Duration = Duration::from_secs(5);

/// … when the kernel will not watch the folder.
const RESCAN_UNWATCHED: Duration = Duration::from_millis(500);

/// Looking at everything takes at most one part in this of the thread's time.
const RESCAN_SHARE: u32 = 20;

// === impl Directory ===

impl Directory {
    /// Watches `folder`. `known` is what each file is known to have said before: an app whose file
    /// is gone is then said to be gone.
    pub fn watch(
        folder: &Path,
        known: impl IntoIterator<Item = (Arc<str>, AppName)>,
    ) -> std::io::Result<Self> {
        Self::watch_limited(folder, Limits::default(), known)
    }

    fn watch_limited(
        folder: &Path,
        limits: Limits,
        known: impl IntoIterator<Item = (Arc<str>, AppName)>,
    ) -> std::io::Result<Self> {
        let (sender, notices) = mpsc::channel(NOTICES_MAX);
        let signals = Arc::new(Signals::default());
        let mut watched = Watched {
            folder: folder.to_owned(),
            scanner: Scanner::new(folder, limits, known),
            watch: None,
            identity: None,
            signals: signals.clone(),
            notices: sender,
        };
        let thread =
            std::thread::Builder::new().name("ferrule-source".to_owned()).spawn(move || {
                let ControlFlow::Break(()) = watched.run();
            })?;
        Ok(Self { notices, signals, thread: Some(thread) })
    }
}

impl Source for Directory {
    async fn next(&mut self) -> Option<Notice> {
        self.notices.recv().await
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.notices.close(); // a thread that waits for room in the channel ends now
        self.signals.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watches the apps panicked");
        }
    }
}

// === impl Watched ===

/// What the thread owns.
struct Watched {
    folder: PathBuf,
    scanner: Scanner,
    watch: Option<RecommendedWatcher>,
    /// Device and inode of the folder that `watch` is on.
    identity: Option<(u64, u64)>,
    signals: Arc<Signals>,
    notices: mpsc::Sender<Notice>,
}

impl Watched {
    /// Looks at everything, then at what is touched, until nobody listens any more.
    fn run(&mut self) -> ControlFlow<(), Infallible> {
        loop {
            let started = Instant::now();
            // A watch is on a folder, not on its name: another one in its place needs another.
            if self.watch.is_none() || scan::identity(&self.folder) != self.identity {
                self.rewatch(); // before the look, so that nothing falls between the two
            }
            let (signals, notices) = (&self.signals, &self.notices);
            let working = INVENTORY.enter();
            let readable = self.scanner.everything(&mut |notice| say(signals, notices, notice))?;
            drop(working);
            if !readable {
                self.watch = None; // whatever comes in its place, even under the same inode
            }
            let pause = if self.watch.is_some() { RESCAN } else { RESCAN_UNWATCHED };
            let next = Instant::now() + pause.max(started.elapsed() * RESCAN_SHARE);
            self.look_at_what_is_touched(next)?;
        }
    }

    /// Returns when it is time to look at everything.
    fn look_at_what_is_touched(&mut self, next: Instant) -> ControlFlow<()> {
        while let Some(names) = self.signals.wait(next)? {
            let (signals, notices) = (&self.signals, &self.notices);
            let _working = INVENTORY.enter();
            if self.scanner.some(&names, &mut |notice| say(signals, notices, notice))?.is_err() {
                break;
            }
        }
        ControlFlow::Continue(())
    }

    fn rewatch(&mut self) {
        self.identity = scan::identity(&self.folder);
        let signals = self.signals.clone();
        let watch = notify::recommended_watcher(move |event| signals.event(event));
        let watch = watch.and_then(|mut watch| {
            watch.watch(&self.folder, RecursiveMode::NonRecursive)?;
            Ok(watch)
        });
        self.watch = match watch {
            Ok(watch) => Some(watch),
            Err(error) => {
                let folder = self.folder.display();
                tracing::debug!(%folder, %error, "the folder of apps cannot be watched; it is looked at instead");
                None
            }
        };
    }
}

fn say(signals: &Signals, notices: &mpsc::Sender<Notice>, notice: Notice) -> ControlFlow<()> {
    if signals.lock().stop || notices.blocking_send(notice).is_err() {
        return ControlFlow::Break(());
    }
    ControlFlow::Continue(())
}

// === impl Signals ===

impl Signals {
    /// Runs on the watcher's thread, for every event.
    fn event(&self, event: notify::Result<notify::Event>) {
        let mut state = self.lock();
        match event {
            Ok(event) if !event.need_rescan() => {
                if !changes_something(event.kind) {
                    return; // our own reading makes events too
                }
                for path in event.paths {
                    let name = path.file_name().and_then(|name| name.to_str());
                    let name = name.filter(|name| is_app_file(name));
                    state.touched.extend(name.map(str::to_owned));
                }
                if state.touched.len() > TOUCHED_MAX {
                    state.touched.clear();
                    state.everything = true;
                }
            }
            // The kernel's queue was full, or the watch is broken: anything may have happened.
            Ok(_) | Err(_) => state.everything = true,
        }
        state.signals += 1;
        self.wake.notify_one();
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    /// Names that were touched, once it is quiet; `None` when everything is to be looked at, at
    /// the latest when it is `next`.
    fn wait(&self, next: Instant) -> ControlFlow<(), Option<BTreeSet<String>>> {
        let idle = |state: &mut State| !state.stop && !state.everything && state.touched.is_empty();
        let mut state = self.wait_while(self.lock(), next, idle);
        let latest = Instant::now() + QUIET_MAX;
        loop {
            if state.stop {
                return ControlFlow::Break(());
            }
            if state.touched.is_empty() && !state.everything {
                return ControlFlow::Continue(None); // the time has come
            }
            let before = state.signals;
            let quiet = (Instant::now() + QUIET).min(latest);
            state = self.wait_while(state, quiet, |state| !state.stop && state.signals == before);
            if state.signals == before || Instant::now() >= latest {
                let everything = std::mem::take(&mut state.everything);
                let touched = std::mem::take(&mut state.touched);
                return ControlFlow::Continue((!everything).then_some(touched));
            }
        }
    }

    fn wait_while<'s>(
        &'s self,
        state: MutexGuard<'s, State>,
        until: Instant,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'s, State> {
        let pause = until.saturating_duration_since(Instant::now());
        let waited = self.wake.wait_timeout_while(state, pause, condition);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// A panic elsewhere leaves a whole set, so the lock's poison means nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn changes_something(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests;
