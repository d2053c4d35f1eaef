//! `tls_options` and `http_options` of a port.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::document::{Item, Table};
use crate::snapshot::{HeaderChange, HttpOptions, TlsOptions, TlsVersions};

use super::syntax;

/// Response headers one port may change: they are rewritten for every response.
const HEADER_CHANGES_MAX: usize = 64;

/// ALPN protocols that the `http` handler speaks.
const HTTP_PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// `tls_options`; with the `http` handler ALPN defaults to what that speaks, else to nothing.
pub(super) fn tls(mut table: Table<'_>, http: bool) -> TlsOptions {
    let default = if http { TlsOptions::default().alpn } else { Vec::new() };
    let alpn = table.list_of("alpn", |item| protocol(item, http)).unwrap_or(default);
    let versions = versions(&mut table);
    let default_self_signed = table.bool("default_self_signed").unwrap_or(false);
    table.finish();
    TlsOptions { alpn, versions, default_self_signed }
}

/// `http_options`.
pub(super) fn http(mut table: Table<'_>) -> HttpOptions {
    let h2_backend = table.bool("h2_backend").unwrap_or(false);
    let mut response = table.table("response");
    let response_headers = header_changes(response.table("headers"));
    let pristine = response.bool("pristine").unwrap_or(false);
    response.finish();
    table.without_effect(&["compress", "headers_read_timeout", "idle_timeout", "replay_cache"]);
    table.finish();
    HttpOptions { h2_backend, response_headers, pristine }
}

//= https://www.rfc-editor.org/rfc/rfc7301#section-3.1
//# Empty strings MUST NOT be included and byte strings MUST NOT be truncated.
fn protocol(item: &Item<'_>, http: bool) -> Option<Arc<str>> {
    let name = item.string()?;
    if http && !HTTP_PROTOCOLS.contains(&name) {
        return item.wrong("\"h2\" or \"http/1.1\" on a port with the \"http\" handler");
    }
    if !(1..=255).contains(&name.len()) {
        return item.wrong("a protocol name of 1 to 255 bytes");
    }
    Some(name.into())
}

fn versions(table: &mut Table<'_>) -> TlsVersions {
    const NAMES: &[(&str, bool)] = &[("TLSv1.2", false), ("TLSv1.3", true)];
    let Some(items) = table.list("versions") else { return TlsVersions::default() };
    if items.is_empty() {
        table.error("versions", "must name \"TLSv1.2\", \"TLSv1.3\" or both");
    }
    let named: Vec<_> = items.iter().filter_map(|item| item.choice(NAMES)).collect();
    match (named.contains(&false), named.contains(&true)) {
        (true, true) => TlsVersions::Tls12AndTls13,
        (true, false) => TlsVersions::Tls12,
        (false, true) => TlsVersions::Tls13,
        (false, false) => TlsVersions::default(),
    }
}

/// `false` removes a header, a string or a list of strings sets it.
fn header_changes(mut table: Table<'_>) -> Vec<(Arc<str>, HeaderChange)> {
    let entries = table.entries();
    if entries.len() > HEADER_CHANGES_MAX {
        table.error_here(format!("must not change more than {HEADER_CHANGES_MAX} headers"));
    }
    let mut seen = BTreeSet::new();
    let mut changes = Vec::new();
    for (written, item) in entries {
        let Some(name) = item_header_name(written, &item) else { continue };
        let Some(change) = header_change(&item) else { continue };
        if !seen.insert(name.clone()) {
            item.error("is listed twice");
        }
        changes.push((name, change));
    }
    table.finish();
    changes
}

fn item_header_name(written: &str, item: &Item<'_>) -> Option<Arc<str>> {
    syntax::header_name(written).map_err(|message| item.error(message)).ok()
}

fn header_change(item: &Item<'_>) -> Option<HeaderChange> {
    if item.is_bool() {
        if item.bool()? {
            return item.wrong("false (remove it), a value or a list of values");
        }
        return Some(HeaderChange::Remove);
    }
    if item.is_list() {
        let items = item.list()?;
        if items.is_empty() {
            return item.wrong("false (remove it), a value or a list of values");
        }
        let values = items.iter().filter_map(|item| item.parsed(syntax::header_value));
        return Some(HeaderChange::Set(values.collect()));
    }
    if !item.is_string() {
        return item.wrong("false (remove it), a value or a list of values");
    }
    Some(HeaderChange::Set(vec![item.parsed(syntax::header_value)?]))
}
