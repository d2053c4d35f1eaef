//! The Prometheus text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Family, Histogram, Kind, Labels, Series};

pub(super) fn render(families: &BTreeMap<&'static str, Family>) -> String {
    let mut text = String::new();
    for (name, family) in families {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        line(&mut text, format_args!("# HELP {name} {}", family.help));
        line(&mut text, format_args!("# TYPE {name} {kind}"));
        for (labels, series) in &family.series {
            match series {
                Series::Counter(counter) => {
                    sample(&mut text, name, "", labels, None, counter.value() as f64);
                }
                Series::Gauge(gauge) => {
                    sample(&mut text, name, "", labels, None, gauge.value() as f64);
                }
                Series::Read(read) => sample(&mut text, name, "", labels, None, read()),
                Series::Histogram(histogram) => buckets(&mut text, name, labels, histogram),
            }
        }
    }
    text
}

fn buckets(text: &mut String, name: &str, labels: &Labels, histogram: &Histogram) {
    let mut count = 0.0;
    for (index, cells) in histogram.buckets.iter().enumerate() {
        count += cells.sum() as f64;
        let bound = histogram.bounds.get(index).copied().unwrap_or(f64::INFINITY);
        sample(text, name, "_bucket", labels, Some(bound), count);
    }
    let seconds = histogram.microseconds.sum() as f64 / 1e6;
    sample(text, name, "_sum", labels, None, seconds);
    sample(text, name, "_count", labels, None, count);
}

fn sample(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &Labels,
    le: Option<f64>,
    value: f64,
) {
    text.push_str(name);
    text.push_str(suffix);
    let mut separator = '{';
    for (label, value) in labels {
        text.push(separator);
        text.push_str(label);
        text.push_str("=\"");
        escape(text, value);
        text.push('"');
        separator = ',';
    }
    if let Some(bound) = le {
        text.push(separator);
        text.push_str("le=\"");
        number(text, bound);
        text.push('"');
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    text.push(' ');
    number(text, value);
    text.push('\n');
}

fn number(text: &mut String, value: f64) {
    if value == f64::INFINITY {
        text.push_str("+Inf");
    } else {
        write!(text, "{value}").expect("a String takes everything");
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
    text.push('\n');
}

fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}
