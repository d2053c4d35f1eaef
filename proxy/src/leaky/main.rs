//! The `ferrule-leaky` binary: `ferrule` with a leak, for what must find one.

use std::process::ExitCode;

#[path = "../main.rs"]
mod ferrule;

fn main() -> ExitCode {
    ferrule::main()
}
