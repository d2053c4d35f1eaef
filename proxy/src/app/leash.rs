//! A node on a leash ends with whoever started it, and so does its successor.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use rustix::process::{Signal, getpid, kill_process};

use crate::handoff::{Held, Legacy, Place};

/// Drains this process when the leash ends, and keeps it for a successor.
///
/// A pipe ends with the last process that could write to it, even if that was killed; and unlike a
/// signal at the death of a parent it needs no unsafe code. The thread ends with the process.
pub(super) fn follow(leash: OwnedFd, legacy: &Legacy) -> io::Result<Held> {
    let leash = File::from(leash);
    let held = legacy.hold(Place::Leash, Arc::new(leash.try_clone()?));
    let mut leash = leash;
    let follow = move || {
        // What comes is not for us, and what cannot be read has ended.
        drop(io::copy(&mut leash, &mut io::sink()));
        let _sent = kill_process(getpid(), Signal::TERM); // a process may always signal itself
    };
    thread::Builder::new().name("leash".to_owned()).spawn(follow)?;
    Ok(held)
}
