//! The `ferrule` binary: no backtraces, then whatever the command line asks for.

use std::process::ExitCode;

use proxy::cli::Arguments;
use telemetry::backtrace_guard;
use telemetry::error::chain;

/// jemalloc; its settings are compiled in, see `.cargo/config.toml`. Nothing can be put in its place at
/// run time, so a build for tools that do that goes without.
#[cfg(not(feature = "system-allocator"))]
#[global_allocator]
static ALLOCATOR: telemetry::heapwatch::Allocator = telemetry::heapwatch::Allocator;

pub(crate) fn main() -> ExitCode {
    if let Err(error) = backtrace_guard::arm() {
        eprintln!("ferrule: {}", chain(&error));
        return ExitCode::from(70);
    }
    match Arguments::read() {
        Ok(arguments) => arguments.run(),
        Err(exit) => exit,
    }
}
