//! The entries of one request: how they are laid out, and how they are written into its buffer.
//!
//! Every entry starts with its kind, a byte of flags and its length, little-endian like the rest:
//!
//! | kind | after the length |
//! |---|---|
//! | span | site u16, –, index u32, parent u32, polls u32, start u64, end u64, busy u64, values |
//! | event | site u16, span u32, at u64, values |
//! | field | key u16, span u32, one value |
//! | library | name u16, target u16, span u32, at u64, then (key u16, value) pairs; the flags are the level |
//!
//! Times are nanoseconds since the request began. A span is written when it opens, so that the outer
//! ones, which close last, are sure of their room, and is brought up to date in place.

use super::model::Value;
use super::site::{self, Site};

pub(super) const SPAN: u8 = 1;
pub(super) const EVENT: u8 = 2;
pub(super) const FIELD: u8 = 3;
pub(super) const LIBRARY: u8 = 4;

pub(super) const CLOSED: u8 = 1;
pub(super) const FAILED: u8 = 2;

/// Kind, flags, length.
pub(super) const HEAD: usize = 4;
pub(super) const SPAN_LEN: usize = 44;
pub(super) const EVENT_LEN: usize = 18;
pub(super) const FIELD_LEN: usize = 10;
pub(super) const LIBRARY_LEN: usize = 20;

const FLAGS_AT: usize = 1;

pub(super) const FALSE: u8 = 0;
pub(super) const TRUE: u8 = 1;
pub(super) const UNSIGNED: u8 = 2;
pub(super) const SIGNED: u8 = 3;
pub(super) const FLOAT: u8 = 4;
pub(super) const STATIC: u8 = 5;
pub(super) const CATALOGUED: u8 = 6;
pub(super) const EXPOSED: u8 = 7;

/// Bytes of one text, cut at a character. With the count of fields it keeps an entry below 64 KiB.
const TEXT_MAX: usize = 256;
/// Fields of one entry; what is beyond is left out.
pub(super) const FIELDS_MAX: usize = 32;

/// Spans inside each other; deeper ones belong to the deepest that fits.
const DEPTH_MAX: usize = 12;

/// The buffer of a request and what is known about it.
#[derive(Default)]
pub(super) struct Log {
    pub(super) buffer: Option<Box<[u8]>>,
    len: usize,
    entries: u32,
    pub(super) entries_max: u32,
    pub(super) entries_cut: u32,
    pub(super) bytes_cut: u32,
    /// Counts up when the entries so far are taken away, so that open spans know theirs are gone.
    pub(super) generation: u32,
    spans: u32,
    stack: Stack,
}

/// The spans that are being polled, innermost last.
#[derive(Default)]
struct Stack {
    depth: usize,
    spans: [Open; DEPTH_MAX],
}

#[derive(Clone, Copy, Default)]
struct Open {
    index: u32,
    place: Place,
}

/// Where a span's entry lies, and in which generation of the buffer.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    at: u32,
    generation: u32,
}

/// What a span entry is brought up to date with.
#[derive(Clone, Copy, Default)]
pub(super) struct Times {
    pub(super) polls: u32,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) busy: u64,
}

// === impl Log ===

impl Log {
    pub(super) fn begin(&mut self, buffer: Option<Box<[u8]>>, entries_max: u32) {
        self.buffer = buffer;
        self.entries_max = entries_max;
        self.entries_cut = 0;
        self.bytes_cut = 0;
        self.spans = 0;
        self.stack.depth = 0;
        self.start_anew();
    }

    /// Forgets the entries; spans that are open write themselves again when they close.
    pub(super) fn start_anew(&mut self) {
        self.len = 0;
        self.entries = 0;
        // 0 is of the spans that found no place.
        self.generation = self.generation.wrapping_add(1).max(1);
    }

