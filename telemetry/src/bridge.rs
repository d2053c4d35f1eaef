//! What libraries say about a verbose request: their `tracing` events, in its record.
//!
//! Off until somebody asks: while nothing is armed the callsites of libraries are cached as never
//! interesting, and cost a load each. Armed, they ask whether the thread works for a verbose record,
//! some 40 ns each for every request of the node, so whoever arms also disarms.
//!
//! Spans are never enabled, whoever opens them: a span of a connection would live as long as it does,
//! and its children would keep it.
//!
//! A library's message may quote what a client sent, so none is recorded: level, target and the name
//! of the callsite are from its source, numbers and booleans cannot quote. Texts are recorded when
//! the configuration exposes them.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Filtered;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

use crate::record::{self, Record, Value};

/// Whose events are of interest, with everything below their path. Static: a filter that is told at
/// run time is asked under a lock.
const TARGETS: [&str; 8] =
    ["h2", "hyper", "hyper_util", "rustls", "tokio_rustls", "tower", "proxy", "control"];

/// Fields of an event that are recorded; what is beyond is left out.
const FIELDS_MAX: usize = 16;
/// Bytes of all texts of an event, when texts are exposed at all.
const TEXT_MAX: usize = 512;

/// How many have armed. Under the lock while the cached interests are brought in line with it.
static ARMED: AtomicUsize = AtomicUsize::new(0);
static ARMING: Mutex<()> = Mutex::new(());
static TEXT_EXPOSED: AtomicBool = AtomicBool::new(false);

/// Writes events of libraries into the thread's record, when that is verbose.
#[derive(Debug)]
pub struct Bridge(());

/// Which callsites the bridge wants to hear.
#[derive(Debug)]
pub struct Wanted(());

/// The fields of one event, without an allocation.
struct Fields {
    fields: [(&'static str, Held); FIELDS_MAX],
    count: usize,
    text: Text,
    text_exposed: bool,
}

#[derive(Clone, Copy)]
enum Held {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text { start: usize, end: usize },
}

struct Text {
    bytes: [u8; TEXT_MAX],
    len: usize,
}

/// Lets libraries speak, until as many have disarmed. The first one makes the process look at every
/// callsite again, which takes microseconds; it is for rules and tokens, not for requests.
pub fn arm() {
    let _lock = ARMING.lock();
    if ARMED.fetch_add(1, Relaxed) == 0 {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Takes one [`arm`] back; the last silences libraries.
pub fn disarm() {
    let _lock = ARMING.lock();
    let before = ARMED.fetch_update(Relaxed, Relaxed, |armed| armed.checked_sub(1));
    debug_assert!(before.is_ok(), "who disarms has armed");
    if before == Ok(1) {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Whether texts of libraries are recorded, which may quote clients. Off by default.
pub fn expose_text(exposed: bool) {
    TEXT_EXPOSED.store(exposed, Relaxed);
}

/// The layer with its filter; to be beside others that have a filter each.
pub fn layer<S>() -> Filtered<Bridge, Wanted, S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    Bridge(()).with_filter(Wanted(()))
}

fn is_of_library(target: &str) -> bool {
    let krate = target.split_once("::").map_or(target, |(krate, _)| krate);
    TARGETS.contains(&krate)
}

// === impl Wanted ===

impl<S> Filter<S> for Wanted {
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if ARMED.load(Relaxed) > 0 && metadata.is_event() && is_of_library(metadata.target()) {
            Interest::sometimes()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        ARMED.load(Relaxed) > 0
            && metadata.is_event()
            && record::current(Record::is_verbose).unwrap_or_default()
            && is_of_library(metadata.target())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let armed = ARMED.load(Relaxed) > 0;
        Some(if armed { LevelFilter::TRACE } else { LevelFilter::OFF })
    }
}

// === impl Bridge ===

impl<S: Subscriber> Layer<S> for Bridge {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        record::current(|record| {
            let mut fields = Fields::new(TEXT_EXPOSED.load(Relaxed));
            event.record(&mut fields);
            let metadata = event.metadata();
            fields.with(|fields| {
                let (name, target) = (place(metadata.name()), metadata.target());
                record.library_event(name, target, *metadata.level(), fields);
            });
        });
    }
}

/// The file and line of an event that was given no name; where it was compiled is nobody's business.
fn place(name: &'static str) -> &'static str {
    name.strip_prefix("event ").and_then(|path| path.rsplit('/').next()).unwrap_or(name)
}

// === impl Fields ===

impl Fields {
    fn new(text_exposed: bool) -> Self {
        let text = Text { bytes: [0; TEXT_MAX], len: 0 };
        Self { fields: [("", Held::Bool(false)); FIELDS_MAX], count: 0, text, text_exposed }
    }

    fn push(&mut self, field: &Field, value: Held) {
        if let Some(free) = self.fields.get_mut(self.count) {
            *free = (field.name(), value);
            self.count += 1;
        }
    }

    fn with(&self, with: impl FnOnce(&[(&'static str, Value<'_>)])) {
        let mut values = [("", Value::Bool(false)); FIELDS_MAX];
        let held = self.fields.iter().take(self.count);
        for (to, (key, held)) in values.iter_mut().zip(held) {
            let value = match *held {
                Held::Bool(value) => Value::Bool(value),
                Held::Unsigned(value) => Value::Unsigned(value),
                Held::Signed(value) => Value::Signed(value),
                Held::Float(value) => Value::Float(value),
                Held::Text { start, end } => Value::Exposed(self.text.between(start, end)),
            };
            *to = (key, value);
        }
        with(&values[..self.count]);
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Held::Bool(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Held::Unsigned(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Held::Signed(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Held::Float(value));
    }

    // Messages, texts and errors all come through here.
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !self.text_exposed {
            return;
        }
        let start = self.text.len;
        // Cut where there is no more room.
        let _whole = write!(self.text, "{value:?}");
        self.push(field, Held::Text { start, end: self.text.len });
    }
}

// === impl Text ===

impl Text {
    fn between(&self, start: usize, end: usize) -> &str {
        std::str::from_utf8(&self.bytes[start..end]).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let cut = text.floor_char_boundary(room.len());
        room[..cut].copy_from_slice(&text.as_bytes()[..cut]);
        self.len += cut;
        if cut < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_without_a_name_is_named_by_its_file_and_line() {
        assert_eq!(place("event /home/a/h2-0.4.20/src/proto/send.rs:133"), "send.rs:133");
        assert_eq!(place("event src/send.rs:1"), "send.rs:1");
        assert_eq!(place("named"), "named");
    }
}
