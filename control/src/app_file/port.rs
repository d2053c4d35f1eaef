//! `[[services.ports]]`: one port or range with what is done to its connections.

use std::ops::RangeInclusive;

use crate::document::{Item, Table};
use crate::snapshot::{Handlers, HttpOptions, Port, ProxyProtocol, TlsOptions};

use super::options;

/// Ports of the app so far, each with the key path that took it.
#[derive(Default)]
pub(super) struct Claims {
    taken: Vec<(RangeInclusive<u16>, String)>,
}

/// What a handler's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handler {
    Tls,
    Http,
    ProxyProtocol,
    PostgresTls,
    EdgeHttp,
}

const HANDLERS: &[(&str, Handler)] = &[
    ("tls", Handler::Tls),
    ("http", Handler::Http),
    ("proxy_proto", Handler::ProxyProtocol),
    ("pg_tls", Handler::PostgresTls),
    ("edge_http", Handler::EdgeHttp),
];

/// The two ports that `[http_service]` stands for.
pub(super) fn web(force_https: bool, tls: &TlsOptions, http: &HttpOptions) -> Vec<Port> {
    let clear = Handlers { http: true, ..Handlers::default() };
    let secure = Handlers { tls: true, ..clear };
    let port = |number, handlers, force_https| Port {
        range: number..=number,
        handlers,
        force_https,
        tls: tls.clone(),
        http: http.clone(),
    };
    vec![port(80, clear, force_https), port(443, secure, false)]
}

pub(super) fn read(mut table: Table<'_>, claims: &mut Claims) -> Option<Port> {
    let range = range(&mut table, claims);
    let named = handlers(&mut table);
    let version = proxy_protocol_version(table.table("proxy_proto_options"));
    let handlers = Handlers {
        tls: named.contains(&Handler::Tls),
        http: named.contains(&Handler::Http),
        proxy_protocol: named.contains(&Handler::ProxyProtocol).then_some(version),
    };
    if handlers.http && handlers.proxy_protocol.is_some() {
        table.error("handlers", "\"proxy_proto\" goes with raw TCP or \"tls\", not with \"http\"");
    }
    let force_https = table.bool("force_https").unwrap_or(false);
    if force_https && !handlers.http {
        table.error("force_https", "needs the \"http\" handler");
    }
    let tls = options::tls(table.table("tls_options"), handlers.http);
    let http = options::http(table.table("http_options"));
    for (key, handler, used) in [
        ("tls_options", "tls", handlers.tls),
        ("http_options", "http", handlers.http),
        ("proxy_proto_options", "proxy_proto", handlers.proxy_protocol.is_some()),
    ] {
        if table.has(key) && !used {
            table.warning(key, format!("has no effect without the \"{handler}\" handler"));
        }
    }
    table.finish();
    Some(Port { range: range?, handlers, force_https, tls, http })
}

/// `port`, or `start_port` and `end_port`, either of which may be left out.
fn range(table: &mut Table<'_>, claims: &mut Claims) -> Option<RangeInclusive<u16>> {
    let ports = 1..=u16::MAX;
    let one = table.integer("port", ports.clone());
    let start = table.integer("start_port", ports.clone());
    let end = table.integer("end_port", ports);
    let ranged = table.has("start_port") || table.has("end_port");
    let (range, key) = match (table.has("port"), ranged) {
        (true, true) => {
            table.error("port", "must stand alone, without start_port and end_port");
            return None;
        }
        (false, false) => {
            table.error("port", "is missing (or start_port and end_port)");
            return None;
        }
        (true, false) => (one?..=one?, "port"),
        (false, true) => (start.unwrap_or(1)..=end.unwrap_or(u16::MAX), "start_port"),
    };
    if range.is_empty() {
        let (start, end) = (range.start(), range.end());
        table.error("start_port", format!("must not be above end_port ({start} > {end})"));
        return None;
    }
    claims.take(table, key, range.clone());
    Some(range)
}

/// The handlers named, in any order.
fn handlers(table: &mut Table<'_>) -> Vec<Handler> {
    let mut named = Vec::new();
    for item in table.list("handlers").unwrap_or_default() {
        let Some(handler) = item.choice(HANDLERS) else { continue };
        if named.contains(&handler) {
            item.error("is listed twice");
        }
        refuse_unserved(&item, handler);
        named.push(handler);
    }
    named
}

fn refuse_unserved(item: &Item<'_>, handler: Handler) {
    match handler {
        Handler::PostgresTls => item.error("the \"pg_tls\" handler is not served yet"),
        Handler::EdgeHttp => item.error("the \"edge_http\" handler is obsolete; say \"http\""),
        Handler::Tls | Handler::Http | Handler::ProxyProtocol => {}
    }
}

fn proxy_protocol_version(mut table: Table<'_>) -> ProxyProtocol {
    let versions = [("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];
    let version = table.choice("version", &versions);
    table.finish();
    version.unwrap_or(ProxyProtocol::V1)
}

// === impl Claims ===

impl Claims {
    /// Takes `range` for the service or port that `table` is; an overlap is an error at `key`.
    pub(super) fn take(&mut self, table: &Table<'_>, key: &str, range: RangeInclusive<u16>) {
        let overlaps = |taken: &RangeInclusive<u16>| {
            taken.start() <= range.end() && range.start() <= taken.end()
        };
        if let Some((taken, holder)) = self.taken.iter().find(|(taken, _)| overlaps(taken)) {
            let shared = taken.start().max(range.start());
            table.error(key, format!("port {shared} is taken by {holder} already"));
        }
        self.taken.push((range, table.key_path().to_owned()));
    }
}
