//! `[listen]`: where clients connect, and that the node's own doors are not among it.

use std::net::IpAddr;

use control::document::{Item, Table};
use ipnet::IpNet;

use super::values;
use crate::config::{Admin, Listen, ListenMode, Mesh};

/// Every packet is looked up among them, and nobody announces more from one node.
const PREFIXES_MAX: usize = 256;

/// A prefix with its place in the file.
pub(super) type Placed<'d> = (Item<'d>, IpNet);

pub(super) fn read<'d>(mut section: Table<'d>) -> (Listen, Vec<Placed<'d>>) {
    let Listen { mode, addresses, prefixes: _, backlog } = Listen::default();
    let modes =
        [("auto", ListenMode::Auto), ("steer", ListenMode::Steer), ("bind", ListenMode::Bind)];
    let mode = section.choice("mode", &modes).unwrap_or(mode);
    let placed = prefixes(&mut section);
    // Those that cannot be read are mistakes of their own.
    let none = section.list("prefixes").is_none_or(|written| written.is_empty());
    if mode == ListenMode::Steer && none {
        section.error("mode", "\"steer\" needs prefixes: what is to be steered here");
    }
    let prefixes: Vec<_> = placed.iter().map(|(_, prefix)| *prefix).collect();
    let addresses = shared_addresses(&mut section, mode, &prefixes).unwrap_or(addresses);
    let backlog = section.integer("backlog", 16..=65_535).unwrap_or(backlog);
    section.finish();
    (Listen { mode, addresses, prefixes, backlog }, placed)
}

/// Refuses prefixes that hold an address at which the node itself is reached: whatever comes there
/// would be taken for a client's.
pub(super) fn keep_apart(prefixes: &[Placed<'_>], admin: &Admin, mesh: Option<&Mesh>) {
    let peers = mesh.into_iter().flat_map(|mesh| &mesh.peers);
    let own = mesh.map(|mesh| ("mesh.address".to_owned(), mesh.address));
    let doors = own
        .into_iter()
        .chain([("admin.address".to_owned(), admin.address)])
        .chain(peers.map(|peer| (format!("the address of peer \"{}\"", peer.id), peer.address)));
    for (name, address) in doors {
        let holds = |(_, prefix): &&Placed<'_>| prefix.contains(&address.ip().to_canonical());
        if let Some((item, _)) = prefixes.iter().find(holds) {
            item.error(format!("contains {name}, {}, which is no app's", address.ip()));
        }
    }
}

fn prefixes<'d>(section: &mut Table<'d>) -> Vec<Placed<'d>> {
    let items = section.list("prefixes").unwrap_or_default();
    if items.len() > PREFIXES_MAX {
        section.error("prefixes", format!("has more than {PREFIXES_MAX} ranges"));
        return Vec::new();
    }
    let mut prefixes: Vec<Placed<'d>> = Vec::new();
    for item in items {
        let Some(prefix) = item.parsed(values::prefix) else { continue };
        if let Some(reserved) = reserved(prefix) {
            item.error(format!("contains {reserved} addresses"));
        }
        let overlaps = |(_, other): &&Placed<'_>| other.contains(&prefix) || prefix.contains(other);
        if let Some((_, other)) = prefixes.iter().find(overlaps) {
            item.error(format!("overlaps {other}"));
        }
        prefixes.push((item, prefix));
    }
    prefixes
}

/// What a prefix may not reach into: nobody announces it, and the node needs it itself.
fn reserved(prefix: IpNet) -> Option<&'static str> {
    const RESERVED: [(&str, &str); 8] = [
        ("0.0.0.0/8", "unspecified"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/3", "multicast or reserved"),
        ("::/127", "unspecified or loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    ];
    let touches = |range: &str| {
        let range: IpNet = range.parse().expect("written above");
        range.contains(&prefix) || prefix.contains(&range)
    };
    RESERVED.into_iter().find(|(range, _)| touches(range)).map(|(_, name)| name)
}

fn shared_addresses(
    section: &mut Table<'_>,
    mode: ListenMode,
    prefixes: &[IpNet],
) -> Option<Vec<IpAddr>> {
    let items = section.list("addresses")?;
    if items.is_empty() {
        let lonely = "is empty: only apps with addresses of their own are served";
        section.warning("addresses", lonely);
    }
    let mut addresses = Vec::new();
    for item in &items {
        let Some(address) = values::listen_address(item) else { continue };
        if addresses.contains(&address) {
            item.error("is listed twice");
        }
        let within = |prefix: &IpNet| prefix.contains(&address.to_canonical());
        if mode == ListenMode::Steer && !address.is_unspecified() && !prefixes.iter().any(within) {
            item.warning("lies in none of the prefixes: with mode \"steer\" nothing comes to it");
        }
        addresses.push(address);
    }
    Some(addresses)
}
