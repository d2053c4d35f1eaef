//! What `/requests` says: every connection and request, what it waits for, and for how long.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use telemetry::work::{self, Board};

/// The page, longest wait first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    pub lines: Vec<Line>,
    /// Further ones that this page leaves out.
    pub more: u64,
    /// Since the start, how many found the list full.
    pub unlisted: u64,
}

/// One connection or request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub kind: String,
    /// Absent until it is known.
    pub app: Option<String>,
    pub state: String,
    pub waiting_seconds: f64,
    pub age_seconds: f64,
    /// Since its task last looked at it: what a peer sends or a deadline makes it do.
    pub quiet_seconds: f64,
    /// Waits for longer than this should take.
    pub stuck: bool,
    pub worker: usize,
    /// 32 hexadecimal digits; absent when it has no record.
    pub trace: Option<String>,
}

/// Lines of one page.
const LINES_MAX: usize = 1_000;

// === impl Requests ===

impl Requests {
    /// Reads the board; `apps` gives the names of what it knows as numbers.
    pub fn read(board: &Board, apps: &HashMap<u32, String>) -> Self {
        let all = board.lines(usize::MAX);
        let more = all.len().saturating_sub(LINES_MAX) as u64;
        let lines = all.iter().take(LINES_MAX).map(|line| Line::new(line, apps)).collect();
        Self { lines, more, unlisted: board.unlisted() }
    }
}

// === impl Line ===

impl Line {
    fn new(line: &work::Line, apps: &HashMap<u32, String>) -> Self {
        Self {
            kind: line.kind.as_str().to_owned(),
            app: line.app.and_then(|app| apps.get(&app).cloned()),
            state: line.state.as_str().to_owned(),
            waiting_seconds: line.waiting.as_secs_f64(),
            age_seconds: line.age.as_secs_f64(),
            quiet_seconds: line.quiet.as_secs_f64(),
            stuck: line.state.expected().is_some_and(|expected| line.waiting > expected),
            worker: line.worker,
            trace: (line.trace != 0).then(|| format!("{:032x}", line.trace)),
        }
    }
}
