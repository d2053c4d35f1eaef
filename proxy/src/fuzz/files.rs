//! Files of operators and app owners: every mistake has a place, none is fatal.

use std::collections::BTreeSet;
use std::path::Path;

use control::app_file;
use control::document::{PROBLEMS_MAX, Problem};

use crate::config;

/// An app file is an app, or has an error; either way every problem says where.
pub fn app_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut problems = Vec::new();
    let app = app_file::parse(Path::new("a.toml"), text, &mut problems);
    check_problems(text, &problems);
    assert_eq!(app.is_none(), Problem::any_error(&problems), "{problems:?}");
    let Some(app) = app else { return };
    assert!(control::names::app(app.name.as_str()).is_ok());
    let ids: BTreeSet<_> = app.instances.iter().map(|instance| &instance.id).collect();
    assert_eq!(ids.len(), app.instances.len(), "an instance listed twice");
    let hostnames: BTreeSet<_> = app.hostnames.iter().collect();
    assert_eq!(hostnames.len(), app.hostnames.len(), "a hostname listed twice");
}

/// The same for a node's configuration.
pub fn config_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::read::parse(Path::new("edge.toml"), text) {
        Ok((_, warnings)) => {
            assert!(!Problem::any_error(&warnings));
            check_problems(text, &warnings);
        }
        Err(problems) => {
            assert!(Problem::any_error(&problems));
            check_problems(text, &problems);
        }
    }
}

fn check_problems(text: &str, problems: &[Problem]) {
    // One more says that there are others.
    assert!(problems.len() <= PROBLEMS_MAX + 1, "{} problems", problems.len());
    let lines: Vec<_> = text.split('\n').collect();
    for problem in problems {
        assert!(!problem.message.is_empty());
        let Some(line) = problem.line.checked_sub(1) else { continue };
        assert!(line < lines.len(), "{problem} is behind the end");
        // A mistake may be right behind the last character.
        let columns = 1..=lines[line].chars().count() + 1;
        assert!(columns.contains(&problem.column), "{problem} is behind the line");
    }
}
