//! The `ferrule` binary: no backtraces, then whatever the command line asks for.

use std::env;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use proxy::cli::Arguments;

/// Its settings are compiled in, see `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What makes the standard library symbolise a backtrace, unless it is absent or `0`.
///
/// Symbolising in-process maps the binary's debug information and never gives it back: 200 MB at
/// the worst moment, when something has just gone wrong.
const BACKTRACES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

fn main() -> ExitCode {
    if backtraces_are_wanted() {
        let error = start_again_without_backtraces();
        eprintln!("ferrule: cannot start again without backtraces: {error}");
        return ExitCode::from(70);
    }
    match Arguments::read() {
        Ok(arguments) => arguments.run(),
        Err(exit) => exit,
    }
}

fn backtraces_are_wanted() -> bool {
    BACKTRACES.into_iter().filter_map(env::var_os).any(|value| value != "0")
}

/// Becomes the same program with the variables at `0`; returns only if that fails.
///
/// Setting them in place is unsafe code, and the standard library may have read them already.
fn start_again_without_backtraces() -> io::Error {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).envs(BACKTRACES.map(|name| (name, "0"))).exec()
}
