//! A TOML text with the place of everything in it, read so that every mistake is found at once.
//!
//! A [`Document`] hands out [`Table`]s and [`Item`]s; each accessor either returns the value or
//! reports a [`Problem`] with file, line, column and key path and returns `None`, so that the
//! reader goes on to the next key. Keys nobody asked for are reported by [`Table::finish`].
//! What the values mean is left to the reader.
//!
//! ```
//! use control::document::Document;
//! let mut problems = Vec::new();
//! let text = "[node]\nid = \"ams-1\"\nworkers = 1000\nregoin = \"ams\"\n";
//! if let Some(document) = Document::parse("edge.toml", text, &mut problems) {
//!     let mut root = document.root();
//!     let mut node = root.table("node");
//!     let _id = node.required_string("id");
//!     let _region = node.required_string("region");
//!     let _workers = node.integer("workers", 1..=256_usize).unwrap_or(1);
//!     node.finish();
//!     root.finish();
//! }
//! let lines: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
//! assert_eq!(lines, [
//!     "edge.toml:1:1: node.region: is missing",
//!     "edge.toml:3:11: node.workers: must be a number from 1 to 256, not 1000",
//!     "edge.toml:4:1: node.regoin: unknown key \"regoin\"; did you mean \"region\"?",
//! ]);
//! ```

mod table;
mod item;
mod units;
mod suggest;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::{Path, PathBuf};

use toml_span::Span;
use toml_span::value::{self, Value};

pub use item::Item;
pub use table::Table;
pub use units::{Bare, bytes, duration};

/// A parsed text. Problems go to the list it was parsed with, in no particular order until it is
/// dropped, then in the order of their places.
pub struct Document<'a> {
    root: Value<'a>,
    context: Context<'a>,
}

/// One thing that is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1; 0 when the problem is with the file as a whole.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The full path, as `http_service.concurrency.soft_limit` or `instances[1].address`; empty
    /// when no key is concerned.
    pub key: String,
    pub message: String,
    pub severity: Severity,
}

/// Whether a problem stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    /// The file is not used.
    Error,
}

/// Problems listed of one document; one more says that there are others.
///
/// A file of a megabyte can hold a hundred thousand unknown keys, and nobody reads that far.
pub const PROBLEMS_MAX: usize = 200;

/// What every table and item of a document shares.
struct Context<'a> {
    file: &'a Path,
    text: &'a str,
    /// Byte offset at which each line starts.
    lines: Vec<usize>,
    problems: RefCell<&'a mut Vec<Problem>>,
    /// Length of the list when this document began.
    before: usize,
    truncated: Cell<bool>,
}

/// Where problems go; hides the lifetime of the list from tables and items.
trait Report {
    fn report(&self, span: Span, key: String, message: String, severity: Severity);
    fn folder(&self) -> &Path;
}

// === impl Document ===

impl<'a> Document<'a> {
    /// Parses `text`; a syntax error goes to `problems` and there is no document.
    ///
    /// `file` names the document in problems; relative paths in it are resolved against its folder.
    pub fn parse<F: AsRef<Path> + ?Sized>(
        file: &'a F,
        text: &'a str,
        problems: &'a mut Vec<Problem>,
    ) -> Option<Self> {
        let context = Context::new(file.as_ref(), text, problems);
        match toml_span::parse(text) {
            Ok(root) => Some(Self { root, context }),
            Err(error) => {
                let message = format!("not valid TOML: {error}");
                context.report(error.span, String::new(), message, Severity::Error);
                None
            }
        }
    }

    /// The table that everything is in.
    pub fn root(&self) -> Table<'_> {
        let entries: Option<&value::Table<'_>> = self.root.as_table();
        Table::new(&self.context, String::new(), entries, Span::new(0, 0))
    }
}

// === impl Context ===

impl<'a> Context<'a> {
    fn new(file: &'a Path, text: &'a str, problems: &'a mut Vec<Problem>) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(starts.map(|(at, _)| at + 1)).collect();
        let before = problems.len();
        let problems = RefCell::new(problems);
        Self { file, text, lines, problems, before, truncated: Cell::new(false) }
    }

    /// Line and column of a byte, both from 1.
    fn place(&self, offset: usize) -> (usize, usize) {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = self.lines[line - 1];
        (line, self.text[start..offset].chars().count() + 1)
    }

    fn problem(&self, span: Span, key: String, message: String, severity: Severity) -> Problem {
        // The span of a string leaves its quotes out; a value begins where its author sees it begin.
        let quotes = self.text.as_bytes()[..span.start].iter().rev();
        let quotes = quotes.take(3).take_while(|byte| matches!(byte, b'"' | b'\'')).count();
        let (line, column) = self.place(span.start - quotes);
        Problem { file: self.file.to_owned(), line, column, key, message, severity }
    }
}

impl Report for Context<'_> {
    fn report(&self, span: Span, key: String, message: String, severity: Severity) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() - self.before < PROBLEMS_MAX {
            problems.push(self.problem(span, key, message, severity));
        } else if !self.truncated.replace(true) {
            let message = format!("more than {PROBLEMS_MAX} problems; the others are not listed");
            // An error, since the ones that are left out may be.
            problems.push(self.problem(span, String::new(), message, Severity::Error));
        }
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or_else(|| Path::new(""))
    }
}

impl Drop for Context<'_> {
    /// Sorts, because readers ask for keys in their own order and people read from the top.
    fn drop(&mut self) {
        let problems = self.problems.get_mut();
        problems[self.before..].sort_by_key(|problem| (problem.line, problem.column));
    }
}

// === impl Problem ===

impl Problem {
    /// A problem with `file` as a whole.
    pub fn with_file(file: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
            key: String::new(),
            message: message.into(),
            severity: Severity::Error,
        }
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Whether any of `problems` stands in the way.
    pub fn any_error(problems: &[Self]) -> bool {
        problems.iter().any(Self::is_error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, key, message, severity } = self;
        write!(f, "{}:", file.display())?;
        if *line > 0 {
            write!(f, "{line}:{column}:")?;
        }
        if *severity == Severity::Warning {
            f.write_str(" warning:")?;
        }
        if !key.is_empty() {
            write!(f, " {key}:")?;
        }
        write!(f, " {message}")
    }
}

#[cfg(test)]
mod tests;
