//! `tcp_checks`, `http_checks` and `[[http_service.checks]]`: checks that gate routing.

use std::sync::Arc;
use std::time::Duration;

use crate::document::{Bare, Item, Table};
use crate::snapshot::{Check, CheckKind};

use super::syntax;

const GRACE_PERIOD: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(15);
const TIMEOUT: Duration = Duration::from_secs(2);

const HOUR: Duration = Duration::from_secs(3600);

/// Checks of one kind that a service may have: each is a connection per instance and interval.
const CHECKS_MAX: usize = 16;

/// Headers that an HTTP check may send.
const HEADERS_MAX: usize = 32;

/// Longest path of an HTTP check.
const PATH_LENGTH_MAX: usize = 2048;

/// Every TCP check of the list `key`.
pub(super) fn tcp(service: &mut Table<'_>, key: &'static str) -> Vec<Check> {
    each(service, key, |_| CheckKind::Tcp)
}

/// Every HTTP check of the list `key`.
pub(super) fn http(service: &mut Table<'_>, key: &'static str) -> Vec<Check> {
    each(service, key, |table| {
        let method = table.parsed("method", method).unwrap_or_else(|| "GET".into());
        let path = table.parsed("path", path).unwrap_or_else(|| "/".into());
        let headers = headers(table.table("headers"));
        if let Some(true) = table.choice("protocol", &[("http", false), ("https", true)]) {
            table.error("protocol", "https checks are not made yet");
        }
        table.without_effect(&["tls_server_name", "tls_skip_verify"]);
        CheckKind::Http { method, path, headers }
    })
}

fn each(
    service: &mut Table<'_>,
    key: &'static str,
    mut kind: impl FnMut(&mut Table<'_>) -> CheckKind,
) -> Vec<Check> {
    let tables = service.tables(key);
    if tables.len() > CHECKS_MAX {
        service.error(key, format!("must not list more than {CHECKS_MAX} checks"));
    }
    let read = |mut table: Table<'_>| {
        let kind = kind(&mut table);
        let mut duration = |key, range| table.duration_or(key, Bare::Milliseconds, range);
        let grace_period = duration("grace_period", Duration::ZERO..=HOUR);
        let interval = duration("interval", Duration::from_millis(100)..=HOUR);
        let timeout = duration("timeout", Duration::from_millis(10)..=Duration::from_secs(60));
        table.without_effect(&["restart_limit"]);
        table.finish();
        Check {
            kind,
            grace_period: grace_period.unwrap_or(GRACE_PERIOD),
            interval: interval.unwrap_or(INTERVAL),
            timeout: timeout.unwrap_or(TIMEOUT),
        }
    };
    tables.into_iter().map(read).collect()
}

/// In upper case, as it goes on the wire; fly.toml writes `get`.
fn method(text: &str) -> Result<Arc<str>, &'static str> {
    let method = text.to_ascii_uppercase();
    if syntax::is_token(&method) && method.len() <= 32 && method != "CONNECT" {
        Ok(method.into())
    } else {
        Err("must be an HTTP method other than CONNECT")
    }
}

fn path(text: &str) -> Result<Arc<str>, &'static str> {
    let clean = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if text.starts_with('/') && clean && text.len() <= PATH_LENGTH_MAX {
        Ok(text.into())
    } else {
        Err("must be a path that starts with /, without spaces, # and control characters")
    }
}

fn headers(mut table: Table<'_>) -> Vec<(Arc<str>, Arc<str>)> {
    let mut headers = Vec::new();
    let mut read = |written: &str, item: &Item<'_>| {
        let name = syntax::header_name(written).map_err(|message| item.error(message)).ok()?;
        headers.push((name, item.parsed(syntax::header_value)?));
        Some(())
    };
    for (written, item) in table.entries() {
        if item.is_list() {
            for item in item.list().unwrap_or_default() {
                read(written, &item);
            }
        } else {
            read(written, &item);
        }
    }
    if headers.len() > HEADERS_MAX {
        table.error_here(format!("must not send more than {HEADERS_MAX} headers"));
    }
    table.finish();
    headers
}
