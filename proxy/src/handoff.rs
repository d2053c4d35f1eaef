//! One process of a node hands over to the next, and nobody outside notices.
//!
//! The *predecessor* runs; it starts the *successor*, a process of the same node, and gives it the
//! very sockets it listens on, so that whoever waits in their queues is served by one or the other.
//! Until the successor says that it is ready the predecessor goes on as if nothing happened; whatever
//! goes wrong ends the successor and changes nothing. Then the successor serves, the predecessor stays
//! ready to take the sockets up again for a moment, finishes what it had begun, and ends.
//!
//! This module is the conversation and what is handed over. When it takes place, and what a node does
//! around it, is in [`crate::app`].

pub mod channel;
pub mod manifest;
pub mod legacy;
pub mod inherited;
pub mod stored;
pub mod predecessor;
pub mod successor;

pub use inherited::Inherited;
pub use legacy::{Held, Legacy};
pub use manifest::Place;
