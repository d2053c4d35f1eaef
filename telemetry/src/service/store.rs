//! The service manager's store of descriptors: what it was given survives the process, and comes back
//! to the next one, listen queues and all.
//!
//! systemd keeps up to `FileDescriptorStoreMax=` of them until the service is stopped for good, and
//! hands them to the process it starts after a crash (`LISTEN_FDS`, sd_listen_fds(3)). A socket that
//! it already has is not kept twice, so a successor may store again what its predecessor has stored.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Most descriptors that are taken from the store; more are closed. Above `FileDescriptorStoreMax=` of
/// the unit.
pub const STORED_MAX: usize = 8_192;

/// Bytes of a name; systemd's own bound (`FDNAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// What the environment says to one process only.
const FOR_ONE_PROCESS: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// Takes what the store had for this process, with the names it was stored under, each closed on exec.
/// Only the first call gives any.
///
/// To be called before this process opens many descriptors of its own: an environment that promises
/// more than there are is believed where a number is open.
pub fn stored() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, SeqCst) {
        return Vec::new();
    }
    // Checks that they are meant for this process and open, and sets close-on-exec.
    let numbers = match sd_notify::listen_fds() {
        Ok(numbers) => numbers,
        Err(error) => {
            tracing::warn!(%error, "what the service manager has stored cannot be taken");
            return Vec::new();
        }
    };
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count = numbers.len();
    let mut stored: Vec<_> =
        named(numbers, &names).map(|(name, number)| (name, own(number))).collect();
    if stored.len() > STORED_MAX {
        tracing::warn!(count, kept = STORED_MAX, "more descriptors than can be taken");
        stored.truncate(STORED_MAX);
    }
    stored
}

/// Takes from a child's environment what is said to this process only.
///
/// A successor gets its sockets otherwise, and beats for its unit under a pid of its own.
pub fn prepare_child(command: &mut Command) -> &mut Command {
    FOR_ONE_PROCESS.iter().fold(command, |command, name| command.env_remove(name))
}

/// Descriptors with their names, which are separated by colons. One without a usable name is
/// `unknown`, as systemd calls it: nobody asks for that, so it is closed.
fn named(
    numbers: impl Iterator<Item = RawFd>,
    names: &str,
) -> impl Iterator<Item = (String, RawFd)> {
    let mut names = names.split(':');
    numbers.map(move |number| {
        let name = names.next().filter(|name| is_name(name)).unwrap_or("unknown");
        (name.to_owned(), number)
    })
}

/// What systemd takes as a name: printable ASCII without a colon.
pub(super) fn is_name(name: &str) -> bool {
    let printable = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b':';
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(printable)
}

#[allow(unsafe_code, reason = "descriptors of the service manager are numbers in the environment")]
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the number is open, as `listen_fds` has just seen, and was given to this process for it
    // to own (LISTEN_PID is its id); `stored` comes here once in the life of the process, so nothing
    // else owns it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    #[test]
    fn descriptors_have_names_in_their_order() {
        let check = |names: &str, expected: [&str; 2]| {
            let found: Vec<_> = named(3..5, names).collect();
            assert_eq!(
                found,
                [(expected[0].to_owned(), 3), (expected[1].to_owned(), 4)],
                "{names}"
            );
        };
        check("clients:mesh", ["clients", "mesh"]);
        check("clients:mesh:admin", ["clients", "mesh"]);
        check("clients", ["clients", "unknown"]);
        check("", ["unknown", "unknown"]);
        check("cl\u{7}ients:", ["unknown", "unknown"]);
        check(&format!("{}:{}", "n".repeat(255), "n".repeat(256)), [&"n".repeat(255), "unknown"]);
    }

    /// Runs `stored` in a process of its own, whose descriptors 3 and 4 are files.
    fn child(environment: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let test = std::env::current_exe().unwrap();
        let script = format!("exec 3<one 4<two; {environment} exec \"$0\" \"$@\"");
        let output = Command::new("bash")
            .args(["-c", &script])
            .arg(test)
            .args(["service::store::tests::what_a_child_was_given", "--exact", "--nocapture"])
            .env("FERRULE_TEST_STORED", "yes")
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.contains("stored ")).flat_map(|line| [line, "\n"]).collect()
    }

    /// The child's part of the tests below; by itself it does nothing.
    #[test]
    fn what_a_child_was_given() {
        if std::env::var_os("FERRULE_TEST_STORED").is_none() {
            return;
        }
        for (name, descriptor) in stored() {
            assert!(fcntl_getfd(&descriptor).unwrap().contains(FdFlags::CLOEXEC));
            let mut text = String::new();
            File::from(descriptor).read_to_string(&mut text).unwrap();
            println!("\nstored {name} {text}");
        }
        assert!(stored().is_empty(), "they are given once");
        // A child of this one is promised nothing.
        let mut command = Command::new("env");
        let output = prepare_child(&mut command).output().unwrap();
        let environment = String::from_utf8(output.stdout).unwrap();
        assert!(!environment.contains("LISTEN_") && environment.contains("FERRULE_TEST_STORED"));
    }

    #[test]
    fn what_was_stored_is_given_once_with_its_names() {
        let given = child("LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=clients:mesh");
        assert_eq!(given, "stored clients one\nstored mesh two\n");
        let given = child("LISTEN_PID=$$ LISTEN_FDS=2");
        assert_eq!(given, "stored unknown one\nstored unknown two\n");
    }

    #[test]
    fn nothing_is_taken_that_is_meant_for_somebody_else_or_not_there() {
        for environment in [
            "",
            "LISTEN_FDS=2",
            "LISTEN_PID=$PPID LISTEN_FDS=2",
            "LISTEN_PID=$$ LISTEN_FDS=200",
            "LISTEN_PID=$$ LISTEN_FDS=-1",
            "LISTEN_PID=$$ LISTEN_FDS=4294967295",
            "LISTEN_PID=me LISTEN_FDS=2",
        ] {
            assert_eq!(child(environment), "", "{environment}");
        }
    }
}