    pub(super) fn entries(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.len])
    }

    pub(super) fn count(&self) -> u32 {
        self.entries
    }

    /// Moves the entries into `larger` and gives the former buffer back.
    pub(super) fn enlarge(&mut self, mut larger: Box<[u8]>) -> Option<Box<[u8]>> {
        larger[..self.len].copy_from_slice(self.entries());
        self.buffer.replace(larger)
    }

    /// The index of the next span. They go on counting over all segments, since ids come from them.
    pub(super) fn next_span(&mut self) -> u32 {
        self.spans = self.spans.saturating_add(1);
        self.spans
    }

    /// Writes a span.
    pub(super) fn span(
        &mut self,
        site: &'static Site,
        index: u32,
        parent: u32,
        flags: u8,
        times: Times,
        values: &[Value<'_>],
    ) -> Option<Place> {
        let generation = self.generation;
        let values = &values[..values.len().min(FIELDS_MAX)];
        let size = SPAN_LEN + size_of_values(values);
        let (at, entry) = self.reserve(size)?;
        let head: &mut [u8; SPAN_LEN] = entry.first_chunk_mut().expect("reserved");
        head[..2].copy_from_slice(&[SPAN, flags]);
        head[2..4].copy_from_slice(&(size as u16).to_le_bytes());
        head[4..6].copy_from_slice(&site.id().to_le_bytes());
        head[6..8].copy_from_slice(&[0; 2]);
        head[8..12].copy_from_slice(&index.to_le_bytes());
        head[12..16].copy_from_slice(&parent.to_le_bytes());
        times.write(head);
        write_values(&mut entry[SPAN_LEN..], values);
        Some(Place { at, generation })
    }

    /// Brings a span up to date; false when its entry is gone.
    pub(super) fn update(&mut self, place: Place, flags: u8, times: Times) -> bool {
        if place.generation != self.generation {
            return false;
        }
        let Some(buffer) = &mut self.buffer else { return false };
        let Some(entry) = buffer[place.at as usize..].first_chunk_mut() else { return false };
        entry[FLAGS_AT] |= flags;
        times.write(entry);
        true
    }

    /// Marks the current span as failed.
    pub(super) fn fail(&mut self) {
        let Some(Open { place, .. }) = self.stack.top() else { return };
        if place.generation == self.generation
            && let Some(buffer) = &mut self.buffer
        {
            buffer[place.at as usize + FLAGS_AT] |= FAILED;
        }
    }

    pub(super) fn event(&mut self, site: &'static Site, at: u64, values: &[Value<'_>]) {
        let values = &values[..values.len().min(FIELDS_MAX)];
        let size = EVENT_LEN + size_of_values(values);
        let span = self.current();
        let Some((_, entry)) = self.reserve(size) else { return };
        let head: &mut [u8; EVENT_LEN] = entry.first_chunk_mut().expect("reserved");
        head[..2].copy_from_slice(&[EVENT, 0]);
        head[2..4].copy_from_slice(&(size as u16).to_le_bytes());
        head[4..6].copy_from_slice(&site.id().to_le_bytes());
        head[6..10].copy_from_slice(&span.to_le_bytes());
        head[10..].copy_from_slice(&at.to_le_bytes());
        write_values(&mut entry[EVENT_LEN..], values);
    }

    /// Adds a field to the current span.
    pub(super) fn field(&mut self, key: &'static str, value: Value<'_>) {
        let size = FIELD_LEN + size_of_value(&value);
        let span = self.current();
        let Some((_, entry)) = self.reserve(size) else { return };
        entry[..2].copy_from_slice(&[FIELD, 0]);
        entry[2..4].copy_from_slice(&(size as u16).to_le_bytes());
        entry[4..6].copy_from_slice(&site::text_id(key).to_le_bytes());
        entry[6..10].copy_from_slice(&span.to_le_bytes());
        write_values(&mut entry[FIELD_LEN..], &[value]);
    }

    /// What a library said.
    pub(super) fn library(
        &mut self,
        name: &'static str,
        target: &'static str,
        level: tracing::Level,
        at: u64,
        fields: &[(&'static str, Value<'_>)],
    ) {
        let fields = &fields[..fields.len().min(FIELDS_MAX)];
        let of_fields: usize = fields.iter().map(|(_, value)| 2 + size_of_value(value)).sum();
        let size = LIBRARY_LEN + of_fields;
        let span = self.current();
        let Some((_, entry)) = self.reserve(size) else { return };
        entry[..2].copy_from_slice(&[LIBRARY, encode_level(level)]);
        entry[2..4].copy_from_slice(&(size as u16).to_le_bytes());
        entry[4..6].copy_from_slice(&site::text_id(name).to_le_bytes());
        entry[6..8].copy_from_slice(&site::text_id(target).to_le_bytes());
        entry[8..12].copy_from_slice(&span.to_le_bytes());
        entry[12..20].copy_from_slice(&at.to_le_bytes());
        let mut rest = &mut entry[LIBRARY_LEN..];
        for (key, value) in fields {
            put(&mut rest, &site::text_id(key).to_le_bytes());
            write_value(&mut rest, value);
        }
    }

    fn reserve(&mut self, size: usize) -> Option<(u32, &mut [u8])> {
        let room = self.buffer.as_ref().map_or(0, |buffer| buffer.len() - self.len);
        if size > room || self.entries >= self.entries_max {
            self.cut(1, size);
            return None;
        }
        let at = self.len;
        self.len += size;
        self.entries += 1;
        Some((at as u32, &mut self.buffer.as_mut()?[at..at + size]))
    }

    pub(super) fn cut(&mut self, entries: u32, bytes: usize) {
        self.entries_cut = self.entries_cut.saturating_add(entries);
        self.bytes_cut = self.bytes_cut.saturating_add(bytes as u32);
    }

    /// The index of the span that is being polled; 0 is the request.
    pub(super) fn current(&self) -> u32 {
        self.stack.top().map_or(0, |open| open.index)
    }

    pub(super) fn enter(&mut self, index: u32, place: Place) {
        let stack = &mut self.stack;
        if let Some(free) = stack.spans.get_mut(stack.depth) {
            *free = Open { index, place };
            stack.depth += 1;
        }
    }

    /// Guards may end in any order, and one that was too deep is not there.
    pub(super) fn leave(&mut self, index: u32) {
        let stack = &mut self.stack;
        if stack.top().is_some_and(|open| open.index == index) {
            stack.depth -= 1;
            return;
        }
        let held = &stack.spans[..stack.depth];
        if let Some(at) = held.iter().rposition(|open| open.index == index) {
            stack.spans.copy_within(at + 1..stack.depth, at);
            stack.depth -= 1;
        }
    }
}

