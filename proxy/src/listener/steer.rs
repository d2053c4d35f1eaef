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
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::sockets::{self, BindError, Place};
use super::{Listening, Stance};
use crate::config::Listen;
use crate::handoff::{Held, Inherited, Legacy, Place as For};
use crate::inventory::PortsInUse;
use telemetry::error::chain;

/// Which addresses a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    /// Puts everything but the sockets back to what this process wants: another one may have changed
    /// it.
    ///
    /// # Errors
    /// When the kernel does not take it.
    fn take_back(&mut self) -> Result<(), Self::Error>;

    /// # Errors
    /// When the slot cannot be emptied.
    fn clear(&mut self, family: Family) -> Result<(), Self::Error>;
}

/// The sockets of the group, listening, but not yet known to anybody.
pub struct Group {
    families: Vec<(Family, Vec<Arc<TcpListener>>)>,
    prefixes: Arc<[IpNet]>,
}

/// A group in service: connections arrive until it is closed.
pub struct Steered<S> {
    slots: S,
    families: Vec<(Family, Vec<Arc<TcpListener>>)>,
    prefixes: Arc<[IpNet]>,
    stop: CancellationToken,
    _held: Vec<Held>,
}

/// Sockets of a family.
const SOCKETS_MIN: usize = 2;

// === impl Group ===

