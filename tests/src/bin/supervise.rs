//! `ferrule`'s process 1 with any program in the place of the node: `supervise PROGRAM ARGUMENTS`.

#![allow(clippy::unwrap_used, reason = "a program of the tests")]

use std::env;
use std::process::{Command, ExitCode};

use telemetry::{backtrace_guard, log};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    backtrace_guard::arm().unwrap();
    log::open("info", log::Format::Text).unwrap();
    let mut arguments = env::args_os().skip(1);
    let mut node = Command::new(arguments.next().unwrap());
    node.args(arguments);
    proxy::init::supervise(node).unwrap().into()
}
