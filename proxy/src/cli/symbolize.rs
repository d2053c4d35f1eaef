//! `ferrule symbolize`: the child that a node asks for names, with limits of its own.

use std::io;

use telemetry::symbols::child;

use super::{Exit, Failure, chain};

pub(super) fn run() -> Result<Exit, Failure> {
    let served = child::serve(io::stdin().lock(), io::stdout().lock());
    let failed = |error| Failure { exit: Exit::Internal, message: chain(&error) };
    served.map(|()| Exit::Success).map_err(failed)
}
