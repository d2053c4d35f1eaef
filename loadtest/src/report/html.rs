//! The page: style and pictures are in it, so that it can be sent, kept and opened anywhere.

use std::fmt::Write as _;

use super::{Outcome, Report, svg};
use crate::suite::{Part, Suite, Table};
use crate::verdict::{Check, Verdict};

const STYLE: &str = include_str!("style.css");

pub(super) fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>ferrule: proof of {}</title><style>{STYLE}</style><main>",
        escape(&report.began)
    );
    head(&mut page, report);
    contents(&mut page, report);
    for suite in &report.suites {
        section(&mut page, suite);
    }
    reading(&mut page);
    page.push_str("</main></html>\n");
    page
}

fn head(page: &mut String, report: &Report) {
    let (class, said) = match report.outcome() {
        Outcome::Holds => ("holds", "Every bar holds."),
        Outcome::Missed => ("missed", "A bar is missed."),
        Outcome::Broken => ("broken", "Something could not be run."),
    };
    put(page, format_args!("<h1>ferrule: proof</h1><p class=\"outcome {class}\">{said}</p><dl>"));
    let machine = &report.machine;
    let row = |page: &mut String, name: &str, value: &str| {
        put(page, format_args!("<dt>{name}</dt><dd>{}</dd>", escape(value)));
    };
    row(page, "when", &format!("{}, {:.0} s", report.began, report.seconds));
    row(page, "command", &report.command);
    let cores = format!("{} × {}, {} GiB", machine.cpus, machine.model, machine.memory_gib);
    row(page, "machine", &cores);
    row(page, "kernel", &machine.kernel);
    let others = format!("{:.2} CPUs used before the run", machine.others);
    row(page, "other processes", &others);
    for (program, version) in &report.versions {
        row(page, &escape(program), version);
    }
    page.push_str("</dl>");
}

/// One row for each suite: what holds and what does not.
fn contents(page: &mut String, report: &Report) {
    page.push_str("<table><thead><tr><th>suite<th>holds<th>missed<th>broken<th>not run<th>seconds</tr></thead><tbody>");
    for suite in &report.suites {
        let cell = |verdict: Verdict| {
            let count = suite.count(verdict);
            let class = if count > 0 { class(verdict) } else { "" };
            format!("<td class=\"{class}\">{count}</td>")
        };
        let cells = [Verdict::Holds, Verdict::Missed, Verdict::Broken, Verdict::Skipped].map(cell);
        put(
            page,
            format_args!(
                "<tr><td><a href=\"#{0}\">{0}</a></td>{1}<td>{2:.0}</td></tr>",
                suite.name,
                cells.concat(),
                suite.seconds
            ),
        );
    }
    page.push_str("</tbody></table>");
}

fn section(page: &mut String, suite: &Suite) {
    put(page, format_args!("<section id=\"{0}\"><h2>{0}</h2>", suite.name));
    put(page, format_args!("<p class=\"about\">{}</p>", escape(&suite.about)));
    for part in &suite.parts {
        fold(page, part);
    }
    page.push_str("</section>");
}

/// A part is closed while it holds, so that what does not is seen.
fn fold(page: &mut String, part: &Part) {
    let verdict = part.verdict();
    let open = if matches!(verdict, Verdict::Missed | Verdict::Broken) { " open" } else { "" };
    put(
        page,
        format_args!(
            "<details{open}><summary><span class=\"badge {}\">{}</span> {} <span class=\"quiet\">{:.0} s</span></summary>",
            class(verdict),
            verdict.as_str(),
            escape(&part.name),
            part.seconds
        ),
    );
    if !part.about.is_empty() {
        put(page, format_args!("<p class=\"about\">{}</p>", escape(&part.about)));
    }
    if !part.checks.is_empty() {
        page.push_str(
            "<table><thead><tr><th><th>what<th>measured<th>bar<th>why</tr></thead><tbody>",
        );
        part.checks.iter().for_each(|check| row(page, check));
        page.push_str("</tbody></table>");
    }
    part.plots.iter().for_each(|plot| page.push_str(&svg::figure(plot)));
    part.tables.iter().for_each(|table| self::table(page, table));
    page.push_str("</details>");
}

fn row(page: &mut String, check: &Check) {
    let timed = if check.depends_on_timing { " <span class=\"quiet\">timing</span>" } else { "" };
    put(
        page,
        format_args!(
            "<tr><td><span class=\"badge {}\">{}</span></td><td>{}{timed}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            class(check.verdict),
            check.verdict.as_str(),
            escape(&check.name),
            escape(&check.measured),
            escape(&check.bar),
            escape(&check.why)
        ),
    );
}

fn table(page: &mut String, table: &Table) {
    put(page, format_args!("<h4>{}</h4><table><thead><tr>", escape(&table.title)));
    table.columns.iter().for_each(|column| put(page, format_args!("<th>{}", escape(column))));
    page.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        page.push_str("<tr>");
        row.iter().for_each(|cell| put(page, format_args!("<td>{}</td>", escape(cell))));
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table>");
}

fn reading(page: &mut String) {
    page.push_str(include_str!("reading.html"));
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Holds => "holds",
        Verdict::Missed => "missed",
        Verdict::Broken => "broken",
        Verdict::Skipped => "skipped",
        Verdict::Told => "told",
    }
}

pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes everything");
}
