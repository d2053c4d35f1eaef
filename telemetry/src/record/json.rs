//! A kept record as JSON, for programs; for people there is [`super::timeline`].

use serde_json::{Map, Value as Json, json};

use super::model::{Entry, Event, Finished, Span, Value, Wide};

/// The segments of one record, oldest first, with all they hold.
pub fn render<'a>(segments: impl IntoIterator<Item = &'a Finished>) -> Json {
    segments.into_iter().map(segment).collect()
}

fn segment(finished: &Finished) -> Json {
    let entries: Vec<_> = finished.entries().iter().map(entry).collect();
    json!({
        "request": wide(&finished.wide),
        "keep": finished.keep.as_str(),
        "segment": finished.segment,
        "open": finished.open,
        "entries_cut": finished.entries_cut,
        "bytes_cut": finished.bytes_cut,
        "entries": entries,
    })
}

fn wide(wide: &Wide) -> Json {
    let remote =
        |it: super::Remote| json!({ "trace": it.trace.to_string(), "span": it.span.to_string() });
    json!({
        "trace": wide.trace.to_string(),
        "span": wide.span.to_string(),
        "parent": wide.parent.map(remote),
        "link": wide.link.map(remote),
        "began_unix_ms": wide.began.as_millis() as u64,
        "lasted_ms": milliseconds(wide.lasted),
        "head_after_ms": wide.head_after.map(milliseconds),
        "request_id": wide.request_id.as_str(),
        "app": wide.app.as_deref(),
        "instance": wide.instance.as_deref(),
        "node": wide.node.as_deref(),
        "method": wide.method.as_str(),
        "protocol": wide.protocol.as_str(),
        "tls": wide.tls,
        "status": wide.status,
        "error": wide.error,
        "attempts": wide.attempts,
        "request_bytes": wide.request_bytes,
        "response_bytes": wide.response_bytes,
    })
}

fn entry(entry: &Entry<'_>) -> Json {
    match entry {
        Entry::Span(span) => {
            let Span { id, parent, name, target, start, end, busy, idle, polls, failed, fields } =
                span;
            json!({
                "span": id.to_string(),
                "parent": parent.map(|parent| parent.to_string()),
                "name": name,
                "target": target,
                "start_ms": milliseconds(*start),
                "end_ms": end.map(milliseconds),
                "busy_ms": milliseconds(*busy),
                "idle_ms": milliseconds(*idle),
                "polls": polls,
                "failed": failed,
                "fields": self::fields(fields),
            })
        }
        Entry::Event(event) => {
            let Event { span, name, target, level, at, fields } = event;
            json!({
                "event": name,
                "in": span.map(|span| span.to_string()),
                "target": target,
                "level": level.as_str(),
                "at_ms": milliseconds(*at),
                "fields": self::fields(fields),
            })
        }
    }
}

fn fields(fields: &[(&'static str, Value<'_>)]) -> Map<String, Json> {
    let value = |value: &Value<'_>| match *value {
        Value::Bool(value) => json!(value),
        Value::Unsigned(value) => json!(value),
        Value::Signed(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Static(text) => json!(text),
        Value::Catalogued(text) | Value::Exposed(text) => json!(text),
    };
    fields.iter().map(|(key, field)| ((*key).to_owned(), value(field))).collect()
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