impl Group {
    /// Opens a socket for each of `workers` and each family of the prefixes; what was inherited is
    /// open already, and all of it is kept: there may be connections in every queue.
    ///
    /// # Errors
    ///
    /// When the loopback lacks the family or has no port left.
    pub fn open(
        listen: &Listen,
        workers: usize,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let mut families = Vec::new();
        for family in [Family::V4, Family::V6] {
            if listen.prefixes.iter().any(|prefix| family.has(prefix)) {
                let found = inherited.steered(family, listen.backlog);
                let sockets = family.sockets(listen.backlog, workers, found)?;
                families.push((family, sockets.into_iter().map(Arc::new).collect()));
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
        legacy: &Legacy,
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
        let mut _held = Vec::new();
        for (family, sockets) in &families {
            for (number, socket) in sockets.iter().enumerate() {
                let place = For::Steered { family: *family, number };
                _held.push(legacy.hold(place, socket.clone()));
            }
        }
        let steered = Steered { slots, families, prefixes, stop: CancellationToken::new(), _held };
        steered.give(give);
        Ok(steered)
    }
}

// === impl Steered ===

impl<S: Slots> Steered<S> {
    /// Serves, as `stance` allows, until `stop`, then lets nothing new arrive. Meanwhile says of which
    /// addresses that apps want nothing will ever arrive, each once.
    pub async fn run(
        mut self,
        mut give: impl FnMut(Listening),
        mut ports: watch::Receiver<Arc<PortsInUse>>,
        mut stance: watch::Receiver<Stance>,
        stop: CancellationToken,
    ) {
        let (mut said, mut before) = (BTreeSet::new(), Stance::Open);
        loop {
            let now = *stance.borrow_and_update();
            match now {
                Stance::Open | Stance::Fixed if self.stop.is_cancelled() => {
                    self.stop = CancellationToken::new();
                    self.give(&mut give);
                }
                Stance::Open | Stance::Fixed => {}
                Stance::Paused | Stance::Given => self.stop.cancel(),
            }
            if now == Stance::Open && before != Stance::Open {
                self.take_back();
            }
            before = now;
            let outside = outside(&self.prefixes, &ports.borrow_and_update());
            for address in outside.difference(&said) {
                tracing::warn!(%address, "an app's address lies in no prefix: it is not steered");
            }
            said = outside;
            tokio::select! {
                () = stop.cancelled() => break,
                changed = ports.changed() => if changed.is_err() { break },
                changed = stance.changed() => if changed.is_err() { break },
            }
        }
        // What the slots name is the successor's as well, and stays there.
        if *stance.borrow() != Stance::Given {
            self.empty();
        }
        self.stop.cancel();
    }

    /// After a successor that came to nothing.
    fn take_back(&mut self) {
        if let Err(error) = self.slots.take_back() {
            let error = chain(&error);
            tracing::error!(%error, "steering is as the successor left it");
        }
    }

    fn give(&self, give: &mut impl FnMut(Listening)) {
        for socket in self.families.iter().flat_map(|(_, sockets)| sockets) {
            let (prefixes, stop) = (self.prefixes.clone(), self.stop.clone());
            give(Listening::steered(socket.clone(), prefixes, stop));
        }
    }

    /// Before the sockets stop: what comes between the two would wait in the queue of a socket that
    /// nobody accepts from, to be reset with it.
    fn empty(&mut self) {
        for (family, _) in &self.families {
            if let Err(error) = self.slots.clear(*family) {
                // The slot empties itself with the socket, a moment later.
                let error = chain(&error);
                tracing::warn!(%error, ?family, "steering was not told to stop");
            }
        }
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

    /// One socket for each worker, all on the port that the kernel chose for the first, unless some
    /// were `found`: those do, whatever the number of workers, because a connection may wait in each,
    /// and because one that only this process has would be lost with it.
    ///
    /// There are two at least. A successor then puts another one into the kernel's slot than is there
    /// already, and every one that may be there is its predecessor's as well.
    fn sockets(
        self,
        backlog: u32,
        workers: usize,
        found: Vec<TcpListener>,
    ) -> Result<Vec<TcpListener>, BindError> {
        if !found.is_empty() {
            return Ok(found);
        }
        let mut address = SocketAddr::new(self.loopback(), 0);
        let mut sockets = Vec::with_capacity(workers);
        for _ in 0..workers.max(SOCKETS_MIN) {
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

        fn take_back(&mut self) -> io::Result<()> {
            self.told.borrow_mut().push((Family::V4, Some(-1)));
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
        let group = Group::open(&listen(&BOTH), 3, &mut Inherited::default()).unwrap();
        let mut given = Vec::new();
        let fake = Fake { told: Told::default(), refuse: None };
        let legacy = Legacy::default();
        let _steered = group.serve(fake, &mut |listening| given.push(listening), &legacy).unwrap();
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
        let group = Group::open(&listen(&BOTH[..1]), 2, &mut Inherited::default()).unwrap();
        let families: Vec<_> = group.families.iter().map(|(family, _)| *family).collect();
        assert_eq!(families, [Family::V4]);
    }

    #[tokio::test]
    async fn the_slots_are_emptied_before_the_sockets_are_told_to_stop() {
        let told = Told::default();
        let fake = Fake { told: told.clone(), refuse: None };
        let mut given = Vec::new();
        let group = Group::open(&listen(&BOTH), 1, &mut Inherited::default()).unwrap();
        let legacy = Legacy::default();
        let steered = group.serve(fake, &mut |listening| given.push(listening), &legacy).unwrap();
        let named = |n: usize| Some(given[n].socket.as_raw_fd());
        assert_eq!(*told.borrow(), [(Family::V4, named(0)), (Family::V6, named(2))]);
        assert!(!given[0].stop.is_cancelled());
        let stop = CancellationToken::new();
        stop.cancel();
        let (_sender, ports) = watch::channel(Arc::default());
        let (_stance, stance) = watch::channel(Stance::Open);
        steered.run(|_| {}, ports, stance, stop).await;
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
        let group = Group::open(&listen(&BOTH), 1, &mut Inherited::default()).unwrap();
        let mut given = 0;
        assert!(group.serve(fake, &mut |_| given += 1, &Legacy::default()).is_err());
        assert_eq!(told.borrow().last(), Some(&(Family::V4, None)));
        assert_eq!(given, 0);
    }

    /// What a successor of a process with this legacy finds.
    fn inherit(legacy: &Legacy) -> Inherited {
        let mut inherited = Inherited::default();
        for (place, socket) in legacy.all() {
            inherited.put(place, socket.as_fd().try_clone_to_owned().unwrap());
        }
        inherited
    }

    #[test]
    fn a_successor_takes_every_socket_and_names_another_one_to_the_kernel() {
        for workers in [1, 2, 3] {
            let (told, legacy) = (Told::default(), Legacy::default());
            let fake = |told: &Told| Fake { told: told.clone(), refuse: None };
            let listen = listen(&BOTH[..1]);
            let group = Group::open(&listen, workers, &mut Inherited::default()).unwrap();
            let named = |group: &Group| inode(&group.families[0].1[0]);
            let first = named(&group);
            let _steered = group.serve(fake(&told), &mut |_| {}, &legacy).unwrap();
            let mut inherited = inherit(&legacy);
            // Whether there are more or fewer workers now.
            let group = Group::open(&listen, 4 - workers, &mut inherited).unwrap();
            assert!(inherited.is_empty());
            assert_eq!(group.families[0].1.len(), workers.max(2));
            assert_ne!(named(&group), first);
            let second = named(&group);
            let legacy = Legacy::default();
            let _steered = group.serve(fake(&told), &mut |_| {}, &legacy).unwrap();
            let group = Group::open(&listen, workers, &mut inherit(&legacy)).unwrap();
            assert_ne!(named(&group), second, "and so does the next one");
        }
    }

    fn inode(socket: &TcpListener) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    #[tokio::test]
    async fn what_was_paused_is_taken_up_again_and_what_was_given_away_is_not_emptied() {
        let (told, legacy) = (Told::default(), Legacy::default());
        let fake = Fake { told: told.clone(), refuse: None };
        let group = Group::open(&listen(&BOTH[..1]), 1, &mut Inherited::default()).unwrap();
        let given = Rc::new(RefCell::new(Vec::new()));
        let give = {
            let given = given.clone();
            move |listening: Listening| given.borrow_mut().push(listening.stop)
        };
        let steered = group.serve(fake, &mut give.clone(), &legacy).unwrap();
        let (stance, follows) = watch::channel(Stance::Open);
        let (_sender, ports) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let runs = steered.run(give, ports, follows, stop.clone());
        let changes = async {
            let accepting = || given.borrow().iter().filter(|stop| !stop.is_cancelled()).count();
            let changed = async |to| {
                stance.send_replace(to);
                // Whichever of the two is polled first, the other has had its turn after this.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            };
            changed(Stance::Fixed).await;
            assert_eq!(accepting(), 2);
            changed(Stance::Paused).await;
            assert_eq!(accepting(), 0);
            assert_eq!(legacy.all().len(), 2, "they stay open");
            changed(Stance::Open).await;
            assert_eq!(accepting(), 2);
            assert_eq!(told.borrow().last(), Some(&(Family::V4, Some(-1))));
            changed(Stance::Given).await;
            stop.cancel();
        };
        tokio::join!(runs, changes);
        assert_eq!(told.borrow().last(), Some(&(Family::V4, Some(-1))), "nothing was emptied");
        assert!(legacy.all().is_empty());
    }
}
