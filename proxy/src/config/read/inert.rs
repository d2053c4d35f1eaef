//! Sections that are checked like all others but do nothing yet: the reader is told so.
//!
//! Writing a default is no reason to warn, so that a file that shows every key stays quiet.

use control::document::Table;

use super::values;

const NOT_YET: &str = "is understood, but not acted on yet";

/// `[inventory.nats]`
pub(super) fn nats(mut section: Table<'_>) {
    let servers = section.list_of("servers", |item| values::url(item, &["nats", "tls"]));
    if servers.is_some_and(|servers| !servers.is_empty()) {
        section.warning("servers", NOT_YET);
    }
    section.finish();
}
