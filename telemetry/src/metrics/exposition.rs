//! The two text formats of a scrape: Prometheus' own, version 0.0.4, and OpenMetrics 1.0.

use std::fmt::Write as _;

use super::snapshot::{Distribution, FamilySnapshot, Snapshot, Value};
use super::{Exemplar, Kind, Labels, Number, Unit};

/// How a scrape is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The text exposition format, version 0.0.4.
    #[default]
    Prometheus,
    /// The same numbers, with exemplars.
    OpenMetrics,
}

// === impl Format ===

impl Format {
    /// What an `Accept` header asks for: OpenMetrics when it is named and not liked less than text.
    pub fn accepted(accept: &str) -> Self {
        let (mut open, mut text) = (0.0_f32, 0.0_f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let weight =
                parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            if media.eq_ignore_ascii_case("application/openmetrics-text") {
                open = open.max(weight);
            } else if media.eq_ignore_ascii_case("text/plain") {
                text = text.max(weight);
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

pub(super) fn render(snapshot: &Snapshot, format: Format) -> String {
    let mut text = String::new();
    for family in &snapshot.families {
        head(&mut text, family, format);
        for point in &family.points {
            match &point.value {
                Value::Number(number) => {
                    sample(&mut text, family.name, "", &point.labels, None, *number);
                    text.push('\n');
                }
                Value::Distribution(distribution) => {
                    buckets(&mut text, family.name, &point.labels, distribution, format);
                }
            }
        }
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

fn head(text: &mut String, family: &FamilySnapshot, format: Format) {
    let FamilySnapshot { name, kind, unit, help, .. } = family;
    // In OpenMetrics a counter's family is named without the suffix of its samples.
    let name = match (format, kind) {
        (Format::OpenMetrics, Kind::Counter) => name.strip_suffix("_total").unwrap_or(name),
        _ => name,
    };
    line(text, format_args!("# TYPE {name} {}", kind.as_str()));
    if format == Format::OpenMetrics && *unit != Unit::None {
        line(text, format_args!("# UNIT {name} {}", unit.as_str()));
    }
    text.push_str("# HELP ");
    text.push_str(name);
    text.push(' ');
    escape(text, help, format == Format::OpenMetrics);
    text.push('\n');
}

fn buckets(
    text: &mut String,
    name: &str,
    labels: &Labels,
    distribution: &Distribution,
    format: Format,
) {
    let Distribution { bounds, counts, count, sum, exemplars } = distribution;
    let mut below = 0;
    for (index, count) in counts.iter().enumerate() {
        below += count;
        let le = Le { bound: bounds.get(index).copied(), format };
        sample(text, name, "_bucket", labels, Some(le), Number::Unsigned(below));
        let exemplar = exemplars.iter().find(|exemplar| exemplar.bucket == index);
        if let Some(exemplar) = exemplar.filter(|_| format == Format::OpenMetrics) {
            remembered(text, exemplar);
        }
        text.push('\n');
    }
    sample(text, name, "_sum", labels, None, *sum);
    text.push('\n');
    sample(text, name, "_count", labels, None, Number::Unsigned(*count));
    text.push('\n');
}

fn remembered(text: &mut String, exemplar: &Exemplar) {
    let Exemplar { trace, micros, unix_ms, .. } = exemplar;
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let value = Number::Micros(*micros);
    write!(text, " # {{trace_id=\"{trace}\"}} {value} {seconds}.{ms:03}")
        .expect("a String takes everything");
}

/// The upper bound of a bucket; none is infinity.
#[derive(Clone, Copy)]
struct Le {
    bound: Option<f64>,
    format: Format,
}

/// One sample without its line's end.
fn sample(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &Labels,
    le: Option<Le>,
    value: Number,
) {
    text.push_str(name);
    text.push_str(suffix);
    let mut separator = '{';
    for (label, value) in labels.iter() {
        text.push(separator);
        text.push_str(label);
        text.push_str("=\"");
        escape(text, value, true);
        text.push('"');
        separator = ',';
    }
    if let Some(Le { bound, format }) = le {
        text.push(separator);
        text.push_str("le=\"");
        match (bound, format) {
            (None, _) => text.push_str("+Inf"),
            (Some(bound), Format::Prometheus) => put(text, format_args!("{bound}")),
            // OpenMetrics wants bounds to look like floats: 1.0.
            (Some(bound), Format::OpenMetrics) => put(text, format_args!("{bound:?}")),
        }
        text.push('"');
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    put(text, format_args!(" {value}"));
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    put(text, arguments);
    text.push('\n');
}

fn escape(text: &mut String, value: &str, quotes: bool) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' if quotes => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_sent_to_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let cases = [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/html", Format::Prometheus),
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("text/plain, application/openmetrics-text; q=0.1", Format::Prometheus),
            ("application/openmetrics-text; q=0", Format::Prometheus),
        ];
        for (accept, format) in cases {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
