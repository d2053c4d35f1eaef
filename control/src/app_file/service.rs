//! `[http_service]` and `[[services]]`: ports of an app and where they lead.

use crate::document::Table;
use crate::snapshot::{Concurrency, ConcurrencyKind, Service};

use super::port::{self, Claims};
use super::{check, options};

/// The highest limit that means something: nobody runs a million requests on one instance.
const LIMIT_MAX: u32 = 1_000_000;

/// Where the instances listen when the file does not say, as in fly.toml.
const INTERNAL_PORT: u16 = 8080;

/// Keys for the parts of a platform that start and stop machines.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_start_machines",
    "auto_stop_machines",
    "machine_checks",
    "min_machines_running",
    "processes",
    "script_checks",
];

/// Every service of the file, with ports that do not overlap.
pub(super) fn all(root: &mut Table<'_>) -> Vec<Service> {
    let mut claims = Claims::default();
    let mut services = Vec::new();
    if let Some(table) = root.optional_table("http_service") {
        services.push(http_service(table, &mut claims));
    }
    for table in root.tables("services") {
        services.push(service(table, &mut claims));
    }
    if services.is_empty() {
        root.error_here("needs an [http_service] or a [[services]] with a port");
    }
    services
}

/// Short for a service with port 80 (`http`) and port 443 (`tls`, `http`).
fn http_service(mut table: Table<'_>, claims: &mut Claims) -> Service {
    let internal_port = internal_port(&mut table);
    let force_https = table.bool("force_https").unwrap_or(false);
    let concurrency = concurrency(table.table("concurrency"));
    let http = options::http(table.table("http_options"));
    let tls = options::tls(table.table("tls_options"), true);
    let checks = check::http(&mut table, "checks");
    table.without_effect(WITHOUT_EFFECT);
    let ports = port::web(force_https, &tls, &http);
    for port in &ports {
        claims.take(&table, "internal_port", port.range.clone());
    }
    table.finish();
    Service { internal_port, ports, concurrency, checks }
}

fn service(mut table: Table<'_>, claims: &mut Claims) -> Service {
    if let Some(true) = table.choice("protocol", &[("tcp", false), ("udp", true)]) {
        table.error("protocol", "udp services are not served yet");
    }
    let internal_port = internal_port(&mut table);
    let concurrency = concurrency(table.table("concurrency"));
    let mut checks = check::tcp(&mut table, "tcp_checks");
    checks.extend(check::http(&mut table, "http_checks"));
    let entries = table.list("ports");
    if entries.as_ref().map_or_else(|| !table.has("ports"), Vec::is_empty) {
        table.error("ports", "needs at least one port");
    }
    let entries = entries.unwrap_or_default();
    let ports = entries.iter().filter_map(|entry| port::read(entry.table(), claims)).collect();
    table.without_effect(WITHOUT_EFFECT);
    table.finish();
    Service { internal_port, ports, concurrency, checks }
}

fn internal_port(table: &mut Table<'_>) -> u16 {
    table.integer("internal_port", 1..=u16::MAX).unwrap_or(INTERNAL_PORT)
}

/// 0 means the default, as in fly.toml.
fn concurrency(mut table: Table<'_>) -> Concurrency {
    let kinds =
        [("requests", ConcurrencyKind::Requests), ("connections", ConcurrencyKind::Connections)];
    let defaults = Concurrency::default();
    let kind = table.choice("type", &kinds).unwrap_or(defaults.kind);
    let soft = table.integer("soft_limit", 0..=LIMIT_MAX).filter(|limit| *limit > 0);
    let hard = table.integer("hard_limit", 0..=LIMIT_MAX).filter(|limit| *limit > 0);
    if let (Some(soft), Some(hard)) = (soft, hard)
        && soft > hard
    {
        table.error("soft_limit", format!("must not be above hard_limit ({soft} > {hard})"));
    }
    table.finish();
    // A hard limit below the default soft limit lowers it: the author said nothing against that.
    let soft_limit = soft.unwrap_or(defaults.soft_limit).min(hard.unwrap_or(u32::MAX));
    Concurrency { kind, soft_limit, hard_limit: hard }
}
