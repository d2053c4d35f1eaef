//! Everything that may leave the process passes through here.
//!
//! [`record`] writes down what happens to a request and keeps it when its end says so; [`bridge`] adds
//! what libraries say about a verbose one; [`export`] sends it to a collector.
//! [`metrics`] counts in shards, one per worker, and never grows with traffic or uptime;
//! [`ledger`] lists whatever may hold memory; [`memory`] asks the allocator and the kernel;
//! [`log`] writes the lines on stderr. [`sampler`] looks at memory every 10 ms, and [`black_box`] keeps
//! what happened last where the end of the process cannot take it.
//! [`shared_counts`] is what two generations of the process count together.
//! This crate depends on no other of the workspace, so that all of them may depend on it.

pub mod record;
mod outbox;
pub mod work;
pub mod verbosity;
pub mod bridge;
pub mod export;
pub mod sensitive;
pub mod metrics;
pub mod ledger;
pub mod budget;
pub mod lock;
pub mod memory;
pub mod heapwatch;
pub mod log;
pub mod pressure;
pub mod access_log;
pub mod shard;
pub mod shared_counts;
pub mod stack;
pub mod watchdog;
pub mod service;
pub mod symbols;
pub mod sampler;
pub mod black_box;
pub mod cgroup;
pub mod process;
pub mod panic;
pub mod backtrace_guard;
pub mod error;
pub mod clock;
mod kernel_file;
