//! The `ferrule-seeded` binary: `ferrule` with one leak, for what must find it.

use std::process::ExitCode;

#[path = "../main.rs"]
mod ferrule;

fn main() -> ExitCode {
    ferrule::main()
}
