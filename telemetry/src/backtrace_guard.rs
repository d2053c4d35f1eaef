//! No backtrace is ever symbolised in this process.
//!
//! Symbolising maps the program's debug information and never gives it back: 140 MB at the first
//! `{:?}` of an error that holds a backtrace, or at the first panic, on the thread that serves. That
//! has killed services whose memory had been flat for months. So the variables that make the standard
//! library capture backtraces are off before anything can have looked at them, whatever the
//! environment says, and the standard library is asked whether that worked: it remembers its answer,
//! so no later change can undo it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::env;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What makes the standard library capture, unless it is absent or `0`.
const VARIABLES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

/// Why a process must not go on.
#[derive(Debug, thiserror::Error)]
pub enum Unguarded {
    #[error("the program cannot start again without backtraces")]
    Restart(#[source] io::Error),
    #[error("errors capture backtraces in this process")]
    Captures,
}

/// To be called first of all by `main`. Starts the program again where the environment asks for
/// backtraces.
///
/// # Errors
///
/// When backtraces cannot be turned off; the process must end then.
pub fn arm() -> Result<(), Unguarded> {
    let wanted = VARIABLES.into_iter().filter_map(env::var_os).any(|value| value != "0");
    if wanted {
        return Err(Unguarded::Restart(start_again()));
    }
    verify()
}

/// Whether errors capture nothing. Settles it for the rest of the process.
///
/// # Errors
///
/// When they do.
#[allow(clippy::disallowed_methods, reason = "the one place that looks whether capturing is off")]
pub fn verify() -> Result<(), Unguarded> {
    match Backtrace::capture().status() {
        BacktraceStatus::Disabled | BacktraceStatus::Unsupported => Ok(()),
        _ => Err(Unguarded::Captures),
    }
}

/// Becomes the same program with the variables at `0`; returns only if that fails.
///
/// Setting them in place is unsafe once there are threads, and the allocator may have started one.
fn start_again() -> io::Error {
    let mut arguments = env::args_os();
    let name = arguments.next();
    let program = match env::current_exe() {
        // Its file was replaced by a newer one, as in an upgrade: this one is still there as such.
        Ok(program) if !program.exists() => "/proc/self/exe".into(),
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut command = Command::new(program);
    if let Some(name) = name {
        command.arg0(name);
    }
    command.args(arguments).envs(VARIABLES.map(|name| (name, "0"))).exec()
}