impl Stack {
    fn top(&self) -> Option<Open> {
        self.depth.checked_sub(1).map(|top| self.spans[top])
    }
}

impl Times {
    /// Field by field: a copy of what was just written in smaller pieces stalls the processor, which
    /// cannot forward such stores.
    fn write(self, entry: &mut [u8; SPAN_LEN]) {
        entry[16..20].copy_from_slice(&self.polls.to_le_bytes());
        entry[20..28].copy_from_slice(&self.start.to_le_bytes());
        entry[28..36].copy_from_slice(&self.end.to_le_bytes());
        entry[36..44].copy_from_slice(&self.busy.to_le_bytes());
    }
}

fn encode_level(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    }
}

fn size_of_values(values: &[Value<'_>]) -> usize {
    values.iter().map(size_of_value).sum()
}

fn size_of_value(value: &Value<'_>) -> usize {
    match value {
        Value::Bool(_) => 1,
        Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) => 9,
        Value::Static(_) => 3,
        Value::Catalogued(text) | Value::Exposed(text) => 3 + cut_text(text).len(),
    }
}

fn write_values(mut rest: &mut [u8], values: &[Value<'_>]) {
    for value in values {
        write_value(&mut rest, value);
    }
}

fn write_value(rest: &mut &mut [u8], value: &Value<'_>) {
    let mut number = |tag: u8, bytes: [u8; 8]| {
        let (number, after) = std::mem::take(rest).split_at_mut(9);
        number[0] = tag;
        number[1..].copy_from_slice(&bytes);
        *rest = after;
    };
    match value {
        Value::Unsigned(value) => number(UNSIGNED, value.to_le_bytes()),
        Value::Signed(value) => number(SIGNED, value.to_le_bytes()),
        Value::Float(value) => number(FLOAT, value.to_le_bytes()),
        Value::Bool(value) => put(rest, &[if *value { TRUE } else { FALSE }]),
        Value::Static(text) => {
            let [low, high] = site::text_id(text).to_le_bytes();
            put(rest, &[STATIC, low, high]);
        }
        Value::Catalogued(text) => write_text(rest, CATALOGUED, text),
        Value::Exposed(text) => write_text(rest, EXPOSED, text),
    }
}

fn write_text(rest: &mut &mut [u8], tag: u8, text: &str) {
    let text = cut_text(text);
    let [low, high] = (text.len() as u16).to_le_bytes();
    put(rest, &[tag, low, high]);
    put(rest, text.as_bytes());
}

fn cut_text(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

fn put(rest: &mut &mut [u8], bytes: &[u8]) {
    let (head, tail) = std::mem::take(rest).split_at_mut(bytes.len());
    head.copy_from_slice(bytes);
    *rest = tail;
}
