//! One value of a document with its key path and place, read as the type the reader wants.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml_span::Value;
use toml_span::value::ValueInner;

use super::units::{self, Bare};
use super::{Report, Severity, Table, suggest};

/// A value that is there. Every reading returns `None` when it is of another kind, and reports that.
#[derive(Clone)]
pub struct Item<'d> {
    report: &'d (dyn Report + 'd),
    path: String,
    value: &'d Value<'d>,
}

impl<'d> Item<'d> {
    pub(super) fn new(report: &'d (dyn Report + 'd), path: String, value: &'d Value<'d>) -> Self {
        Self { report, path, value }
    }

    pub fn string(&self) -> Option<&'d str> {
        self.value.as_str().or_else(|| self.wrong("a string"))
    }

    /// A string that `parse` understands; its error is the problem's message.
    pub fn parsed<T, E: fmt::Display>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(self.string()?).map_err(|error| self.error(error.to_string())).ok()
    }

    pub fn integer<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + PartialOrd + fmt::Display + TryFrom<i64>,
    {
        let number = self.value.as_integer().and_then(|number| T::try_from(number).ok());
        number
            .filter(|number| range.contains(number))
            .or_else(|| self.wrong(&format!("a number from {} to {}", range.start(), range.end())))
    }

    /// A number that may have decimals.
    pub fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let number = match self.value.as_ref() {
            ValueInner::Float(number) => Some(*number),
            ValueInner::Integer(number) => Some(*number as f64),
            _ => None,
        };
        number
            .filter(|number| range.contains(number))
            .or_else(|| self.wrong(&format!("a number from {} to {}", range.start(), range.end())))
    }

    pub fn bool(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong("true or false"))
    }

    pub fn duration(&self, bare: Bare, range: RangeInclusive<Duration>) -> Option<Duration> {
        let duration = match self.value.as_ref() {
            ValueInner::String(text) => units::duration(text),
            ValueInner::Integer(number) => bare.duration(*number),
            _ => None,
        };
        duration.filter(|duration| range.contains(duration)).or_else(|| {
            let (from, to) = (units::Spelled(*range.start()), units::Spelled(*range.end()));
            self.wrong(&format!("a duration from \"{from}\" to \"{to}\"{}", bare.hint()))
        })
    }

    pub fn bytes<T>(&self, range: RangeInclusive<T>) -> Option<T>
    where
        T: Copy + PartialOrd + fmt::Display + TryFrom<i64>,
    {
        let number = match self.value.as_ref() {
            ValueInner::String(text) => units::bytes(text),
            ValueInner::Integer(number) => Some(*number),
            _ => None,
        };
        let number = number.and_then(|number| T::try_from(number).ok());
        number.filter(|number| range.contains(number)).or_else(|| {
            let (from, to) = (range.start(), range.end());
            self.wrong(&format!(
                "a number of bytes from {from} to {to}, such as 65536 or \"64KiB\""
            ))
        })
    }

    pub fn ip(&self) -> Option<IpAddr> {
        let address = self.value.as_str().and_then(|text| text.parse().ok());
        address.or_else(|| self.wrong("an IP address"))
    }

    pub fn socket_address(&self) -> Option<SocketAddr> {
        let address = self.value.as_str().and_then(|text| text.parse().ok());
        address.or_else(|| self.wrong("an address with a port, such as \"10.0.0.1:7443\""))
    }

    /// A path; a relative one starts at the document's folder.
    pub fn path(&self) -> Option<PathBuf> {
        let text = self.value.as_str().filter(|text| !text.is_empty() && !text.contains('\0'));
        let path = text.map(|text| self.report.folder().join(text));
        path.or_else(|| self.wrong("a path"))
    }

    /// One of `choices` by name.
    pub fn choice<T: Clone>(&self, choices: &[(&str, T)]) -> Option<T> {
        let name = self.value.as_str();
        let chosen = choices.iter().find(|(choice, _)| Some(*choice) == name);
        chosen.map(|(_, value)| value.clone()).or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| suggest::quoted(name)).collect();
            let near = name.map_or_else(String::new, |name| {
                suggest::did_you_mean(name, choices.iter().map(|(choice, _)| *choice))
            });
            let names = names.join(", ");
            self.error(format!("must be one of {names}, not {}{near}", self.shown()));
            None
        })
    }

    /// Every element of an array.
    pub fn list(&self) -> Option<Vec<Self>> {
        let Some(array) = self.value.as_array() else { return self.wrong("a list") };
        let element =
            |(index, value)| Self::new(self.report, format!("{}[{index}]", self.path), value);
        Some(array.iter().enumerate().map(element).collect())
    }

    /// The value as a table; when it is none that is reported, and nothing more about its keys.
    pub fn table(&self) -> Table<'d> {
        match self.value.as_table() {
            Some(entries) => {
                Table::new(self.report, self.path.clone(), Some(entries), self.value.span)
            }
            None => {
                self.error(format!("must be a table, not {}", self.shown()));
                Table::broken(self.report, self.path.clone(), self.value.span)
            }
        }
    }

    // What kind it is, for keys that take several.

    pub fn is_string(&self) -> bool {
        self.value.as_str().is_some()
    }

    pub fn is_list(&self) -> bool {
        self.value.as_array().is_some()
    }

    pub fn is_bool(&self) -> bool {
        self.value.as_bool().is_some()
    }

    /// The full path of its key.
    pub fn key(&self) -> &str {
        &self.path
    }

    /// Reports an error at this value.
    pub fn error(&self, message: impl Into<String>) {
        let (span, key) = (self.value.span, self.path.clone());
        self.report.report(span, key, message.into(), Severity::Error);
    }

    /// Reports a warning at this value.
    pub fn warning(&self, message: impl Into<String>) {
        let (span, key) = (self.value.span, self.path.clone());
        self.report.report(span, key, message.into(), Severity::Warning);
    }

    /// Reports that the value must be something else.
    pub fn wrong<T>(&self, expected: &str) -> Option<T> {
        self.error(format!("must be {expected}, not {}", self.shown()));
        None
    }

    fn shown(&self) -> String {
        match self.value.as_ref() {
            ValueInner::String(text) => suggest::quoted(text),
            ValueInner::Integer(number) => number.to_string(),
            ValueInner::Float(number) => number.to_string(),
            ValueInner::Boolean(value) => value.to_string(),
            ValueInner::Array(_) => "a list".to_owned(),
            ValueInner::Table(_) => "a table".to_owned(),
        }
    }
}
