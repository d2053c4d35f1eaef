//! The answer of a run: `report.html` for people, `report.json` for programs, a summary for the
//! terminal, and a verdict for whoever started it.

mod html;
mod svg;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::suite::Suite;
use crate::verdict::{Check, Verdict};

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub command: String,
    pub began: String,
    pub seconds: f64,
    pub machine: Machine,
    /// Program and version.
    pub versions: Vec<(String, String)>,
    /// Whether bars that a busy machine can miss decide the outcome.
    pub timing_decides: bool,
    pub suites: Vec<Suite>,
    #[serde(skip)]
    clock: Instant,
}

/// How a run ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Holds = 0,
    Missed = 1,
    /// Something could not be run. EX_SOFTWARE of sysexits.
    Broken = 70,
}

impl Report {
    pub(crate) fn new(ferrule: &Path, timing_decides: bool) -> Self {
        let command: Vec<String> = std::env::args().skip(1).collect();
        Self {
            command: format!("loadtest {}", command.join(" ")),
            began: crate::machine::now(),
            seconds: 0.0,
            machine: Machine::look(),
            versions: crate::machine::versions(ferrule),
            timing_decides,
            suites: Vec::new(),
            clock: Instant::now(),
        }
    }

    pub(crate) fn add(&mut self, suite: Suite) {
        self.suites.push(suite);
        self.seconds = self.clock.elapsed().as_secs_f64();
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let decides = |check: &Check| self.timing_decides || !check.depends_on_timing;
        let checks = || self.suites.iter().flat_map(Suite::checks);
        if checks().any(|check| check.verdict == Verdict::Broken) {
            Outcome::Broken
        } else if checks().any(|check| check.verdict == Verdict::Missed && decides(check)) {
            Outcome::Missed
        } else {
            Outcome::Holds
        }
    }

    /// # Errors
    ///
    /// When the folder cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(directory.join("report.html"), html::page(self)))
            .with_context(|| directory.display().to_string())?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(directory.join("report.json"), json)?;
        Ok(())
    }

    /// One line for each suite, and each bar that does not hold.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for suite in &self.suites {
            let of = |verdict| suite.count(verdict);
            let (holds, missed) = (of(Verdict::Holds), of(Verdict::Missed));
            let (skipped, broken) = (of(Verdict::Skipped), of(Verdict::Broken));
            writeln!(
                text,
                "{:<8} {holds} hold, {missed} missed, {broken} broken, {skipped} not run; {:.0} s",
                suite.name, suite.seconds
            )
            .expect("a String takes everything");
            for part in &suite.parts {
                let told =
                    |check: &&Check| !matches!(check.verdict, Verdict::Holds | Verdict::Told);
                for check in part.checks.iter().filter(told) {
                    let timed = check.verdict == Verdict::Missed && check.depends_on_timing;
                    let note = if timed && !self.timing_decides { " [timing: told]" } else { "" };
                    writeln!(text, "  {} · {check}{note}", part.name)
                        .expect("a String takes everything");
                }
            }
        }
        let said = match self.outcome() {
            Outcome::Holds => "every bar holds",
            Outcome::Missed => "a bar is missed",
            Outcome::Broken => "something could not be run",
        };
        writeln!(text, "{said}; {:.0} s", self.seconds).expect("a String takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(checks: Vec<Check>, timing_decides: bool) -> Report {
        let mut report = Report::new(Path::new("/nothing"), timing_decides);
        let mut suite = Suite::new("flat", "");
        suite.part("one", "", |part| {
            part.checks = checks;
            Ok(())
        });
        report.add(suite);
        report
    }

    #[test]
    fn the_worst_verdict_decides() {
        let holds = || Check::that("a", "1", 1, true);
        let missed = || Check::that("b", "1", 2, false);
        let broken = || Check::broken("c", &anyhow::anyhow!("no"));
        assert_eq!(report(vec![holds()], true).outcome(), Outcome::Holds);
        assert_eq!(report(vec![holds(), missed()], true).outcome(), Outcome::Missed);
        assert_eq!(report(vec![broken(), missed()], true).outcome(), Outcome::Broken);
        assert_eq!(report(vec![Check::skipped("d", "why")], true).outcome(), Outcome::Holds);
    }

    #[test]
    fn a_bar_that_depends_on_timing_decides_only_when_it_should() {
        let missed = || vec![Check::that("p99", "1", 2, false).timed()];
        assert_eq!(report(missed(), true).outcome(), Outcome::Missed);
        assert_eq!(report(missed(), false).outcome(), Outcome::Holds);
        assert!(report(missed(), false).summary().contains("timing: told"));
    }

    #[test]
    fn the_page_needs_nothing_but_itself() {
        let mut report = report(vec![Check::that("<a & b>", "≤ 1", 2, false)], true);
        let plot =
            crate::suite::Plot::new("memory", "s", "MiB").line("rss", vec![(0.0, 1.0), (1.0, 3.0)]);
        report.suites[0].parts[0].plots.push(plot);
        let page = html::page(&report);
        assert!(page.contains("&lt;a &amp; b&gt;") && page.contains("<polyline"));
        assert!(!page.contains("src=") && !page.contains("href=\"http") && !page.contains("url("));
    }
}
