//! One reading of `/metrics`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// Values by name and labels, as the page writes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    pub(crate) fn parse(page: &str) -> Self {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let value = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(lines.filter_map(value).collect())
    }

    /// Nothing is 0: a label that did not occur has no line.
    pub(crate) fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn memory(&self, kind: &str) -> Result<u64> {
        let name = format!("ferrule_memory_bytes{{kind=\"{kind}\"}}");
        Ok(*self.0.get(&name).with_context(|| format!("no {name} in the scrape"))? as u64)
    }

    /// Of all labels.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.of(name).map(|(_, value)| value).sum()
    }

    pub(crate) fn series(&self) -> usize {
        self.0.len()
    }

    /// What is in flight or taken, and how much of it, where that is more than `standing`: at rest there
    /// is nothing.
    pub(crate) fn left(&self, standing: u64) -> Vec<String> {
        [
            "ferrule_requests_in_flight",
            "ferrule_permits_in_use",
            "ferrule_records_live",
            "ferrule_downstream_connections",
            "ferrule_queue_length",
            "ferrule_tls_handshakes_in_flight",
        ]
        .into_iter()
        .filter(|name| self.value(name) > standing as f64)
        .map(|name| format!("{name} {}", self.value(name)))
        .collect()
    }

    /// Counters that rose since `before`, of those whose name and labels hold `part`.
    pub(crate) fn risen(&self, before: &Self, part: &str) -> Vec<(String, f64)> {
        let more = |(name, value): (&String, &f64)| {
            let risen = value - before.value(name);
            (risen > 0.0 && name.contains(part)).then(|| (name.clone(), risen))
        };
        self.0.iter().filter_map(more).collect()
    }

    fn of(&self, name: &str) -> impl Iterator<Item = (&String, f64)> {
        let name = name.to_owned();
        let first = self.0.range(name.clone()..);
        first
            .map_while(move |(key, value)| {
                let rest = key.strip_prefix(&name)?;
                Some((rest.is_empty() || rest.starts_with('{')).then_some((key, *value)))
            })
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_by_name_and_label() {
        let page = "# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3.5\nab 7\nb 1e3\n";
        let scrape = Scrape::parse(page);
        assert_eq!((scrape.sum("a"), scrape.value("ab"), scrape.value("b")), (5.5, 7.0, 1e3));
        let risen = scrape.risen(&Scrape::parse("a{x=\"1\"} 1\na{x=\"2\"} 3.5\n"), "a{");
        assert_eq!(risen, [("a{x=\"1\"}".to_owned(), 1.0)]);
    }
}
