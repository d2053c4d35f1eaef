//! Steering: the kernel finds the node's listening sockets for any address of the anycast prefixes and
//! any port.

use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;

use aya::maps::{MapData, SockMap};
use ebpf_filter_common::{Family, Slot, Steered, V4Prefix, V6Prefix, map};
use ipnet::IpNet;

use crate::attach::Place;
use crate::capability;
use crate::config::Config;
use crate::error::FilterError;
use crate::object::{Object, Program};
use crate::pins;
use crate::store::Key;
use crate::sys::Table;

/// The steering program of this network namespace and its sockets.
///
/// Dropping it changes nothing: the program is pinned, and a socket leaves its slot when it is closed.
/// While a slot is empty, connections to the prefixes are refused.
pub struct Steering {
    sockets: SockMap<MapData>,
    prefixes: Vec<IpNet>,
}

// === impl Steering ===

impl Steering {
    /// Attaches the program to this thread's network namespace, or replaces the one that is pinned.
    /// Sockets that are in their slots stay there.
    ///
    /// # Errors
    /// When a capability, the kernel's feature or the BPF file system is missing. Without steering
    /// there is bind mode.
    pub fn open(config: &Config) -> Result<Self, FilterError> {
        capability::check("steering")?;
        pins::prepare(&config.pins)?;
        let mut object = Object::steering(&config.pins)?;
        let prefixes = IpNet::aggregate(&config.prefixes);
        let (v4, _) = object.table::<V4Prefix, Steered>(map::STEER_V4)?;
        let (v6, _) = object.table::<V6Prefix, Steered>(map::STEER_V6)?;
        for prefix in &prefixes {
            match Key::prefix(prefix) {
                Key::PrefixV4(key) => put(map::STEER_V4, &v4, key)?,
                Key::PrefixV6(key) => put(map::STEER_V6, &v6, key)?,
                Key::ExactV4(_) | Key::ExactV6(_) => unreachable!("asked for a prefix"),
            }
        }
        keep(map::STEER_V4, &v4, |key| prefixes.iter().any(|net| Key::prefix(net).is_v4(key)))?;
        keep(map::STEER_V6, &v6, |key| prefixes.iter().any(|net| Key::prefix(net).is_v6(key)))?;

        let program = object.program(Program::Steer)?;
        Place::Steering.attach(&config.pins, program.as_fd())?;
        pins::replace(&config.pins, Program::Steer.as_str(), program.as_fd())?;
        Ok(Self { sockets: object.typed(map::SOCKETS)?, prefixes })
    }

    /// Takes the program off the network namespace that a directory of pins is for: the prefixes are
    /// addresses like any others, and can be bound. Where nothing is pinned there is nothing to do.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach(directory: &Path) -> Result<(), FilterError> {
        let pin = Place::Steering.pin(directory);
        if pin.exists() { pins::remove(&pin) } else { Ok(()) }
    }

    /// Puts a listening TCP socket where connections of a family are steered to. It takes the place of
    /// the one before at once; that one still accepts what began on it. Of a group that shares its
    /// port (SO_REUSEPORT) one is enough: the kernel spreads over the group. One socket of both
    /// families may be in both places.
    ///
    /// # Errors
    /// When it is not a listening socket of this network namespace's.
    pub fn set_socket(&mut self, family: Family, socket: &impl AsFd) -> Result<(), FilterError> {
        self.set(Slot::tcp(family), socket)
    }

    /// As [`Steering::set_socket`], for datagrams. Replies are the socket's own business: they must be
    /// sent from the address that was asked.
    ///
    /// # Errors
    /// When it is not a bound UDP socket.
    pub fn set_udp_socket(
        &mut self,
        family: Family,
        socket: &impl AsFd,
    ) -> Result<(), FilterError> {
        self.set(Slot::udp(family), socket)
    }

    /// Empties the places of a family: connections are refused from now on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn clear(&mut self, family: Family) -> Result<(), FilterError> {
        for slot in [Slot::tcp(family), Slot::udp(family)] {
            match self.sockets.clear_index(&(slot as u32)) {
                Ok(()) => {}
                // It was empty: the kernel says EINVAL here.
                Err(aya::maps::MapError::SyscallError(error))
                    if matches!(
                        error.io_error.raw_os_error(),
                        Some(libc::EINVAL | libc::ENOENT)
                    ) => {}
                Err(error) => return Err(failed("written", error)),
            }
        }
        Ok(())
    }

    /// What is steered, as few prefixes as possible.
    pub fn prefixes(&self) -> &[IpNet] {
        &self.prefixes
    }

    fn set(&mut self, slot: Slot, socket: &impl AsFd) -> Result<(), FilterError> {
        let socket = socket.as_fd().as_raw_fd();
        let set = self.sockets.set(slot as u32, &socket, 0);
        set.map_err(|error| failed("written", error))
    }
}

fn put<K: crate::sys::Plain>(
    name: &'static str,
    table: &Table<K, Steered>,
    key: K,
) -> Result<(), FilterError> {
    let put = table.put(&key, &Steered { on: 1 });
    put.map_err(|source| FilterError::Map {
        map: name,
        operation: "written",
        source: source.into(),
    })
}

/// Removes what an earlier process steered and this one does not.
fn keep<K: crate::sys::Plain>(
    name: &'static str,
    table: &Table<K, Steered>,
    wanted: impl Fn(&K) -> bool,
) -> Result<(), FilterError> {
    let failed = |source: std::io::Error| FilterError::Map {
        map: name,
        operation: "read",
        source: source.into(),
    };
    let mut stale = Vec::new();
    let visited = table.visit(|keys, _| stale.extend(keys.iter().filter(|key| !wanted(key))));
    visited.map_err(failed)?;
    for key in stale {
        table.remove(&key).map_err(failed)?;
    }
    Ok(())
}

fn failed(operation: &'static str, error: aya::maps::MapError) -> FilterError {
    FilterError::Map { map: map::SOCKETS, operation, source: error.into() }
}
