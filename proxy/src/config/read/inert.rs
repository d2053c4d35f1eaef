//! Sections that are checked like all others but do nothing yet: the reader is told so.
//!
//! Writing a default is no reason to warn, so that a file that shows every key stays quiet.

use control::document::{Item, Table};
use http::Uri;

use super::values;

const NOT_YET: &str = "is understood, but not acted on yet";

/// `listen.prefixes`
pub(super) fn prefixes(listen: &mut Table<'_>) {
    let prefixes = listen.list_of("prefixes", |item| item.parsed(values::prefix));
    if prefixes.is_some_and(|prefixes| !prefixes.is_empty()) {
        listen.warning("prefixes", NOT_YET);
    }
}

/// `[filter]`
pub(super) fn filter(mut section: Table<'_>) {
    let modes = [
        ("auto", true),
        ("off", true),
        ("xdp", false),
        ("xdp-generic", false),
        ("tcx", false),
        ("cgroup", false),
    ];
    if let Some(false) = section.choice("mode", &modes) {
        section.error("mode", "is not available in this build; use \"auto\" or \"off\"");
    }
    let interfaces = section.list_of("interfaces", |item| item.parsed(interface));
    if interfaces.is_some_and(|interfaces| !interfaces.is_empty()) {
        section.warning("interfaces", NOT_YET);
    }
    section.finish();
}

/// `[inventory.nats]`
pub(super) fn nats(mut section: Table<'_>) {
    let servers = section.list_of("servers", |item| url(item, &["nats", "tls"]));
    if servers.is_some_and(|servers| !servers.is_empty()) {
        section.warning("servers", NOT_YET);
    }
    section.finish();
}

/// Less than this the process needs for itself.
const MEMORY_BYTES_MIN: i64 = 32 << 20;
const MEMORY_BYTES_MAX: i64 = 1 << 44;

/// `[memory]`
pub(super) fn memory(mut section: Table<'_>) {
    if let Some(limit) = section.item("limit")
        && !is_auto(&limit)
        && limit.bytes(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).is_some()
    {
        limit.warning(NOT_YET);
    }
    section.finish();
}

/// `[telemetry]`
pub(super) fn telemetry(mut section: Table<'_>) {
    let mut otlp = section.table("otlp");
    if let Some(endpoint) = otlp.item("endpoint")
        && url(&endpoint, &["http", "https"]).is_some()
    {
        endpoint.warning(NOT_YET);
    }
    otlp.finish();
    section.finish();
}

fn is_auto(item: &Item<'_>) -> bool {
    item.is_string() && item.string() == Some("auto")
}

/// The name of a network interface, as the kernel takes it.
fn interface(text: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    if matches!(text.len(), 1..=15) && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err("must be the name of a network interface, such as \"eth0\"")
    }
}

fn url(item: &Item<'_>, schemes: &[&str]) -> Option<Uri> {
    let uri = item.string()?.parse::<Uri>().ok();
    let fits = |uri: &Uri| {
        uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme)) && uri.host().is_some()
    };
    uri.filter(fits)
        .or_else(|| item.wrong(&format!("a URL that starts with {}://", schemes.join(":// or "))))
}
