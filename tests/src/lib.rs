//! The harness: starts the `ferrule` binary, instances that are none of ours, and clients strict
//! enough to be oracles.
//!
//! A test owns everything it touches: its nodes, ports, certificates and instances. A node that
//! goes out of scope is asked to stop and has to say that it held nothing any more, so every test
//! is a leak test too. Conditions are awaited with a timeout ([`wait`]); nothing waits for time to
//! pass in the hope that something happened meanwhile.

pub mod wait;
pub mod port;
pub mod process;
pub mod need;
pub mod cgroup;
pub mod lint;
pub mod certs;
pub mod app;
pub mod edge;
pub mod announcer;
pub mod metrics;
pub mod strict;
pub mod client;
pub mod instance;
pub mod collector;
pub mod lab;
pub mod machine;
pub mod traffic;
