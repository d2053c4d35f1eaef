//! `[mesh]`: how other nodes reach this one, and which others there are.

use std::net::SocketAddr;

use control::document::{Item, Table};
use control::names;
use control::snapshot::NodeId;

use crate::config::{Mesh, Peer};

use super::values;

const TRUST_DOMAIN: &str = "ferrule";

/// Reads the section of the node `own`.
pub(super) fn read(mut section: Table<'_>, own: Option<&NodeId>) -> Option<Mesh> {
    let address = section.required("address").as_ref().and_then(reachable);
    let certificate = section.required("certificate").and_then(|item| item.path());
    let key = section.required("key").and_then(|item| item.path());
    let ca = section.required("ca").and_then(|item| item.path());
    let trust_domain = section
        .parsed("trust_domain", values::trust_domain)
        .unwrap_or_else(|| TRUST_DOMAIN.to_owned());
    let mut peers: Vec<Peer> = Vec::new();
    for table in section.tables("peers") {
        peers.extend(peer(table, own, address, &peers));
    }
    section.finish();
    Some(Mesh {
        address: address?,
        certificate: certificate?,
        key: key?,
        ca: ca?,
        trust_domain,
        peers,
    })
}

/// One entry of `[[mesh.peers]]`, after those that were read `before` it.
fn peer(
    mut table: Table<'_>,
    own: Option<&NodeId>,
    own_address: Option<SocketAddr>,
    before: &[Peer],
) -> Option<Peer> {
    let id = table.required_parsed("id", names::node);
    let region = table.required_parsed("region", names::region);
    let address = table.required("address").as_ref().and_then(reachable);
    if let Some(id) = &id {
        if Some(id) == own {
            table.error("id", "is this node itself");
        } else if before.iter().any(|peer| peer.id == *id) {
            table.error("id", format!("\"{id}\" is listed twice"));
        }
    }
    if let Some(address) = address {
        if address.ip().is_unspecified() {
            table.error("address", "must be an address that this node can connect to");
        } else if Some(address) == own_address {
            table.error("address", "is this node's own address");
        } else if let Some(other) = before.iter().find(|peer| peer.address == address) {
            table.error("address", format!("is the address of \"{}\" already", other.id));
        }
    }
    table.finish();
    Some(Peer { id: id?, region: region?, address: address? })
}

/// An address that others can name: the kernel does not choose its port.
fn reachable(item: &Item<'_>) -> Option<SocketAddr> {
    let address = item.socket_address()?;
    if address.port() == 0 {
        item.error("must have a port other than 0");
        return None;
    }
    Some(address)
}
