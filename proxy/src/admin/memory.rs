//! The pages about memory: one for people, JSON, and downloads for other tools.
//!
//! | path | what |
//! |---|---|
//! | `/memory` | totals, what is old and alive by stack, the ledger |
//! | `/memory.json` | the same |
//! | `/memory/heap.pb.gz` | for `pprof` |
//! | `/memory/flamegraph.svg` | for a browser |
//! | `/memory/folded.txt` | for `inferno`, `flamegraph.pl`, speedscope |
//!
//! All take the same filter: `function` (part of a name), `subsystem`, `older` and `younger` (ages,
//! such as `10m`), `all` (blocks of any age), `stacks` (how many).

mod chart;
mod page;

use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::heapwatch::{Ages, Query, Report, Subsystem, flamegraph, folded, pprof};

use super::View;
use super::control::{Control, Refusal, Reply};
use super::status::Memory;

/// `/memory.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    pub ledger: Vec<Line>,
    pub memory: Memory,
    pub heap: Report,
}

/// What `POST /memory/snapshot` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// File on the node's disk.
    pub path: String,
}

/// What one owner says that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub owner: String,
    pub unit: String,
    pub current: i64,
    /// The same in bytes; 0 of entries whose bytes are in another line.
    #[serde(default)]
    pub bytes: i64,
    pub high: i64,
    pub cap: u64,
    pub drops: u64,
    /// `heap`: part of what the allocator says is allocated; `outside`: not.
    #[serde(default = "heap")]
    pub place: String,
}

pub(super) fn snapshot(control: &dyn Control) -> Result<Reply, Refusal> {
    let path = control.memory_snapshot().map_err(|error| Refusal::unavailable(&error))?;
    Reply::json(Written { path: path.display().to_string() })
}

fn heap() -> String {
    HEAP.to_owned()
}

const HEAP: &str = "heap";

impl Line {
    /// Bytes of the heap that it accounts for.
    fn explains(&self) -> u64 {
        if self.place == HEAP { u64::try_from(self.bytes).unwrap_or_default() } else { 0 }
    }
}

/// What the ledger knows of what the allocator says is allocated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Explained {
    pub bytes: u64,
    pub percent: f64,
}

impl Page {
    pub fn explained(&self) -> Explained {
        let bytes: u64 = self.ledger.iter().map(Line::explains).sum();
        Explained { bytes, percent: bytes as f64 * 100.0 / self.memory.allocated.max(1) as f64 }
    }
}

/// One of the pages, not yet a response.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
}

/// What these pages need of a [`View`].
pub(super) trait Source {
    fn node(&self) -> String;
    /// Ledger lines and the allocator's totals.
    fn memory(&self) -> Value;
    fn heap(&self, query: &Query) -> Report;
}

/// How a page is shown, beside what is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wish {
    query: Query,
    /// The last day instead of the last ten minutes.
    day: bool,
}

/// Stacks of a page for people; nobody reads more.
const STACKS_SHOWN: usize = 50;

/// Stacks of a download.
const STACKS_MAX: usize = 4_096;

/// Bytes of a query; a name of a function may be long.
const QUERY_BYTES_MAX: usize = 2_048;

/// Answers `path`, if it is one of these.
pub(super) fn respond(path: &str, query: Option<&str>, view: &impl Source) -> Option<Answer> {
    if path != "/memory" && path != "/memory.json" && !path.starts_with("/memory/") {
        return None;
    }
    let wish = match wish(query.unwrap_or_default()) {
        Ok(wish) => wish,
        Err(sentence) => {
            let body = format!("{sentence}\n").into_bytes();
            let content_type = "text/plain; charset=utf-8";
            return Some(Answer { status: StatusCode::BAD_REQUEST, content_type, body });
        }
    };
    let told = |stacks_max| {
        let stacks_max =
            if wish.query.stacks_max == 0 { stacks_max } else { wish.query.stacks_max };
        view.heap(&Query { stacks_max, totals: false, ..wish.query.clone() })
    };
    let (content_type, body) = match path {
        "/memory" => {
            let query = Query { stacks_max: STACKS_SHOWN, ..wish.query.clone() };
            let told = Told {
                node: view.node(),
                page: assemble(view.memory(), view.heap(&query)),
                wish: &wish,
                raw_query: query_text(query_of(&wish)),
            };
            ("text/html; charset=utf-8", page::render(&told).into_bytes())
        }
        "/memory.json" => {
            let mut value = view.memory();
            let stacks_max =
                if wish.query.stacks_max == 0 { STACKS_MAX } else { wish.query.stacks_max };
            let heap = view.heap(&Query { stacks_max, ..wish.query.clone() });
            // Plain structs with string keys always have a JSON form.
            value["heap"] = serde_json::to_value(heap).unwrap_or_default();
            ("application/json", value.to_string().into_bytes())
        }
        "/memory/heap.pb.gz" => ("application/octet-stream", pprof::render(&told(STACKS_MAX))),
        "/memory/flamegraph.svg" => {
            let title = format!("{} on {}", wish.title(), view.node());
            ("image/svg+xml", flamegraph::render(&told(STACKS_MAX), &title).into_bytes())
        }
        "/memory/folded.txt" => {
            ("text/plain; charset=utf-8", folded::render(&told(STACKS_MAX)).into_bytes())
        }
        _ => return None,
    };
    Some(Answer { status: StatusCode::OK, content_type, body })
}

