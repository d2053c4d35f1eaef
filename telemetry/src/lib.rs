//! Everything that may leave the process passes through here.
//!
//! [`metrics`] counts in shards, one per worker, and never grows with traffic or uptime;
//! [`ledger`] lists whatever may hold memory; [`memory`] asks the allocator and the kernel;
//! [`log`] writes the lines on stderr.
//! This crate depends on no other of the workspace, so that all of them may depend on it.

pub mod record;
pub mod metrics;
pub mod ledger;
pub mod memory;
pub mod log;
pub mod shard;
