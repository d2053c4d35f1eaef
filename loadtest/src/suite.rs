//! What a suite hands to the report: verdicts, pictures, tables.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::verdict::{Check, Verdict};

/// One suite of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Suite {
    pub name: &'static str,
    /// A few sentences: what is done, and how the figures are to be read.
    pub about: String,
    pub parts: Vec<Part>,
    pub seconds: f64,
    #[serde(skip)]
    began: Instant,
}

/// One profile, fault, attack or scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub name: String,
    pub about: String,
    pub checks: Vec<Check>,
    pub plots: Vec<Plot>,
    pub tables: Vec<Table>,
    pub seconds: f64,
    #[serde(skip)]
    began: Instant,
}

/// Lines over one axis.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plot {
    pub title: String,
    pub x: &'static str,
    pub y: &'static str,
    pub lines: Vec<Line>,
    /// Where something happened, on the x axis.
    pub marks: Vec<(f64, String)>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Table {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

// === impl Suite ===

impl Suite {
    pub(crate) fn new(name: &'static str, about: &str) -> Self {
        let about = about.to_owned();
        Self { name, about, parts: Vec::new(), seconds: 0.0, began: Instant::now() }
    }

    /// Runs a part and shows on stderr what comes of it. What it could not do is one of its verdicts,
    /// so that the next part still runs.
    pub(crate) fn part(
        &mut self,
        name: impl Into<String>,
        about: &str,
        run: impl FnOnce(&mut Part) -> Result<()>,
    ) {
        let name = name.into();
        eprintln!("{} · {name}", self.name);
        let mut part = Part::new(name, about);
        if let Err(error) = run(&mut part) {
            part.checks.push(Check::broken("runs to its end", &error));
        }
        part.seconds = part.began.elapsed().as_secs_f64();
        for check in &part.checks {
            eprintln!("    {check}");
        }
        self.parts.push(part);
        self.seconds = self.began.elapsed().as_secs_f64();
    }

    pub(crate) fn checks(&self) -> impl Iterator<Item = &Check> {
        self.parts.iter().flat_map(|part| &part.checks)
    }

    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.checks().filter(|check| check.verdict == verdict).count()
    }
}

// === impl Part ===

impl Part {
    fn new(name: String, about: &str) -> Self {
        Self {
            name,
            about: about.to_owned(),
            checks: Vec::new(),
            plots: Vec::new(),
            tables: Vec::new(),
            seconds: 0.0,
            began: Instant::now(),
        }
    }

    pub(crate) fn check(&mut self, check: Check) {
        self.checks.push(check);
    }

    pub(crate) fn verdict(&self) -> Verdict {
        let has = |verdict| self.checks.iter().any(|check| check.verdict == verdict);
        let order = [Verdict::Broken, Verdict::Missed, Verdict::Holds, Verdict::Skipped];
        order.into_iter().find(|verdict| has(*verdict)).unwrap_or(Verdict::Told)
    }
}

// === impl Plot ===

impl Plot {
    pub(crate) fn new(title: impl Into<String>, x: &'static str, y: &'static str) -> Self {
        Self { title: title.into(), x, y, lines: Vec::new(), marks: Vec::new() }
    }

    pub(crate) fn line(mut self, name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        self.lines.push(Line { name: name.into(), points });
        self
    }

    pub(crate) fn mark(mut self, x: f64, what: impl Into<String>) -> Self {
        self.marks.push((x, what.into()));
        self
    }
}

// === impl Table ===

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.into(), columns, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}
