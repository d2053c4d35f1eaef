//! The verdict on a packet, and the types that travel through the kernel's maps.
//!
//! This crate is compiled twice: into the programs that the kernel runs ([`parse`] reads the packet
//! behind the verifier's bounds, [`Policies`] are maps) and into the loader and its tests, where the
//! same [`decide`] judges the same bytes. So the answer cannot depend on where it is given.
//!
//! The rule is: inside the anycast prefixes nothing passes that no app asked for; about everything
//! else the filter has no opinion, so that the node itself stays reachable. It looks only at what
//! begins something. A segment of a connection that exists passes without a look at any map.
#![no_std]

#[cfg(test)]
extern crate std;

mod layout;
mod packet;
mod verdict;

pub use layout::{
    AppCounters, AppIndex, DropEvent, Family, LAYOUT, NOBODY, Policy, PortBlock, PortRange,
    Protocol, Settings, Slot, Steered, Token, V4Prefix, V6Prefix, counter_slot, map,
};
pub use packet::{Destination, Kind, Packet, Parsed, Start, parse};
pub use verdict::{Decision, Policies, Verdict, decide};
