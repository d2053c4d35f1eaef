//! What grew between two reports, by stack.

use std::collections::HashMap;

use super::legible;
use super::report::{Report, Stack};

/// One stack in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub before: u64,
    pub after: u64,
    pub headline: String,
    /// The legible steps, innermost first.
    pub steps: Vec<String>,
}

/// Every stack whose bytes are not the same, the largest growth first.
///
/// Of one build, stacks are compared by address; of two, by the names of their functions.
pub fn changes(before: &Report, after: &Report) -> Vec<Change> {
    let same_build = before.build_id == after.build_id;
    let mut changes: HashMap<String, Change> = HashMap::new();
    for (report, is_after) in [(before, false), (after, true)] {
        for stack in &report.stacks {
            let change = changes.entry(key(stack, same_build)).or_insert_with(|| {
                let steps = legible::steps(&stack.frames);
                Change {
                    before: 0,
                    after: 0,
                    headline: legible::headline(&steps).to_owned(),
                    steps: steps.into_iter().map(|step| step.name).collect(),
                }
            });
            *(if is_after { &mut change.after } else { &mut change.before }) += stack.bytes;
        }
    }
    let mut changes: Vec<_> = changes.into_values().filter(|c| c.before != c.after).collect();
    changes.sort_by(|a, b| b.growth().cmp(&a.growth()).then_with(|| a.steps.cmp(&b.steps)));
    changes
}

fn key(stack: &Stack, same_build: bool) -> String {
    let parts: Vec<String> = if same_build {
        stack.frames.iter().map(|frame| format!("{}+{}", frame.module, frame.offset)).collect()
    } else {
        legible::steps(&stack.frames).into_iter().map(|step| step.name).collect()
    };
    parts.join(";")
}

// === impl Change ===

impl Change {
    pub fn growth(&self) -> i128 {
        i128::from(self.after) - i128::from(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{report, stack};
    use super::*;

    #[test]
    fn what_grew_comes_first_and_what_stayed_is_not_said() {
        let before = report(vec![stack(100, &["a"]), stack(70, &["b"]), stack(5, &["same"])]);
        let mut after = report(vec![stack(500, &["a"]), stack(5, &["same"]), stack(30, &["new"])]);
        let expected = [("a", 100, 500), ("new", 0, 30), ("b", 70, 0)];
        let check = |after: &Report| {
            let changes = changes(&before, after);
            let told: Vec<_> =
                changes.iter().map(|c| (c.headline.as_str(), c.before, c.after)).collect();
            assert_eq!(told, expected);
        };
        check(&after);
        // Another build has other addresses.
        after.build_id = "b1".to_owned();
        for frame in after.stacks.iter_mut().flat_map(|stack| &mut stack.frames) {
            frame.offset.push('0');
        }
        check(&after);
    }
}
