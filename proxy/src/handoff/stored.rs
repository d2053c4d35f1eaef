//! Sockets in the service manager's store: the legacy of a process that ends without an heir.
//!
//! Each has a name of its own there, so that it can be taken out when it is closed: a listening socket
//! that stayed would go on taking connections that nobody accepts. The name says what the socket is
//! for; its address is the socket's own.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::net::{SocketAddrAny, SocketAddrUnix, getsockname};
use telemetry::service;

use super::Inherited;
use super::manifest::Place;
use crate::listener::steer::Family;

/// What the last process left in the store. What is there for something else is thrown away.
pub fn inherited() -> Inherited {
    let mut inherited = Inherited::default();
    for (name, socket) in service::stored() {
        match place(&name, &socket) {
            Some(place) => {
                tracing::info!(%place, "a socket of an earlier process");
                inherited.put(place, socket);
            }
            None => service::remove(&name),
        }
    }
    inherited
}

/// Has a socket kept until [`forget`], unless another process is the node at present.
pub(super) fn store(place: &Place, socket: &dyn AsFd) {
    if let Some(name) = name(place) {
        service::store(&name, &[socket.as_fd()]);
    }
}

pub fn forget(place: &Place) {
    if let Some(name) = name(place) {
        service::remove(&name);
    }
}

const CLIENTS: &str = "clients-";
const STEERED: [(Family, &str); 2] = [(Family::V4, "steered-v4-"), (Family::V6, "steered-v6-")];
const MESH: &str = "mesh";
const ADMIN: &str = "admin";
const ADMIN_SOCKET: &str = "admin-socket";

/// `None` for what is no socket.
fn name(place: &Place) -> Option<String> {
    Some(match place {
        // A colon would end the name.
        Place::Clients { address } => format!("{CLIENTS}{address}").replace(':', "_"),
        Place::Steered { family, number } => {
            let [(_, v4), (_, v6)] = STEERED;
            let family = match family {
                Family::V4 => v4,
                Family::V6 => v6,
            };
            format!("{family}{number}")
        }
        Place::Peers { .. } => MESH.to_owned(),
        Place::Admin { .. } => ADMIN.to_owned(),
        Place::AdminSocket { .. } => ADMIN_SOCKET.to_owned(),
        Place::Leash => return None,
    })
}

fn place(name: &str, socket: &OwnedFd) -> Option<Place> {
    let steered = STEERED.iter().find_map(|(family, prefix)| {
        let number = name.strip_prefix(prefix)?.parse().ok()?;
        Some(Place::Steered { family: *family, number })
    });
    match name {
        MESH => Some(Place::Peers { address: address(socket)? }),
        ADMIN => Some(Place::Admin { address: address(socket)? }),
        ADMIN_SOCKET => Some(Place::AdminSocket { path: path(socket)? }),
        _ if name.starts_with(CLIENTS) => Some(Place::Clients { address: address(socket)? }),
        _ => steered,
    }
}

fn address(socket: &OwnedFd) -> Option<SocketAddr> {
    SocketAddr::try_from(getsockname(socket).ok()?).ok()
}

fn path(socket: &OwnedFd) -> Option<PathBuf> {
    let address: SocketAddrAny = getsockname(socket).ok()?;
    let address = SocketAddrUnix::try_from(address).ok()?;
    Some(OsStr::from_bytes(address.path_bytes()?).into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_place_is_found_again_by_its_name_and_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let socket = |address: &str| OwnedFd::from(TcpListener::bind(address).unwrap());
        let file = folder.path().join("admin.sock");
        let unix = OwnedFd::from(UnixListener::bind(&file).unwrap());
        let (v4, v6) = (socket("127.0.0.1:0"), socket("[::1]:0"));
        for (place_, socket) in [
            (Place::Clients { address: address(&v4).unwrap() }, &v4),
            (Place::Clients { address: address(&v6).unwrap() }, &v6),
            (Place::Steered { family: Family::V4, number: 0 }, &v4),
            (Place::Steered { family: Family::V6, number: 1023 }, &v6),
            (Place::Peers { address: address(&v4).unwrap() }, &v4),
            (Place::Admin { address: address(&v6).unwrap() }, &v6),
            (Place::AdminSocket { path: file.clone() }, &unix),
        ] {
            let name = name(&place_).unwrap();
            let printable = |byte: u8| (b'!'..=b'~').contains(&byte) && byte != b':';
            assert!(name.len() <= 255 && name.bytes().all(printable), "{name}");
            assert_eq!(place(&name, socket), Some(place_), "{name}");
        }
        for (name, socket) in
            [("unknown", &v4), ("steered-v4-", &v4), ("mesh", &unix), ("admin-socket", &v4)]
        {
            assert_eq!(place(name, socket), None, "{name}");
        }
    }
}
