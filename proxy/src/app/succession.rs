//! Which generation of the node this process is, and what it knows of the other one.
//!
//! There is one other at most: a successor that is coming, or a predecessor that is going. Commands
//! and signals ask for an upgrade here; [`super::Node`] carries it out, one at a time.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use telemetry::metrics::Registry;
use tokio::sync::mpsc;

use crate::admin::status::Generation;
use crate::admin::upgrade::{Line, Lines, Outcome};
use crate::handoff::manifest::Draining;
use crate::handoff::predecessor::Start;
use crate::metrics::catalogue;

/// Shared by whoever asks and whoever carries it out.
pub(super) struct Succession {
    generation: u64,
    /// Absent where the node shares its process.
    start: Option<Start>,
    asks: mpsc::Sender<Ask>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Somebody's upgrade is under way.
    is_busy: bool,
    is_ending: bool,
    other: Option<Generation>,
}

/// One upgrade that was asked for.
pub(super) struct Ask {
    pub(super) start: Start,
    lines: mpsc::Sender<Line>,
    succession: Arc<Succession>,
}

/// More than there are in an upgrade: whoever reads slowly still gets all.
const LINES_MAX: usize = 64;

// === impl Succession ===

impl Succession {
    /// The first generation is 1.
    pub(super) fn new(generation: u64, start: Option<Start>) -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(1);
        let state = Mutex::default();
        (Arc::new(Self { generation, start, asks, state }), receiver)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn color(&self) -> &'static str {
        color(self.generation)
    }

    pub(super) fn export(&self, registry: &Registry) {
        export(self.generation, registry);
    }

    /// The other process of the node, while there is one.
    pub(super) fn other(&self) -> Option<Generation> {
        self.state.lock().other.clone()
    }

    /// While there are two, both have their line in the metrics.
    pub(super) fn set_other(&self, other: Option<Generation>, registry: &Registry) {
        let mut state = self.state.lock();
        match (&state.other, &other) {
            (_, Some(other)) => export(other.generation, registry),
            (Some(gone), None) => registry.forget("color", color(gone.generation)),
            (None, None) => {}
        }
        state.other = other;
    }

    /// How the predecessor does.
    pub(super) fn predecessor_drains(&self, draining: Draining) {
        if let Some(other) = &mut self.state.lock().other {
            other.is_draining(draining);
        }
    }

    /// The node will end, so nobody takes over any more.
    pub(super) fn end(&self) {
        self.state.lock().is_ending = true;
    }

    /// Starts to replace this process by `binary`, or by the one it was started from.
    ///
    /// # Errors
    ///
    /// A sentence, when it cannot be done now.
    pub(super) fn ask(self: &Arc<Self>, binary: Option<PathBuf>) -> Result<Lines, String> {
        let mut start =
            self.start.clone().ok_or("this node shares its process and cannot be replaced")?;
        if let Some(binary) = binary {
            start.program = binary;
        }
        let mut state = self.state.lock();
        if state.is_ending {
            return Err("the node is about to end".to_owned());
        }
        if state.is_busy {
            return Err("another upgrade is under way".to_owned());
        }
        if let Some(other) = &state.other {
            return Err(format!(
                "generation {} (pid {}) still drains {} connections, for at most {} s",
                other.generation, other.pid, other.connections, other.seconds_left
            ));
        }
        let (lines, receiver) = mpsc::channel(LINES_MAX);
        let ask = Ask { start, lines, succession: self.clone() };
        self.asks.try_send(ask).map_err(|_| "another upgrade is under way")?;
        state.is_busy = true;
        Ok(receiver)
    }
}

/// One of two, by turns, so that the lines of two generations differ.
fn color(generation: u64) -> &'static str {
    if generation % 2 == 1 { "blue" } else { "green" }
}

fn export(generation: u64, registry: &Registry) {
    let value = generation as f64;
    catalogue::GENERATION.gauge_read_in(registry, &[color(generation)], move || value);
}

// === impl Ask ===

impl Ask {
    /// Nobody has to read what happens.
    pub(super) fn tell(&self, line: impl Into<Line>) {
        drop(self.lines.try_send(line.into()));
    }

    pub(super) fn failed(self, reason: String, configuration: bool) {
        self.tell(Outcome::Failed { reason, configuration });
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        self.succession.state.lock().is_busy = false;
    }
}

// === impl Generation ===

impl Generation {
    fn is_draining(&mut self, draining: Draining) {
        let Draining { connections, requests, seconds_left } = draining;
        self.connections = connections;
        self.requests_in_flight = requests;
        self.seconds_left = seconds_left;
    }
}
