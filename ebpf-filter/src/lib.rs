//! The kernel's part of admission.
//!
//! It is an optimisation: without it admission reaches the same verdicts, later. The programs
//! (`program/`, built apart and embedded here) judge packets by [`ebpf_filter_common`]; this crate
//! loads and attaches them as early as the machine can ([`Filter`]), keeps their maps in step with
//! what apps ask for ([`AppPolicy`]), and hands the kernel the node's sockets ([`Steering`]). What it
//! attaches outlives the process ([`pins`]).
//!
//! One thread holds all of it; nothing here is on the path of a request.

mod config;
mod error;
mod capability;
mod sys;
pub mod pins;
mod object;
mod attach;
mod places;
mod policy;
mod book;
mod store;
mod kernel;
mod counters;
mod filter;
mod steering;

pub use config::{ActiveMode, Config, Limits, Mode, UnknownMode};
pub use counters::{Counters, Drop};
pub use ebpf_filter_common::{AppCounters, AppIndex, Decision, Family, LAYOUT, Policies, Verdict};
pub use error::FilterError;
pub use filter::Filter;
pub use policy::AppPolicy;
pub use steering::Steering;
pub use store::{PolicyTable, decide_in_userspace};

/// How connections are filtered before accept, where no [`Filter`] was opened.
pub const MODE: &str = "off";
