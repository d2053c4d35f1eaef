//! Bind mode: which sockets there should be, and opening and closing them as the inventory changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Listen;
use crate::handoff::{Held, Inherited, Legacy, Place as For};
use crate::inventory::PortsInUse;
use crate::listener::{Listening, Stance};

/// Sockets one node opens by itself. Apps with whole port ranges need steering by the kernel.
pub const SOCKETS_MAX: usize = 4096;

/// Pause before a socket that could not be opened is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The open sockets of a node in bind mode; the control thread owns them.
pub struct Sockets {
    listen: Listen,
    ports: watch::Receiver<Arc<PortsInUse>>,
    legacy: Legacy,
    open: BTreeMap<SocketAddr, Open>,
    failed: BTreeSet<SocketAddr>,
}

/// A socket, on which a worker accepts until it is told to stop.
struct Open {
    socket: Arc<TcpListener>,
    stop: CancellationToken,
    _held: Held,
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    pub address: SocketAddr,
    #[source]
    pub(super) source: io::Error,
}

// === impl Sockets ===

impl Sockets {
    pub fn new(listen: &Listen, ports: watch::Receiver<Arc<PortsInUse>>, legacy: Legacy) -> Self {
        let (open, failed) = (BTreeMap::new(), BTreeSet::new());
        Self { listen: listen.clone(), ports, legacy, open, failed }
    }

    /// Follows the inventory, as `stance` allows, until `stop`; then closes every socket.
    ///
    /// Closing comes first when a port moves from one app to another. A socket that cannot be
    /// opened is said once and tried again every second; the others are not touched by it.
    pub async fn run(
        mut self,
        mut give: impl FnMut(Listening),
        mut stance: watch::Receiver<Stance>,
        stop: CancellationToken,
    ) {
        loop {
            let now = *stance.borrow_and_update();
            match now {
                Stance::Open => {
                    self.resume(&mut give);
                    self.follow(&mut give, &mut Inherited::default());
                }
                Stance::Fixed => self.resume(&mut give),
                Stance::Paused | Stance::Given => self.pause(),
            }
            let again = async {
                if self.failed.is_empty() || now != Stance::Open {
                    std::future::pending().await
                } else {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.ports.changed() => if changed.is_err() { break },
                changed = stance.changed() => if changed.is_err() { break },
                () = again => {}
            }
        }
        self.pause();
    }

    /// Nobody accepts any more, and nothing is closed.
    fn pause(&self) {
        for open in self.open.values() {
            open.stop.cancel();
        }
    }

    fn resume(&mut self, give: &mut impl FnMut(Listening)) {
        for open in self.open.values_mut().filter(|open| open.stop.is_cancelled()) {
            open.stop = CancellationToken::new();
            give(Listening::clients(open.socket.clone(), open.stop.clone()));
        }
    }

    /// Opens and closes until what is open is what is wanted; what was inherited is open already.
    pub fn follow(&mut self, give: &mut impl FnMut(Listening), inherited: &mut Inherited) {
        let wanted = wanted(&self.listen.addresses, &self.ports.borrow_and_update());
        self.open.retain(|address, open| {
            let keep = wanted.contains(address);
            if !keep {
                tracing::info!(%address, "no longer listening");
                open.stop.cancel();
            }
            keep
        });
        self.failed.retain(|address| wanted.contains(address));
        for address in wanted {
            if self.open.contains_key(&address) {
                continue;
            }
            let mut prefixes = self.listen.prefixes.iter();
            let within = prefixes.any(|prefix| prefix.contains(&address.ip()));
            let place = if within { Place::Prefix } else { Place::Machine };
            let what = For::Clients { address };
            let backlog = self.listen.backlog;
            let found = inherited.tcp(&what, backlog);
            match found.map_or_else(|| open(address, backlog, place), Ok) {
                Ok(socket) => {
                    tracing::info!(%address, "listening");
                    self.failed.remove(&address);
                    let (socket, stop) = (Arc::new(socket), CancellationToken::new());
                    let _held = self.legacy.hold(what, socket.clone());
                    self.open.insert(
                        address,
                        Open { socket: socket.clone(), stop: stop.clone(), _held },
                    );
                    give(Listening::clients(socket, stop));
                }
                Err(error) if self.failed.insert(address) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!("{error}: {}", source.unwrap_or_default());
                }
                Err(_) => {} // said before
            }
        }
    }
}

