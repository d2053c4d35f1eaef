//! What the demo's edge consists of: nodes, apps, and where everything listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// One node and where it is. The whole of 127.0.0.0/8 is ours, so all of them use the same ports.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) node: &'static str,
    pub(super) region: &'static str,
    /// Where clients, the other node and the operator find it.
    pub(super) address: Ipv4Addr,
    /// Where its instances are.
    instances: Ipv4Addr,
}

/// An app, the regions it runs in, and the port its instances listen on.
#[derive(Debug)]
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) regions: &'static [&'static str],
    pub(super) internal_port: u16,
}

/// What an app speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Grpc,
    WebSocket,
    Tcp,
}

/// One running copy of an app.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) place: &'static Place,
    pub(super) address: SocketAddr,
}

pub(super) const NODES: [Place; 2] = [
    Place {
        node: "ams-1",
        region: "ams",
        address: Ipv4Addr::new(127, 0, 0, 1),
        instances: Ipv4Addr::new(127, 0, 1, 1),
    },
    Place {
        node: "sin-1",
        region: "sin",
        address: Ipv4Addr::new(127, 0, 0, 2),
        instances: Ipv4Addr::new(127, 0, 1, 2),
    },
];

pub(super) const APPS: [App; 5] = [
    App { name: "hello", kind: Kind::Http, regions: &["ams", "sin"], internal_port: 9001 },
    App { name: "far", kind: Kind::Http, regions: &["sin"], internal_port: 9002 },
    App { name: "grpc", kind: Kind::Grpc, regions: &["sin"], internal_port: 9003 },
    App { name: "chat", kind: Kind::WebSocket, regions: &["sin"], internal_port: 9004 },
    App { name: "echo", kind: Kind::Tcp, regions: &["sin"], internal_port: 9005 },
];

pub(super) const HTTP: u16 = 8080;
pub(super) const HTTPS: u16 = 8443;
pub(super) const TCP: u16 = 9000;
pub(super) const MESH: u16 = 7443;
pub(super) const ADMIN: u16 = 9900;

// === impl Place ===

impl Place {
    /// Every socket the node opens.
    pub(super) fn sockets(&self) -> impl Iterator<Item = SocketAddr> {
        [HTTP, HTTPS, TCP, MESH, ADMIN].into_iter().map(|port| (self.address, port).into())
    }
}

// === impl App ===

impl App {
    pub(super) fn instances(&self) -> impl Iterator<Item = Instance> {
        NODES.iter().filter(|place| self.regions.contains(&place.region)).map(|place| Instance {
            id: format!("{}-{}", self.name, place.region),
            place,
            address: (IpAddr::V4(place.instances), self.internal_port).into(),
        })
    }

    pub(super) fn hostname(&self) -> String {
        format!("{}.example", self.name)
    }
}
