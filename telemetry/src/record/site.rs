//! Places in our own source that write into records, known by a small number.
//!
//! An entry holds the number, so that bytes can be read back without trusting them: a number that
//! was never given out reads as an unknown place.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use tracing::Level;

/// A place that opens a span or writes an event; always a `static`, made by [`crate::site!`].
pub struct Site {
    pub name: &'static str,
    pub target: &'static str,
    pub level: Level,
    /// Names of the fields, in the order in which their values are given.
    pub keys: &'static [&'static str],
    /// 0 until it is first used.
    id: AtomicU32,
}

const SITES_MAX: usize = 2048;
const TEXTS_MAX: usize = 4096;

static SITES: [OnceLock<&'static Site>; SITES_MAX] = [const { OnceLock::new() }; SITES_MAX];
static NEXT: AtomicU32 = AtomicU32::new(1);
static TEXTS: [OnceLock<&'static str>; TEXTS_MAX] = [const { OnceLock::new() }; TEXTS_MAX];

static UNKNOWN: Site = Site::new("unknown", "", Level::DEBUG, &[]);

/// What stands for a text that found no place in the table.
const UNKNOWN_TEXT: &str = "?";

/// A static [`Site`] named here: `site!("connect", app, attempt)`, or with a level before the name.
#[macro_export]
macro_rules! site {
    ($name:literal $(, $key:ident)* $(,)?) => { $crate::site!(DEBUG, $name $(, $key)*) };
    ($level:ident, $name:literal $(, $key:ident)* $(,)?) => {{
        static SITE: $crate::record::Site = $crate::record::Site::new(
            $name,
            ::core::module_path!(),
            $crate::record::Level::$level,
            &[$(::core::stringify!($key)),*],
        );
        &SITE
    }};
}

/// Writes an event into a record: `event!(record, "picked", candidates = 3u64)`, or with a level
/// before the name. A value is anything a [`crate::record::Value`] is made from.
#[macro_export]
macro_rules! event {
    ($record:expr, $name:literal $(, $key:ident = $value:expr)* $(,)?) => {
        $crate::event!($record, DEBUG, $name $(, $key = $value)*)
    };
    ($record:expr, $level:ident, $name:literal $(, $key:ident = $value:expr)* $(,)?) => {
        $record.event(
            $crate::site!($level, $name $(, $key)*),
            &[$($crate::record::Value::from($value)),*],
        )
    };
}

// === impl Site ===

impl Site {
    pub const fn new(
        name: &'static str,
        target: &'static str,
        level: Level,
        keys: &'static [&'static str],
    ) -> Self {
        Self { name, target, level, keys, id: AtomicU32::new(0) }
    }

    pub(super) fn id(&'static self) -> u16 {
        match self.id.load(Acquire) {
            0 => self.register(),
            id => id as u16,
        }
    }

    /// Two threads may both register a place that is new; it then has two numbers that mean the same.
    #[cold]
    fn register(&'static self) -> u16 {
        let next = |id| ((id as usize) < SITES_MAX).then_some(id + 1);
        let Ok(id) = NEXT.fetch_update(Relaxed, Relaxed, next) else { return 0 };
        SITES[id as usize].get_or_init(|| self);
        self.id.store(id, Release);
        id as u16
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

pub(super) fn by_id(id: u16) -> &'static Site {
    SITES.get(usize::from(id)).and_then(OnceLock::get).copied().unwrap_or(&UNKNOWN)
}

/// The number of a text of the source. Known by its address, so that it is not read.
pub(super) fn text_id(text: &'static str) -> u16 {
    let start = super::typical::slot(text.as_ptr() as usize, TEXTS_MAX);
    for at in (start..start + 16).map(|at| at % TEXTS_MAX) {
        let held = TEXTS[at].get_or_init(|| text);
        if std::ptr::eq(*held, text) {
            return at as u16;
        }
    }
    u16::MAX
}

pub(super) fn text_by_id(id: u16) -> &'static str {
    TEXTS.get(usize::from(id)).and_then(OnceLock::get).copied().unwrap_or(UNKNOWN_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_and_a_text_keep_their_number() {
        let site = crate::site!("connect", app, attempt);
        assert_eq!(site.id(), site.id());
        assert_eq!(by_id(site.id()).name, "connect");
        assert_eq!(by_id(site.id()).keys, ["app", "attempt"]);
        let text: &'static str = "local";
        assert_eq!(text_by_id(text_id(text)), text);
        assert_eq!(text_by_id(text_id(&text[1..])), "ocal");
    }

    #[test]
    fn a_number_never_given_out_is_unknown() {
        assert_eq!(by_id(u16::MAX).name, "unknown");
        assert_eq!(text_by_id(u16::MAX), "?");
    }
}
