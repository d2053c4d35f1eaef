//! What was promised, what was measured, and whether it holds.

use std::fmt;

use serde::Serialize;

/// One promise, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Check {
    pub name: String,
    /// What was promised; empty when it is only told.
    pub bar: String,
    pub measured: String,
    pub verdict: Verdict,
    /// What explains the verdict, where it is not obvious.
    pub why: String,
    /// Whether a busy machine could make it miss.
    pub depends_on_timing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Holds,
    Missed,
    /// It could not be tried, for a reason outside of it.
    Skipped,
    /// It should have been possible to try, and was not.
    Broken,
    /// A figure without a bar.
    Told,
}

// === impl Check ===

impl Check {
    pub(crate) fn that(
        name: impl Into<String>,
        bar: impl Into<String>,
        measured: impl fmt::Display,
        holds: bool,
    ) -> Self {
        let verdict = if holds { Verdict::Holds } else { Verdict::Missed };
        Self { bar: bar.into(), ..Self::new(name, measured, verdict) }
    }

    /// A figure that may be at most so large.
    pub(crate) fn at_most(
        name: impl Into<String>,
        unit: &str,
        bar: f64,
        measured: f64,
        digits: usize,
    ) -> Self {
        let (shown, most) = (format!("{measured:.digits$} {unit}"), format!("≤ {bar} {unit}"));
        Self::that(name, most.trim_end(), shown.trim_end(), measured <= bar)
    }

    pub(crate) fn told(name: impl Into<String>, measured: impl fmt::Display) -> Self {
        Self::new(name, measured, Verdict::Told)
    }

    pub(crate) fn skipped(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(name, "", Verdict::Skipped).because(why)
    }

    pub(crate) fn broken(name: impl Into<String>, error: &anyhow::Error) -> Self {
        Self::new(name, "", Verdict::Broken).because(format!("{error:#}"))
    }

    pub(crate) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// It says as much about the machine as about what is measured.
    pub(crate) fn timed(mut self) -> Self {
        self.depends_on_timing = true;
        self
    }

    fn new(name: impl Into<String>, measured: impl fmt::Display, verdict: Verdict) -> Self {
        Self {
            name: name.into(),
            bar: String::new(),
            measured: measured.to_string(),
            verdict,
            why: String::new(),
            depends_on_timing: false,
        }
    }
}

impl Verdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Missed => "missed",
            Self::Skipped => "not run",
            Self::Broken => "broken",
            Self::Told => "told",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, bar, measured, verdict, why, depends_on_timing: _ } = self;
        write!(f, "{:<8} {name}", verdict.as_str())?;
        if !measured.is_empty() {
            write!(f, ": {measured}")?;
        }
        if !bar.is_empty() {
            write!(f, " (bar {bar})")?;
        }
        if !why.is_empty() {
            write!(f, "; {why}")?;
        }
        Ok(())
    }
}
