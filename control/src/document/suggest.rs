//! How keys and values are shown in a message, and which one was probably meant.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters of a value that a message repeats.
const SHOWN_MAX: usize = 60;

/// `; did you mean "soft_limit"?` when one of `known` is near, else nothing.
pub(super) fn did_you_mean<'k>(written: &str, known: impl Iterator<Item = &'k str>) -> String {
    // The distance is quadratic in the length, and no key of ours is this long.
    if written.len() > 64 {
        return String::new();
    }
    let distance = |known| strsim::osa_distance(written, known);
    let nearest = known.map(|known| (distance(known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= tolerance(known) => {
            format!("; did you mean {}?", quoted(known))
        }
        _ => String::new(),
    }
}

/// Mistakes that still leave a name of this length recognisable.
fn tolerance(name: &str) -> usize {
    match name.len() {
        0..=2 => 0,
        3..=5 => 1,
        6..=11 => 2,
        _ => 3,
    }
}

/// `text` in quotes on one line, not too long.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars().take(SHOWN_MAX) {
        match c {
            '"' => out.push_str("\\\""),
            c if c.is_control() => {
                let _infallible = write!(out, "{}", c.escape_default());
            }
            c => out.push(c),
        }
    }
    if text.chars().nth(SHOWN_MAX).is_some() {
        out.push('…');
    }
    out.push('"');
    out
}

/// A key as it stands in a key path: quoted when it would be ambiguous.
pub(super) fn key_segment(key: &str) -> Cow<'_, str> {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !key.is_empty() && key.len() <= SHOWN_MAX && key.chars().all(bare) {
        Cow::Borrowed(key)
    } else {
        Cow::Owned(quoted(key))
    }
}
