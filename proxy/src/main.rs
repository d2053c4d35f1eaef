//! The `ferrule` binary: no backtraces, then whatever the command line asks for.

use std::process::ExitCode;

use proxy::cli::Arguments;
use telemetry::backtrace_guard;
use telemetry::error::chain;

/// jemalloc; its settings are compiled in, see `.cargo/config.toml`.
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
