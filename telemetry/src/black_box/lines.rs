//! A layer of the log that keeps what warns or worse in the black box.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::record::{LINE_BYTES_MAX, Level};
use crate::clock;

/// Writes every event at `warn` and `error` to the black box of the process, cut to 240 bytes.
///
/// It sees what the log's own filter lets through. Nothing is allocated, and nothing is kept before
/// a box is installed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            _ => return,
        };
        let Some(black_box) = super::installed() else { return };
        let mut text = Text::default();
        // A full text refuses what does not fit; what came before is kept.
        write!(text, "{}: ", metadata.target()).ok();
        event.record(&mut text);
        black_box.line(clock::now(), level, text.as_str());
    }
}

/// A line on the stack.
struct Text {
    bytes: [u8; LINE_BYTES_MAX],
    length: usize,
    has_field: bool,
}

impl Text {
    fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }

    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let separator = if self.has_field { " " } else { "" };
        self.has_field = true;
        match field.name() {
            "message" => write!(self, "{separator}{value}"),
            name => write!(self, "{separator}{name}={value}"),
        }
        .ok(); // full
    }
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; LINE_BYTES_MAX], length: 0, has_field: false }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            // A stranger's bytes must not forge a line for whoever reads this.
            let character = if character.is_control() { '?' } else { character };
            let room = self.bytes.get_mut(self.length..).unwrap_or_default();
            if character.len_utf8() > room.len() {
                return Err(fmt::Error);
            }
            self.length += character.encode_utf8(room).len();
        }
        Ok(())
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.field(field, format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_a_character_and_has_no_controls() {
        let mut text = Text::default();
        assert!(write!(text, "a\nb\u{1b}[31m{}", "é".repeat(200)).is_err());
        assert!(text.as_str().starts_with("a?b?[31mé"), "{}", text.as_str());
        assert_eq!(text.as_str().len(), LINE_BYTES_MAX);
    }
}
