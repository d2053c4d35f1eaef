//! What a holder of a token is told about a request, in a response header.

use std::time::Duration;

use serde::Serialize;

use super::model::{Entry, Finished};

/// Bytes of a report at most; some clients refuse much longer fields.
pub const BYTES_MAX: usize = 1024;

/// Timings and candidates that are tried at all before they are cut to fit.
const LISTED_MAX: usize = 32;

/// A node that could have taken the request, as balance saw it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub node: &'a str,
    /// Absent for the node itself, and until it was measured.
    pub rtt: Option<Duration>,
    /// Requests or connections there.
    pub load: u64,
}

#[derive(Serialize)]
struct Compact<'a> {
    trace: String,
    node: &'a str,
    region: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_node: Option<&'a str>,
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_ms: Option<f64>,
    retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    /// Node, round trip in ms, load.
    candidates: Vec<(&'a str, Option<f64>, u64)>,
    /// Span, start in ms, how long in ms; absent while it is open.
    spans: Vec<(&'static str, f64, Option<f64>)>,
    /// Candidates and spans that found no room.
    #[serde(skip_serializing_if = "is_zero")]
    cut: usize,
}

/// The report of `record`, answered by `node` in `region`: JSON of at most [`BYTES_MAX`] printable
/// ASCII characters, so that it may stand in a header whatever the names are.
pub fn compact(
    node: &str,
    region: &str,
    record: &Finished,
    candidates: &[Candidate<'_>],
) -> String {
    let entries = record.entries();
    let spans = entries.iter().filter_map(|entry| match entry {
        Entry::Span(span) => Some((
            span.name,
            ms(span.start),
            span.end.map(|end| ms(end.saturating_sub(span.start))),
        )),
        Entry::Event(_) => None,
    });
    let spans: Vec<_> = spans.collect();
    let wide = &record.wide;

    // Names are the operator's and short; if they are not, they are cut harder until all fits.
    for name_max in [64, 24, 8, 0] {
        let name = |name| cut(name, name_max);
        let mut report = Compact {
            trace: wide.trace.to_string(),
            node: name(node),
            region: name(region),
            app: wide.app.as_deref().map(name),
            instance: wide.instance.as_deref().map(name),
            instance_node: wide.node.as_deref().map(name),
            ms: ms(wide.lasted),
            head_ms: wide.head_after.map(ms),
            retries: wide.attempts.saturating_sub(1),
            error: wide.error,
            candidates: candidates
                .iter()
                .take(LISTED_MAX)
                .map(|candidate| (name(candidate.node), candidate.rtt.map(ms), candidate.load))
                .collect(),
            spans: spans.iter().copied().take(LISTED_MAX).collect(),
            cut: 0,
        };
        loop {
            report.cut =
                spans.len() + candidates.len() - report.spans.len() - report.candidates.len();
            let text = ascii(&serde_json::to_string(&report).unwrap_or_default());
            if text.len() <= BYTES_MAX {
                return text;
            }
            // The first spans and the nearest candidates say most.
            let longer = report.spans.len() > report.candidates.len();
            let gone = if longer {
                report.spans.pop().is_some()
            } else {
                report.candidates.pop().is_some()
            };
            if !gone {
                break;
            }
        }
    }
    String::new()
}

/// JSON's own escapes for what a header may not hold.
fn ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii_graphic() || character == ' ' {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

fn cut(name: &str, max: usize) -> &str {
    &name[..name.floor_char_boundary(max)]
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}
