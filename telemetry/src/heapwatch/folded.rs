//! Folded stacks: one line per stack, outermost function first, and its bytes. What
//! `flamegraph.pl`, `inferno` and speedscope read.

use super::legible;
use super::report::Report;

/// Every stack of `report` as a line.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for stack in &report.stacks {
        let steps = legible::steps(&stack.frames);
        let mut names = steps.iter().rev().map(|step| step.name.replace(';', ","));
        // A stack that found no room in the table.
        text.push_str(&names.next().unwrap_or_else(|| "unknown".to_owned()));
        for name in names {
            text.push(';');
            text.push_str(&name);
        }
        text.push_str(&format!(" {}\n", stack.bytes));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{report, stack};
    use super::*;

    #[test]
    fn stacks_are_lines_from_the_outside_in() {
        let report = report(vec![stack(100, &["inner::a", "outer;b", "main"]), stack(50, &[])]);
        assert_eq!(render(&report), "main;outer,b;inner::a 100\nunknown 50\n");
    }
}
