//! A record as a person reads it: one line per span and event, in the order of time.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use super::model::{
    Entry, Event, Exposed, Finished, Keep, Method, Protocol, Span, SpanId, Value, Wide,
};

/// Deeper than the recorder nests; ends the walk over parents that damaged bytes made a circle.
const DEPTH_MAX: usize = 16;

/// The segments of one request on one node, in order; offsets are milliseconds since its begin.
pub fn render<'a>(segments: impl IntoIterator<Item = &'a Finished>) -> String {
    let segments: Vec<_> = segments.into_iter().collect();
    let Some(last) = segments.last() else { return String::new() };
    let mut out = String::new();
    head(&mut out, last, segments.len());

    let entries = merged(&segments);
    let parents: HashMap<SpanId, Option<SpanId>> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Span(span) => Some((span.id, span.parent)),
            Entry::Event(_) => None,
        })
        .collect();
    let depth = |span: Option<SpanId>| {
        std::iter::successors(span, |id| *parents.get(id)?).take(DEPTH_MAX).count()
    };
    for entry in &entries {
        match entry {
            Entry::Span(span) => span_line(&mut out, span, depth(span.parent)),
            Entry::Event(event) => event_line(&mut out, event, depth(event.span)),
        }
    }
    if last.entries_cut > 0 {
        let (entries, bytes) = (last.entries_cut, last.bytes_cut);
        put(&mut out, format_args!("not kept: {entries} entries, {bytes} bytes\n"));
    }
    out
}

/// All entries by time. Of a span that comes in several segments the last says most.
fn merged<'a>(segments: &[&'a Finished]) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> = Vec::new();
    let mut spans = HashMap::new();
    for entry in segments.iter().flat_map(|segment| segment.entries()) {
        let Entry::Span(mut span) = entry else {
            entries.push(entry);
            continue;
        };
        let at = *spans.entry(span.id).or_insert(entries.len());
        if let Some(Entry::Span(earlier)) = entries.get_mut(at) {
            // Written anew without the fields, which the first segment has.
            let mut fields = std::mem::take(&mut earlier.fields);
            fields.append(&mut span.fields);
            *earlier = Span { fields, ..span };
        } else {
            entries.push(Entry::Span(span));
        }
    }
    entries.sort_by_key(|entry| match entry {
        Entry::Span(span) => span.start,
        Entry::Event(event) => event.at,
    });
    entries
}

fn head(out: &mut String, last: &Finished, segments: usize) {
    let Wide { trace, request_id, method, protocol, tls, .. } = &last.wide;
    let security = if *tls { " over TLS" } else { "" };
    let id = request_id.as_str().escape_default();
    let (method, protocol) = (Method::as_str(*method), name_of_protocol(*protocol));
    put(out, format_args!("trace {trace}  request {id}\n"));
    put(out, format_args!("{method}, {protocol}{security}"));
    let names =
        [("app", &last.wide.app), ("instance", &last.wide.instance), ("node", &last.wide.node)];
    for (label, name) in names {
        if let Some(name) = name {
            put(out, format_args!(", {label} {}", name.escape_default()));
        }
    }
    out.push('\n');
    put(out, format_args!("kept as {}", name_of_keep(last.keep)));
    match (last.wide.status, last.wide.error) {
        (Some(status), Some(error)) => put(out, format_args!(", {status} {error}")),
        (Some(status), None) => put(out, format_args!(", {status}")),
        (None, Some(error)) => put(out, format_args!(", {error}")),
        (None, None) => out.push_str(", not answered"),
    }
    put(out, format_args!(", {} attempts", last.wide.attempts));
    if let Some(head_after) = last.wide.head_after {
        put(out, format_args!(", head after {} ms", ms(head_after)));
    }
    let lasted = ms(last.wide.lasted);
    let state = if last.open { "still open after" } else { "ended after" };
    let plural = if segments == 1 { "" } else { "s" };
    put(out, format_args!(", {state} {lasted} ms, {segments} segment{plural}\n"));
    if let Some(exposed) = &last.wide.exposed {
        exposed_line(out, exposed);
    }
}

fn exposed_line(out: &mut String, exposed: &Exposed) {
    out.push_str("exposed:");
    if let Some(client) = exposed.client {
        put(out, format_args!(" client={client}"));
    }
    let Exposed { host, path, query, user_agent, .. } = exposed;
    let texts = [("host", host), ("path", path), ("query", query), ("user_agent", user_agent)];
    for (key, text) in texts {
        if let Some(text) = text {
            put(out, format_args!(" {key}="));
            quoted(out, text);
        }
    }
    out.push('\n');
}

fn span_line(out: &mut String, span: &Span<'_>, depth: usize) {
    let indent = 2 * depth;
    put(out, format_args!("{:>12}  {:indent$}{}", ms(span.start), "", span.name));
    match span.end {
        Some(end) => put(out, format_args!("  {} ms", ms(end.saturating_sub(span.start)))),
        None => out.push_str("  open"),
    }
    let (busy, idle) = (ms(span.busy), ms(span.idle));
    put(out, format_args!(" (busy {busy}, idle {idle}, {} polls)", span.polls));
    if span.failed {
        out.push_str(" FAILED");
    }
    fields(out, &span.fields);
}

fn event_line(out: &mut String, event: &Event<'_>, depth: usize) {
    let indent = 2 * depth;
    put(out, format_args!("{:>12}  {:indent$}- {}", ms(event.at), "", event.name));
    if event.level != tracing::Level::DEBUG {
        put(out, format_args!(" [{}]", event.level));
    }
    if !event.target.is_empty() {
        put(out, format_args!(" <{}>", event.target));
    }
    fields(out, &event.fields);
}

fn fields(out: &mut String, fields: &[(&'static str, Value<'_>)]) {
    for (key, value) in fields {
        put(out, format_args!(" {key}="));
        match value {
            Value::Bool(value) => put(out, format_args!("{value}")),
            Value::Unsigned(value) => put(out, format_args!("{value}")),
            Value::Signed(value) => put(out, format_args!("{value}")),
            Value::Float(value) => put(out, format_args!("{value}")),
            Value::Static(text) => out.push_str(text),
            Value::Catalogued(text) | Value::Exposed(text) => quoted(out, text),
        }
    }
    out.push('\n');
}

/// Texts may hold what drives a terminal.
fn quoted(out: &mut String, text: &str) {
    put(out, format_args!("\"{}\"", text.escape_default()));
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes everything, and what is shown never fails");
}

/// Milliseconds to the microsecond.
fn ms(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1000.0)
}

fn name_of_keep(keep: Keep) -> &'static str {
    match keep {
        Keep::Error => "error",
        Keep::Slow => "slow",
        Keep::Retried => "retried",
        Keep::Sampled => "sampled",
        Keep::Verbose => "verbose",
        Keep::NearAnomaly => "near an anomaly",
    }
}

fn name_of_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "HTTP/1",
        Protocol::Http2 => "HTTP/2",
        Protocol::Mesh => "mesh",
        Protocol::Tcp => "TCP",
        Protocol::WebSocket => "WebSocket",
    }
}
