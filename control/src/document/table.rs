//! One table of a document: what is asked for by key, and what nobody asked for.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml_span::Span;
use toml_span::value;

use super::{Bare, Item, Report, Severity, suggest};

/// A table, present or not: an absent one has no keys, and its required keys are missing.
pub struct Table<'d> {
    report: &'d (dyn Report + 'd),
    path: String,
    entries: Option<&'d value::Table<'d>>,
    span: Span,
    /// It is there but is no table, which has been reported: nothing in it is called missing.
    broken: bool,
    known: BTreeSet<&'static str>,
    /// Its keys are the author's own (headers, for example).
    open: bool,
}

impl<'d> Table<'d> {
    pub(super) fn new(
        report: &'d (dyn Report + 'd),
        path: String,
        entries: Option<&'d value::Table<'d>>,
        span: Span,
    ) -> Self {
        Self { report, path, entries, span, broken: false, known: BTreeSet::new(), open: false }
    }

    pub(super) fn broken(report: &'d (dyn Report + 'd), path: String, span: Span) -> Self {
        Self { broken: true, ..Self::new(report, path, None, span) }
    }

    /// Whether the table is written in the document.
    pub fn is_present(&self) -> bool {
        self.entries.is_some() || self.broken
    }

    /// Whether `key` is written in it. Does not count as asking for it.
    pub fn has(&self, key: &str) -> bool {
        self.entries.is_some_and(|entries| entries.contains_key(key))
    }

    /// The full key path of the table; empty for the root.
    pub fn key_path(&self) -> &str {
        &self.path
    }

    /// The value of `key` with its place.
    pub fn item(&mut self, key: &'static str) -> Option<Item<'d>> {
        self.known.insert(key);
        let value = self.entries?.get(key)?;
        Some(Item::new(self.report, self.key(key), value))
    }

    /// The value of `key`; its absence is a problem.
    pub fn required(&mut self, key: &'static str) -> Option<Item<'d>> {
        let item = self.item(key);
        if item.is_none() && !self.broken {
            self.report(self.span, self.key(key), "is missing".to_owned(), Severity::Error);
        }
        item
    }

    /// Reports keys that nobody asked for, each with the nearest key that somebody did.
    pub fn finish(self) {
        if self.open {
            return;
        }
        for (key, _) in self.entries.into_iter().flatten() {
            if self.known.contains(key.name.as_ref()) {
                continue;
            }
            let near = suggest::did_you_mean(&key.name, self.known.iter().copied());
            let message = format!("unknown key {}{near}", suggest::quoted(&key.name));
            self.report(key.span, self.key(&key.name), message, Severity::Error);
        }
    }

    // Values by key: `None` when absent or wrong; what is wrong has been reported.

    pub fn string(&mut self, key: &'static str) -> Option<String> {
        self.item(key)?.string().map(str::to_owned)
    }

    pub fn required_string(&mut self, key: &'static str) -> Option<String> {
        self.required(key)?.string().map(str::to_owned)
    }

    /// A string that `parse` understands; its error is the problem's message.
    pub fn parsed<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.item(key)?.parsed(parse)
    }

    pub fn required_parsed<T, E: fmt::Display>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.required(key)?.parsed(parse)
    }

    pub fn integer<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + PartialOrd + fmt::Display + TryFrom<i64>,
    {
        self.item(key)?.integer(range)
    }

    pub fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        self.item(key)?.number(range)
    }

    pub fn bool(&mut self, key: &'static str) -> Option<bool> {
        self.item(key)?.bool()
    }

    /// A duration with its unit, as `"10s"`.
    pub fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.item(key)?.duration(Bare::Refused, range)
    }

    /// A duration that may also be a bare number, in the unit that `bare` says.
    pub fn duration_or(
        &mut self,
        key: &'static str,
        bare: Bare,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.item(key)?.duration(bare, range)
    }

    /// A number of bytes: `65536`, `"64KiB"`, `"1MB"`.
    pub fn bytes<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + PartialOrd + fmt::Display + TryFrom<i64>,
    {
        self.item(key)?.bytes(range)
    }

    pub fn ip(&mut self, key: &'static str) -> Option<IpAddr> {
        self.item(key)?.ip()
    }

    pub fn socket_address(&mut self, key: &'static str) -> Option<SocketAddr> {
        self.item(key)?.socket_address()
    }

    /// A path; a relative one starts at the document's folder.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.item(key)?.path()
    }

    /// One of `choices` by name.
    pub fn choice<T: Clone>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        self.item(key)?.choice(choices)
    }

    /// Every element of an array.
    pub fn list(&mut self, key: &'static str) -> Option<Vec<Item<'d>>> {
        self.item(key)?.list()
    }

    /// Every element that `read` accepts.
    pub fn list_of<T>(
        &mut self,
        key: &'static str,
        read: impl FnMut(&Item<'d>) -> Option<T>,
    ) -> Option<Vec<T>> {
        Some(self.list(key)?.iter().filter_map(read).collect())
    }

    pub fn strings(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.list_of(key, |item| item.string().map(str::to_owned))
    }

    pub fn ips(&mut self, key: &'static str) -> Option<Vec<IpAddr>> {
        self.list_of(key, Item::ip)
    }

    pub fn paths(&mut self, key: &'static str) -> Option<Vec<PathBuf>> {
        self.list_of(key, Item::path)
    }

    /// The table at `key`; an absent one is an empty table.
    pub fn table(&mut self, key: &'static str) -> Self {
        match self.item(key) {
            Some(item) => item.table(),
            None => Self {
                broken: self.broken,
                ..Self::new(self.report, self.key(key), None, self.span)
            },
        }
    }

    /// The table at `key`, if it is there.
    pub fn optional_table(&mut self, key: &'static str) -> Option<Self> {
        self.item(key).map(|item| item.table())
    }

    /// Every table of the array of tables `[[key]]`.
    pub fn tables(&mut self, key: &'static str) -> Vec<Self> {
        self.list(key).unwrap_or_default().iter().map(Item::table).collect()
    }

    /// Every key with its value, in the order written; none of them is unknown.
    pub fn entries(&mut self) -> Vec<(&'d str, Item<'d>)> {
        self.open = true;
        let entries = self.entries.into_iter().flatten();
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|(key, _)| key.span.start);
        entries
            .into_iter()
            .map(|(key, value)| {
                (key.name.as_ref(), Item::new(self.report, self.key(&key.name), value))
            })
            .collect()
    }

    /// Keys that are understood but change nothing here: a warning for each that is written.
    pub fn without_effect(&mut self, keys: &[&'static str]) {
        for key in keys {
            if self.item(key).is_some() {
                self.warning(key, "is understood, but not acted on");
            }
        }
    }

    // Problems that the reader finds: about one key, or about the table.

    /// Reports an error at the value of `key`, or at the table when the key is absent.
    pub fn error(&self, key: &str, message: impl Into<String>) {
        self.report(self.place(key), self.key(key), message.into(), Severity::Error);
    }

    /// Reports a warning at the value of `key`, or at the table when the key is absent.
    pub fn warning(&self, key: &str, message: impl Into<String>) {
        self.report(self.place(key), self.key(key), message.into(), Severity::Warning);
    }

    /// Reports an error about the table as a whole.
    pub fn error_here(&self, message: impl Into<String>) {
        self.report(self.span, self.path.clone(), message.into(), Severity::Error);
    }

    fn place(&self, key: &str) -> Span {
        self.entries.and_then(|entries| entries.get(key)).map_or(self.span, |value| value.span)
    }

    fn key(&self, key: &str) -> String {
        let key = suggest::key_segment(key);
        if self.path.is_empty() { key.into_owned() } else { format!("{}.{key}", self.path) }
    }

    fn report(&self, span: Span, key: String, message: String, severity: Severity) {
        self.report.report(span, key, message, severity);
    }
}
