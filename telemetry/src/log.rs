//! Log lines on stderr: which events are written, and that one event is one line.
//!
//! Only events are recorded. A span that a library opens is never enabled, so nothing can collect
//! under it. Beside the lines, the same subscriber serves the [`bridge`] into verbose records; each
//! has a filter of its own, so that what one wants to hear costs the other nothing.

use std::io::{self, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{FilterExt as _, ParseError, Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::black_box::Lines;
use crate::bridge;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log filter is not a list of LEVEL or TARGET=LEVEL")]
    Filter(#[source] ParseError),
    #[error("the log is open already")]
    Open,
}

/// Opens the log of the process; `filter` is a list of `LEVEL` or `TARGET=LEVEL`.
///
/// # Errors
///
/// When the filter does not parse, or a log was opened before.
pub fn open(filter: &str, format: Format) -> Result<(), LogError> {
    let targets = filter.parse().map_err(LogError::Filter)?;
    let subscriber = subscriber(targets, format, || OneLine(io::stderr()));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Open)
}

fn subscriber<W>(
    targets: Targets,
    format: Format,
    writer: W,
) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let lines = match format {
        Format::Text => layer.boxed(),
        Format::Json => layer.json().boxed(),
    };
    // Without a hint of its own it would raise the level of the whole to the highest.
    let events_only =
        filter_fn(|metadata| metadata.is_event()).with_max_level_hint(LevelFilter::TRACE);
    tracing_subscriber::registry()
        .with(Lines.with_filter(targets.clone().and(events_only.clone())))
        .with(lines.with_filter(targets.and(events_only)))
        .with(bridge::layer())
}

/// Writes what the formatter hands over as one line without control characters.
///
/// The formatter escapes terminal sequences in messages but not in `%` fields, and line breaks
/// nowhere, so a stranger's bytes could forge a line or drive the reader's terminal.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    // One call is one event: the formatter fills a buffer and writes it whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event));
        if line.contains(char::is_control) {
            self.0.write_all(escaped(&line).as_bytes())?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The line with JSON's escapes, which are right in both formats.
fn escaped(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len() + 16);
    for character in line.chars() {
        if character.is_control() {
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    escaped.push('\n');
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(filter: &str, format: Format, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let targets = filter.parse().expect("the test's filter parses");
        let subscriber = subscriber(targets, format, move || OneLine(writer.clone()));
        tracing::subscriber::with_default(subscriber, events);
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).expect("a log is text")
    }

    const HOSTILE: &str = "a\nb\r\x1b[31mc\0d\u{7f}\u{9b}e";

    #[test]
    fn control_characters_of_strangers_stay_on_one_line() {
        let text = written("info", Format::Text, || {
            tracing::info!(path = %HOSTILE, shown = ?HOSTILE, "request refused: {HOSTILE}");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let control = |character: &char| character.is_control() && *character != '\n';
        assert_eq!(text.chars().find(control), None, "{text:?}");
        assert!(
            text.contains("path=a\\u000ab\\u000d\\u001b[31mc\\u0000d\\u007f\\u009be"),
            "{text}"
        );
    }

    #[test]
    fn json_lines_are_one_object_each() {
        let text = written("info", Format::Json, || {
            tracing::info!(path = %HOSTILE, "refused");
            tracing::info!("again");
        });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(lines.iter().all(|line| line.starts_with('{') && line.ends_with('}')), "{text}");
    }

    #[test]
    fn the_filter_decides_by_target_and_level() {
        let text = written("warn,mine=debug", Format::Text, || {
            tracing::info!("hidden");
            tracing::warn!("shown first");
            tracing::debug!(target: "mine", "shown second");
        });
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn spans_are_never_enabled() {
        let text = written("trace", Format::Text, || {
            let span = tracing::info_span!("outer", secret = "held");
            assert!(span.is_disabled());
            span.in_scope(|| tracing::info!("inside"));
        });
        assert!(text.contains("inside") && !text.contains("outer"), "{text}");
    }
}