/// A listening socket. Accepted sockets inherit its options, which saves setting them on each.
///
/// # Errors
///
/// When the address is not this machine's, is taken, or needs a capability.
pub fn bind(address: SocketAddr, backlog: u32) -> Result<TcpListener, BindError> {
    open(address, backlog, Place::Machine)
}

/// Whose the address of a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Machine,
    /// Routed here as part of a whole prefix: IPv6 lets such an address be bound only on request.
    Prefix,
    /// Other sockets of this user listen there too, and the kernel spreads connections over them.
    Group,
}

pub(super) fn open(
    address: SocketAddr,
    backlog: u32,
    place: Place,
) -> Result<TcpListener, BindError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        match place {
            Place::Group => socket.set_reuse_port(true)?,
            Place::Machine | Place::Prefix => socket.set_reuse_address(true)?,
        }
        if place == Place::Prefix && address.is_ipv6() {
            socket.set_freebind_v6(true)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.set_keepalive(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(300)))?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok(socket.into())
    };
    open().map_err(|source| BindError { address, source })
}

/// The sockets that serve `ports` on the node's `addresses`.
///
/// A socket for all addresses takes the place of those for single ones: both cannot listen.
fn wanted(addresses: &[IpAddr], ports: &PortsInUse) -> BTreeSet<SocketAddr> {
    let mut wanted = BTreeSet::new();
    let mut add = |address, ranges: &[std::ops::RangeInclusive<u16>]| {
        for port in ranges.iter().cloned().flatten() {
            if wanted.len() == SOCKETS_MAX {
                tracing::error!(
                    "more than {SOCKETS_MAX} sockets are wanted; the rest are not opened"
                );
                return;
            }
            wanted.insert(SocketAddr::new(address, port));
        }
    };
    for address in addresses {
        add(*address, &ports.shared);
    }
    for (dedicated, ranges) in &ports.dedicated {
        let all = addresses
            .iter()
            .find(|address| address.is_unspecified() && address.is_ipv4() == dedicated.is_ipv4());
        add(*all.unwrap_or(dedicated), ranges);
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(addresses: &[&str], shared: &[u16], dedicated: &[(&str, u16)]) -> Vec<String> {
        let addresses: Vec<IpAddr> =
            addresses.iter().map(|address| address.parse().unwrap()).collect();
        let mut ports = PortsInUse { shared: Vec::new(), dedicated: BTreeMap::new() };
        ports.shared = shared.iter().map(|port| *port..=*port).collect();
        for (address, port) in dedicated {
            ports.dedicated.entry(address.parse().unwrap()).or_default().push(*port..=*port);
        }
        wanted(&addresses, &ports).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_shared_address_has_every_shared_port() {
        let found = sockets(&["127.0.0.1", "::1"], &[80, 443], &[]);
        assert_eq!(found, ["127.0.0.1:80", "127.0.0.1:443", "[::1]:80", "[::1]:443"]);
    }

    #[test]
    fn a_dedicated_address_has_its_own_sockets_unless_one_for_all_covers_it() {
        let dedicated = &[("198.51.100.7", 5432), ("2001:db8::7", 5432)];
        let found = sockets(&["127.0.0.1"], &[80], dedicated);
        assert_eq!(found, ["127.0.0.1:80", "198.51.100.7:5432", "[2001:db8::7]:5432"]);
        let found = sockets(&["0.0.0.0"], &[80], dedicated);
        assert_eq!(found, ["0.0.0.0:80", "0.0.0.0:5432", "[2001:db8::7]:5432"]);
    }

    #[tokio::test]
    async fn sockets_open_and_close_as_the_inventory_changes() {
        // A port nobody has: bind to none, take its number, let it go.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (first, second) = (free(), free());
        let in_use = |port: u16| {
            Arc::new(PortsInUse { shared: vec![port..=port], dedicated: BTreeMap::new() })
        };
        let (sender, receiver) = watch::channel(in_use(first));
        let listen = Listen { addresses: vec!["127.0.0.1".parse().unwrap()], ..Listen::default() };
        let legacy = Legacy::default();
        let mut sockets = Sockets::new(&listen, receiver, legacy.clone());
        let mut given = Vec::new();
        let nothing = &mut Inherited::default();
        sockets.follow(&mut |listening| given.push(listening), nothing);
        assert_eq!(given[0].socket.local_addr().unwrap().port(), first);
        sender.send(in_use(second)).unwrap();
        sockets.follow(&mut |listening| given.push(listening), nothing);
        assert!(given[0].stop.is_cancelled());
        assert_eq!(given[1].socket.local_addr().unwrap().port(), second);
        assert!(!given[1].stop.is_cancelled());
    }
}
