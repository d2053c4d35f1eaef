//! Reads the entries of a record back. Whatever the bytes are, this ends and does not panic.

use std::time::Duration;

use tracing::Level;

use super::log::{
    CATALOGUED, CLOSED, EVENT, EVENT_LEN, EXPOSED, FAILED, FALSE, FIELD, FIELD_LEN, FIELDS_MAX,
    FLOAT, HEAD, LIBRARY, LIBRARY_LEN, SIGNED, SPAN, SPAN_LEN, STATIC, TRUE, UNSIGNED,
};
use super::model::{Entry, Event, Finished, Span, SpanId, Value};
use super::{random, site};

type Fields<'a> = Vec<(&'static str, Value<'a>)>;

impl Finished {
    /// The entries in the order in which they were begun.
    ///
    /// A span that is still open in one segment comes again, under the same id, in the segment in
    /// which it ends.
    pub fn entries(&self) -> Vec<Entry<'_>> {
        decode(&self.entries, self.wide.span)
    }

    /// What this holds beside itself; with its own size, what it counts for in a queue.
    pub fn bytes(&self) -> usize {
        let exposed = self.wide.exposed.as_ref().map_or(0, |exposed| {
            let texts = [&exposed.host, &exposed.path, &exposed.query, &exposed.user_agent];
            size_of_val(&**exposed)
                + texts.into_iter().flatten().map(|text| text.len()).sum::<usize>()
        });
        size_of::<Self>() + self.entries.len() + exposed
    }
}

pub(super) fn decode(mut bytes: &[u8], request: SpanId) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    // Where a span stands among the entries, for fields that came later.
    let mut spans: Vec<(u32, usize)> = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEAD>() {
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let Some((entry, rest)) = bytes.split_at_checked(len.max(HEAD)) else { break };
        bytes = rest;
        let read = match head[0] {
            SPAN => span(entry, request).map(|(index, span)| {
                spans.push((index, entries.len()));
                Entry::Span(span)
            }),
            EVENT => event(entry, request).map(Entry::Event),
            LIBRARY => library(entry, request).map(Entry::Event),
            FIELD => {
                late_field(entry, &spans, &mut entries);
                None
            }
            _ => None,
        };
        entries.extend(read);
    }
    entries
}

fn span(entry: &[u8], request: SpanId) -> Option<(u32, Span<'_>)> {
    let head: &[u8; SPAN_LEN] = entry.first_chunk()?;
    let site = site::by_id(u16_at(head, 4));
    let (index, parent) = (u32_at(head, 8), u32_at(head, 12));
    let (start, end, busy) = (u64_at(head, 20), u64_at(head, 28), u64_at(head, 36));
    let closed = head[1] & CLOSED != 0;
    let open_for = if closed { end.saturating_sub(start) } else { busy };
    let span = Span {
        id: random::derived(request, index),
        parent: (parent != 0).then(|| random::derived(request, parent)),
        name: site.name,
        target: site.target,
        start: Duration::from_nanos(start),
        end: closed.then(|| Duration::from_nanos(end)),
        busy: Duration::from_nanos(busy),
        idle: Duration::from_nanos(open_for.saturating_sub(busy)),
        polls: u32_at(head, 16),
        failed: head[1] & FAILED != 0,
        fields: values(&entry[SPAN_LEN..], site.keys),
    };
    Some((index, span))
}

fn event(entry: &[u8], request: SpanId) -> Option<Event<'_>> {
    let head: &[u8; EVENT_LEN] = entry.first_chunk()?;
    let site = site::by_id(u16_at(head, 4));
    Some(Event {
        span: of_span(u32_at(head, 6), request),
        name: site.name,
        target: site.target,
        level: site.level,
        at: Duration::from_nanos(u64_at(head, 10)),
        fields: values(&entry[EVENT_LEN..], site.keys),
    })
}

fn library(entry: &[u8], request: SpanId) -> Option<Event<'_>> {
    let head: &[u8; LIBRARY_LEN] = entry.first_chunk()?;
    let mut rest = &entry[LIBRARY_LEN..];
    let mut fields = Fields::new();
    while fields.len() < FIELDS_MAX
        && let Some((key, value)) = take(&mut rest).zip(value(&mut rest))
    {
        fields.push((site::text_by_id(u16::from_le_bytes(key)), value));
    }
    Some(Event {
        span: of_span(u32_at(head, 8), request),
        name: site::text_by_id(u16_at(head, 4)),
        target: site::text_by_id(u16_at(head, 6)),
        level: level(head[1]),
        at: Duration::from_nanos(u64_at(head, 12)),
        fields,
    })
}

/// Adds a field to the span it names; one of an earlier segment has no span here.
fn late_field<'a>(entry: &'a [u8], spans: &[(u32, usize)], entries: &mut [Entry<'a>]) {
    let Some(head) = entry.first_chunk::<FIELD_LEN>() else { return };
    let index = u32_at(head, 6);
    let Some((_, at)) = spans.iter().rfind(|(of, _)| *of == index) else { return };
    let key = site::text_by_id(u16_at(head, 4));
    if let (Some(Entry::Span(span)), Some(value)) =
        (entries.get_mut(*at), value(&mut &entry[FIELD_LEN..]))
    {
        span.fields.push((key, value));
    }
}

fn values<'a>(mut rest: &'a [u8], keys: &[&'static str]) -> Fields<'a> {
    keys.iter().map_while(|key| Some((*key, value(&mut rest)?))).collect()
}

fn value<'a>(rest: &mut &'a [u8]) -> Option<Value<'a>> {
    let [tag] = take(rest)?;
    Some(match tag {
        FALSE => Value::Bool(false),
        TRUE => Value::Bool(true),
        UNSIGNED => Value::Unsigned(u64::from_le_bytes(take(rest)?)),
        SIGNED => Value::Signed(i64::from_le_bytes(take(rest)?)),
        FLOAT => Value::Float(f64::from_le_bytes(take(rest)?)),
        STATIC => Value::Static(site::text_by_id(u16::from_le_bytes(take(rest)?))),
        CATALOGUED => Value::Catalogued(text(rest)?),
        EXPOSED => Value::Exposed(text(rest)?),
        _ => return None,
    })
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let len = usize::from(u16::from_le_bytes(take(rest)?));
    let (text, after) = rest.split_at_checked(len)?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn of_span(index: u32, request: SpanId) -> Option<SpanId> {
    (index != 0).then(|| random::derived(request, index))
}

fn level(byte: u8) -> Level {
    match byte {
        1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

fn u16_at<const N: usize>(head: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}

fn u32_at<const N: usize>(head: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

fn u64_at<const N: usize>(head: &[u8; N], at: usize) -> u64 {
    let low = u64::from(u32_at(head, at));
    u64::from(u32_at(head, at + 4)) << 32 | low
}
