//! A scrape of `/metrics`, parsed.

use std::collections::BTreeMap;

/// One scrape: every series with its value.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    series: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the text exposition format.
    ///
    /// # Panics
    /// On a line that is none of the format's.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name, a space, a value");
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            (name.to_owned(), value)
        });
        Self { series: series.collect() }
    }

    /// The sum of all series of `name`; zero when there is none.
    pub fn sum(&self, name: &str) -> f64 {
        self.sum_with(name, &[])
    }

    /// The sum of the series of `name` that have all of `labels`; zero when there is none.
    pub fn sum_with(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let matching = self.series.iter().filter(|(series, _)| {
            let (family, held) = series.split_once('{').unwrap_or((series, ""));
            family == name && wanted.iter().all(|label| held.contains(label))
        });
        matching.map(|(_, value)| value).sum()
    }

    /// Counters and parts of histograms that are less than they were in `before`, or are no more.
    pub fn went_back_from<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = String> + 'a {
        let counts = ["_total", "_bucket", "_count", "_sum"];
        let counters = before.series.iter().filter(move |(series, _)| {
            let family = series.split('{').next().unwrap_or_default();
            counts.iter().any(|suffix| family.ends_with(suffix))
        });
        counters.filter_map(|(series, was)| match self.series.get(series) {
            Some(is) if is >= was => None,
            Some(is) => Some(format!("{series}: {was}, then {is}")),
            None => Some(format!("{series}: {was}, then gone")),
        })
    }

    /// The series of a family that are above zero, as the page has them.
    pub fn series(&self, name: &str) -> impl Iterator<Item = String> {
        let of_family = move |series: &str| series.split('{').next() == Some(name);
        let above =
            self.series.iter().filter(move |(series, value)| of_family(series) && **value > 0.0);
        above.map(|(series, value)| format!("{series} {value}"))
    }

    /// Whether any series of `name` exists.
    pub fn has(&self, name: &str) -> bool {
        self.series.keys().any(|series| series.split('{').next() == Some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let metrics = Metrics::parse("# HELP x\nx{a=\"1\",b=\"2\"} 3\nx{a=\"2\"} 4\nxy 9\n");
        assert_eq!(metrics.sum("x"), 7.0);
        assert_eq!(metrics.sum_with("x", &[("a", "1")]), 3.0);
        assert_eq!(metrics.sum("z"), 0.0);
        assert!(metrics.has("xy") && !metrics.has("z"));
    }

    #[test]
    fn a_counter_that_is_less_or_gone_went_back_and_a_gauge_never_does() {
        let before = Metrics::parse("a_total{x=\"1\"} 3\nb_total 1\nc_bytes 9\nd_count 2\n");
        let after = Metrics::parse("a_total{x=\"1\"} 2\nc_bytes 1\nd_count 2\ne_total 0\n");
        let back: Vec<String> = after.went_back_from(&before).collect();
        assert_eq!(back, ["a_total{x=\"1\"}: 3, then 2", "b_total: 1, then gone"]);
        assert_eq!(before.went_back_from(&before).count(), 0);
    }
}
