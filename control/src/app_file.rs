//! The text of an app file, with the section and key names of fly.toml, becomes one [`App`].
//!
//! Everything a file can say about itself is checked here, with the place of every mistake; what
//! two files say about each other is `publish.rs`'s. A key of fly.toml that ferrule knows but does
//! not act on is a warning, any other key an error.

mod service;
mod port;
mod options;
mod check;
mod syntax;
mod place;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use crate::document::{Document, Item, Problem, Table};
use crate::names;
use crate::snapshot::{App, Compat, Hostname, Instance};

pub(crate) use place::{report_at_name, report_contradictions};

/// Keys of fly.toml that are for other parts of a platform than its proxy.
const WITHOUT_EFFECT: &[&str] = &[
    "build",
    "checks",
    "console_command",
    "deploy",
    "env",
    "experimental",
    "files",
    "host_dedication_id",
    "kill_signal",
    "kill_timeout",
    "metrics",
    "mounts",
    "primary_region",
    "processes",
    "restart",
    "statics",
    "swap_size_mb",
    "vm",
];

/// Reads an app file. What is wrong with it goes to `problems`; with an error there is no app.
///
/// The revision is 0; it is set when the change is accepted.
pub fn parse(file: &Path, text: &str, problems: &mut Vec<Problem>) -> Option<App> {
    let before = problems.len();
    let app = Document::parse(file, text, problems).and_then(|document| read(document.root()));
    app.filter(|_| !Problem::any_error(&problems[before..]))
}

/// Reads on after a mistake, with a default in place of what is wrong.
fn read(mut root: Table<'_>) -> Option<App> {
    let name = root.required_parsed("app", names::app);
    let hostnames = hostnames(&mut root);
    let addresses = addresses(&mut root);
    let compat = root.choice("compat", &[("ferrule", Compat::Ferrule), ("fly", Compat::Fly)]);
    let services = service::all(&mut root);
    let instances = instances(&mut root);
    let by_name = services.iter().flat_map(|service| &service.ports).any(|port| port.handlers.http);
    if by_name && hostnames.is_empty() && addresses.is_empty() {
        let message = "no hostnames and no addresses: no HTTP request can mean this app";
        root.warning("hostnames", message);
    }
    root.without_effect(WITHOUT_EFFECT);
    root.finish();
    let compat = compat.unwrap_or_default();
    Some(App { name: name?, revision: 0, hostnames, addresses, services, instances, compat })
}

fn hostnames(root: &mut Table<'_>) -> Vec<Hostname> {
    let items = root.list("hostnames").unwrap_or_default();
    distinct(items, |item| item.parsed(names::hostname))
}

fn addresses(root: &mut Table<'_>) -> Vec<IpAddr> {
    let items = root.list("addresses").unwrap_or_default();
    distinct(items, unicast)
}

/// Each value once; one that comes again is an error.
fn distinct<'d, T: Ord + Clone>(
    items: Vec<Item<'d>>,
    read: impl Fn(&Item<'d>) -> Option<T>,
) -> Vec<T> {
    let mut seen = BTreeSet::new();
    let mut values = Vec::with_capacity(items.len());
    for item in &items {
        let Some(value) = read(item) else { continue };
        if seen.insert(value.clone()) {
            values.push(value);
        } else {
            item.error("is listed twice");
        }
    }
    values
}

/// An address that one machine can have.
fn unicast(item: &Item<'_>) -> Option<IpAddr> {
    let address = item.ip()?.to_canonical();
    if address.is_unspecified() || address.is_multicast() {
        return item.wrong("the address of one machine");
    }
    Some(address)
}

fn instances(root: &mut Table<'_>) -> Vec<Instance> {
    let mut seen = BTreeSet::new();
    let mut instances = Vec::new();
    for mut table in root.tables("instances") {
        let id = table.required_parsed("id", names::instance);
        let node = table.required_parsed("node", names::node);
        let address = table.required("address").and_then(|item| unicast(&item));
        let cordoned = table.bool("cordoned").unwrap_or(false);
        if let Some(id) = &id
            && !seen.insert(id.clone())
        {
            table.error("id", format!("instance \"{id}\" is listed twice"));
        }
        table.finish();
        if let (Some(id), Some(node), Some(address)) = (id, node, address) {
            instances.push(Instance { id, node, address, cordoned });
        }
    }
    instances
}

#[cfg(test)]
mod tests;