/// Everything the page for people shows.
struct Told<'a> {
    node: String,
    page: Page,
    wish: &'a Wish,
    /// The filter as it goes into links.
    raw_query: String,
}

fn assemble(rest: Value, heap: Report) -> Page {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Rest {
        ledger: Vec<Line>,
        memory: Memory,
    }
    let Rest { ledger, memory } = serde_json::from_value(rest).unwrap_or_default();
    Page { ledger, memory, heap }
}

impl Source for &dyn View {
    fn node(&self) -> String {
        self.status().node
    }

    fn memory(&self) -> Value {
        View::memory(*self)
    }

    fn heap(&self, query: &Query) -> Report {
        View::heap(*self, query)
    }
}

// === queries ===

impl Wish {
    /// What the stacks are, in words.
    fn title(&self) -> String {
        let mut title = match self.query.ages {
            None => "old and alive".to_owned(),
            Some(Ages::ALL) => "alive".to_owned(),
            Some(Ages { older_than, younger_than: Duration::MAX }) => {
                format!("older than {}", span(older_than))
            }
            Some(Ages { older_than, younger_than }) => {
                format!("aged {} to {}", span(older_than), span(younger_than))
            }
        };
        if let Some(function) = &self.query.function {
            title.push_str(&format!(", through {function}"));
        }
        if let Some(subsystem) = self.query.subsystem {
            title.push_str(&format!(", of {}", subsystem.name()));
        }
        title
    }
}

fn wish(query: &str) -> Result<Wish, String> {
    if query.len() > QUERY_BYTES_MAX {
        return Err("the query is too long".to_owned());
    }
    let query_of = Query { stacks_max: 0, ..Query::default() };
    let mut wish = Wish { query: query_of, day: false };
    let (mut older, mut younger) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        // An empty field of a form asks for nothing.
        if value.is_empty() && key != "all" {
            continue;
        }
        match key {
            "function" => wish.query.function = Some(value),
            "subsystem" => {
                let named = Subsystem::ALL.into_iter().find(|s| s.name() == value);
                wish.query.subsystem = Some(named.ok_or("no such subsystem")?);
            }
            "older" => older = Some(parse_span(&value).ok_or("older: an age such as 10m")?),
            "younger" => younger = Some(parse_span(&value).ok_or("younger: an age such as 2h")?),
            "all" => older = Some(Duration::ZERO),
            "stacks" => {
                let n = value.parse().ok().filter(|n| (1..=STACKS_MAX).contains(n));
                wish.query.stacks_max = n.ok_or("stacks: 1 to 4096")?;
            }
            "span" => wish.day = value == "day",
            _ => {
                return Err(
                    "no such field; there are function, subsystem, older, younger, all, stacks"
                        .to_owned(),
                );
            }
        }
    }
    if older.is_some() || younger.is_some() {
        wish.query.ages = Some(Ages {
            older_than: older.unwrap_or_default(),
            younger_than: younger.unwrap_or(Duration::MAX),
        });
    }
    Ok(wish)
}

/// The filter as fields.
fn query_of(wish: &Wish) -> Vec<(&'static str, String)> {
    let mut fields = Vec::new();
    if let Some(function) = &wish.query.function {
        fields.push(("function", function.clone()));
    }
    if let Some(subsystem) = wish.query.subsystem {
        fields.push(("subsystem", subsystem.name().to_owned()));
    }
    if let Some(Ages { older_than, younger_than }) = wish.query.ages {
        fields.push(("older", span(older_than)));
        if younger_than != Duration::MAX {
            fields.push(("younger", span(younger_than)));
        }
    }
    fields
}

fn query_text(fields: Vec<(&'static str, String)>) -> String {
    let pairs: Vec<_> =
        fields.iter().map(|(key, value)| format!("{key}={}", flamegraph::encode(value))).collect();
    pairs.join("&")
}

/// `%41` and `+` as forms send them; what is no UTF-8 is replaced.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                decoded.push(value);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// `90`, `90s`, `10m`, `2h`, `1d`.
fn parse_span(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_secs)
}

/// The other way.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        s if s > 0 && s % 86_400 == 0 => format!("{}d", s / 86_400),
        s if s > 0 && s % 3_600 == 0 => format!("{}h", s / 3_600),
        s if s > 0 && s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

#[cfg(test)]
pub(crate) mod tests;

#[cfg(test)]
pub(crate) use tests::example;
