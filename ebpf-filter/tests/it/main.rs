//! The programs in the kernel: every test has its own BPF file system and network namespace, which go
//! with its thread.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod kernel;
mod packet;
mod run;
mod table;
mod verdicts;
mod modes;
mod updates;
mod lifetime;
mod steering;
