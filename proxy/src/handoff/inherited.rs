//! Listening sockets that were open before this process ran.
//!
//! Whoever needs a socket looks here first and opens one only when there is none. Where they came
//! from, a predecessor or the service manager, does not matter here.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::net::sockopt;

use super::manifest::Place;
use crate::listener::steer::Family;

/// Open sockets by what they are for. What nobody takes is closed with it.
#[derive(Default)]
pub struct Inherited {
    sockets: BTreeMap<Place, OwnedFd>,
}

// === impl Inherited ===

impl Inherited {
    pub fn put(&mut self, place: Place, socket: OwnedFd) {
        self.sockets.insert(place, socket);
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The socket of a place, with this backlog from now on.
    pub fn tcp(&mut self, place: &Place, backlog: u32) -> Option<TcpListener> {
        let socket = self.listening(place, backlog)?;
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    }

    /// The same for a socket with a file.
    pub fn unix(&mut self, place: &Place, backlog: u32) -> Option<UnixListener> {
        let listener = UnixListener::from(self.listening(place, backlog)?);
        listener.set_nonblocking(true).ok()?;
        Some(listener)
    }

    /// Every socket that the kernel steers a family to. The one that is in its slot is the last.
    pub fn steered(&mut self, family: Family, backlog: u32) -> Vec<TcpListener> {
        let is_of =
            |place: &Place| matches!(place, Place::Steered { family: of, .. } if *of == family);
        let places: Vec<_> = self.sockets.keys().filter(|place| is_of(place)).cloned().collect();
        let mut sockets: Vec<_> =
            places.iter().filter_map(|place| self.tcp(place, backlog)).collect();
        if !sockets.is_empty() {
            sockets.rotate_left(1);
        }
        sockets
    }

    /// What is no socket.
    pub fn leash(&mut self) -> Option<OwnedFd> {
        self.sockets.remove(&Place::Leash)
    }

    /// Closes what nobody took, and says what that was.
    pub fn close(self) -> Vec<Place> {
        self.sockets.into_keys().collect()
    }

    /// What does not listen is of no use to anybody.
    fn listening(&mut self, place: &Place, backlog: u32) -> Option<OwnedFd> {
        let socket = self.sockets.remove(place)?;
        let listens = sockopt::socket_acceptconn(&socket).unwrap_or(false);
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        if !listens || rustix::net::listen(&socket, backlog).is_err() {
            tracing::warn!(%place, "an inherited socket does not listen; another is opened");
            return None;
        }
        Some(socket)
    }
}
