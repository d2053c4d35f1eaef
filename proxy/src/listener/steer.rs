//! Steer mode: one listening group, to which the kernel brings every port of whole prefixes.
//!
//! The group has a socket per family and worker, on a port of the loopback that the kernel chose.
//! One socket of each family is named to the kernel ([`Slots`]); it spreads connections over the
//! others, which share the port. The destination a client meant is the accepted socket's own
//! address; a connection to the group's port itself is refused ([`super::accept`]).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Listening;
use super::sockets::{self, BindError, Place};
use crate::config::Listen;
use crate::inventory::PortsInUse;
use telemetry::error::chain;

/// Which addresses a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// The kernel's side: which socket gets what is sent to the prefixes.
///
/// Replacing the socket of a slot is one atomic step; an empty slot leaves connections to whoever
/// is bound to their address, which is usually nobody: they are refused.
pub trait Slots {
    type Error: std::error::Error;

    /// # Errors
    /// When the kernel does not take the socket.
    fn set(&mut self, family: Family, socket: BorrowedFd<'_>) -> Result<(), Self::Error>;

    /// # Errors
    /// When the slot cannot be emptied.
    fn clear(&mut self, family: Family) -> Result<(), Self::Error>;
}

/// The sockets of the group, listening, but not yet known to anybody.
pub struct Group {
    families: Vec<(Family, Vec<TcpListener>)>,
    prefixes: Arc<[IpNet]>,
}

/// A group in service: connections arrive until it is closed.
pub struct Steered<S> {
    slots: S,
    families: Vec<Family>,
    prefixes: Arc<[IpNet]>,
    stop: CancellationToken,
}

// === impl Group ===

impl Group {
    /// Opens a socket for each of `workers` and each family of the prefixes.
    ///
    /// # Errors
    ///
    /// When the loopback lacks the family or has no port left.
    pub fn open(listen: &Listen, workers: usize) -> Result<Self, BindError> {
        let mut families = Vec::new();
        for family in [Family::V4, Family::V6] {
            if listen.prefixes.iter().any(|prefix| family.has(prefix)) {
                families.push((family, family.sockets(listen.backlog, workers)?));
            }
        }
        Ok(Self { families, prefixes: listen.prefixes.clone().into() })
    }

    /// Gives every socket to a worker, then has the kernel bring them what is sent to the prefixes.
    ///
    /// # Errors
    ///
    /// When the kernel does not take a socket; nothing arrives then.
    pub fn serve<S: Slots>(
        self,
        mut slots: S,
        give: &mut impl FnMut(Listening),
    ) -> Result<Steered<S>, S::Error> {
        let Self { families, prefixes } = self;
        let mut served: Vec<Family> = Vec::new();
        for (family, sockets) in &families {
            let named = sockets.first().expect("there is a worker");
            if let Err(error) = slots.set(*family, named.as_fd()) {
                for family in served {
                    // What is left in the slot goes with its socket.
                    drop(slots.clear(family));
                }
                return Err(error);
            }
            served.push(*family);
        }
        let stop = CancellationToken::new();
        for socket in families.into_iter().flat_map(|(_, sockets)| sockets) {
            give(Listening::steered(socket, prefixes.clone(), stop.clone()));
        }
        Ok(Steered { slots, families: served, prefixes, stop })
    }
}

// === impl Steered ===

impl<S: Slots> Steered<S> {
    /// Serves until `stop`, then lets nothing new arrive. Meanwhile says of which addresses that apps
    /// want nothing will ever arrive, each once.
    pub async fn run(self, mut ports: watch::Receiver<Arc<PortsInUse>>, stop: CancellationToken) {
        let mut said = BTreeSet::new();
        loop {
            let outside = outside(&self.prefixes, &ports.borrow_and_update());
            for address in outside.difference(&said) {
                tracing::warn!(%address, "an app's address lies in no prefix: it is not steered");
            }
            said = outside;
            tokio::select! {
                () = stop.cancelled() => break,
                changed = ports.changed() => if changed.is_err() { break },
            }
        }
        self.close();
    }

    /// The slots first: what comes between the two would wait in the queue of a socket that
    /// nobody accepts from, to be reset with it.
    fn close(mut self) {
        for family in &self.families {
            if let Err(error) = self.slots.clear(*family) {
                // The slot empties itself with the socket, a moment later.
                let error = chain(&error);
                tracing::warn!(%error, ?family, "steering was not told to stop");
            }
        }
        self.stop.cancel();
    }
}

/// Addresses of apps that no prefix contains.
fn outside(prefixes: &[IpNet], ports: &PortsInUse) -> BTreeSet<IpAddr> {
    let within = |address: &&IpAddr| prefixes.iter().any(|prefix| prefix.contains(*address));
    ports.dedicated.keys().filter(|address| !within(address)).copied().collect()
}

// === impl Family ===

impl Family {
    fn has(self, prefix: &IpNet) -> bool {
        (self == Self::V4) == prefix.addr().is_ipv4()
    }

    fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// One socket for each worker, all on the port that the kernel chose for the first.
    fn sockets(self, backlog: u32, workers: usize) -> Result<Vec<TcpListener>, BindError> {
        let mut address = SocketAddr::new(self.loopback(), 0);
        let mut sockets = Vec::with_capacity(workers);
        for _ in 0..workers {
            let socket = sockets::open(address, backlog, Place::Group)?;
            address = socket.local_addr().map_err(|source| BindError { address, source })?;
            sockets.push(socket);
        }
        Ok(sockets)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::os::fd::{AsRawFd as _, RawFd};
    use std::rc::Rc;

    use super::*;

    /// What the kernel was told, in order.
    type Told = Rc<RefCell<Vec<(Family, Option<RawFd>)>>>;

    struct Fake {
        told: Told,
        refuse: Option<Family>,
    }

    impl Slots for Fake {
        type Error = io::Error;

        fn set(&mut self, family: Family, socket: BorrowedFd<'_>) -> io::Result<()> {
            if self.refuse == Some(family) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.told.borrow_mut().push((family, Some(socket.as_raw_fd())));
            Ok(())
        }

        fn clear(&mut self, family: Family) -> io::Result<()> {
            self.told.borrow_mut().push((family, None));
            Ok(())
        }
    }

    fn listen(prefixes: &[&str]) -> Listen {
        let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        Listen { prefixes, ..Listen::default() }
    }

    const BOTH: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/48"];

    #[test]
    fn each_family_has_a_port_that_all_workers_share() {
        let group = Group::open(&listen(&BOTH), 3).unwrap();
        let mut given = Vec::new();
        let fake = Fake { told: Told::default(), refuse: None };
        group.serve(fake, &mut |listening| given.push(listening)).unwrap();
        let places: Vec<_> =
            given.iter().map(|listening| listening.socket.local_addr().unwrap()).collect();
        assert_eq!(places.len(), 6);
        for same in places.chunks(3) {
            assert!(same[0].ip().is_loopback() && same[0].port() != 0);
            assert!(same.iter().all(|place| *place == same[0]), "{same:?}");
        }
        assert!(given.iter().all(|listening| listening.steered.as_ref().unwrap().len() == 2));
    }

    #[test]
    fn a_family_without_prefixes_has_no_sockets() {
        let group = Group::open(&listen(&BOTH[..1]), 2).unwrap();
        let families: Vec<_> = group.families.iter().map(|(family, _)| *family).collect();
        assert_eq!(families, [Family::V4]);
    }

    #[tokio::test]
    async fn the_slots_are_emptied_before_the_sockets_are_told_to_stop() {
        let told = Told::default();
        let fake = Fake { told: told.clone(), refuse: None };
        let mut given = Vec::new();
        let group = Group::open(&listen(&BOTH), 1).unwrap();
        let steered = group.serve(fake, &mut |listening| given.push(listening)).unwrap();
        let named = |n: usize| Some(given[n].socket.as_raw_fd());
        assert_eq!(*told.borrow(), [(Family::V4, named(0)), (Family::V6, named(1))]);
        assert!(!given[0].stop.is_cancelled());
        let stop = CancellationToken::new();
        stop.cancel();
        let (_sender, ports) = watch::channel(Arc::default());
        steered.run(ports, stop).await;
        assert_eq!(told.borrow()[2..], [(Family::V4, None), (Family::V6, None)]);
        assert!(given.iter().all(|listening| listening.stop.is_cancelled()));
    }

    #[test]
    fn an_address_that_no_prefix_contains_is_found() {
        let prefixes = listen(&BOTH).prefixes;
        let addresses = ["198.51.100.7", "198.51.101.7", "2001:db8:1::7", "2001:db8:2::7"];
        let addresses = addresses.map(|address| address.parse().unwrap());
        let dedicated = addresses.into_iter().map(|address| (address, vec![80..=80])).collect();
        let found = outside(&prefixes, &PortsInUse { shared: Vec::new(), dedicated });
        assert_eq!(found, BTreeSet::from([addresses[1], addresses[3]]));
    }

    #[test]
    fn a_slot_that_is_refused_leaves_none_set_and_no_socket_open() {
        let told = Told::default();
        let fake = Fake { told: told.clone(), refuse: Some(Family::V6) };
        let group = Group::open(&listen(&BOTH), 1).unwrap();
        let mut given = 0;
        assert!(group.serve(fake, &mut |_| given += 1).is_err());
        assert_eq!(told.borrow().last(), Some(&(Family::V4, None)));
        assert_eq!(given, 0);
    }
}
