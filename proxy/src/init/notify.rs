//! The socket on which the node says who it is, in the words it has for systemd (sd_notify(3)).
//!
//! It is a file that only this user may open, in a folder that only this user may enter: whoever can
//! write there could name another process. An abstract name would be open to everybody in the network
//! namespace, which in a container may be the host's.

use std::fs::{DirBuilder, DirEntry};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use rustix::process::Pid;
use telemetry::service::Manager;
use tokio::net::UnixDatagram;
use ulid::Ulid;

/// As long as systemd takes one (`NOTIFY_BUFFER_MAX`).
const MESSAGE_BYTES_MAX: usize = 4_096;

/// Folders that this module makes begin so, and have this in them.
const NAME: &str = "ferrule-init-";
const SOCKET: &str = "notify";

/// Dropping it removes the file and its folder.
pub(super) struct Notify {
    socket: UnixDatagram,
    folder: PathBuf,
    path: PathBuf,
    /// The service manager that this process itself may have.
    outer: Option<Manager>,
}

// === impl Notify ===

impl Notify {
    pub(super) fn offer() -> io::Result<Self> {
        // A container whose root cannot be written has the second.
        let bases = [env::temp_dir(), "/dev/shm".into()];
        let mut last = io::ErrorKind::NotFound.into();
        for base in bases {
            match Self::offer_in(&base) {
                Ok(notify) => return Ok(notify),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn offer_in(base: &Path) -> io::Result<Self> {
        sweep(base);
        // Not the process id: several namespaces, in each of which this is 1, may share a folder.
        let folder = base.join(format!("{NAME}{}", Ulid::new()));
        DirBuilder::new().mode(0o700).create(&folder)?;
        let path = folder.join(SOCKET);
        let socket = UnixDatagram::bind(&path).inspect_err(|_| drop(fs::remove_dir(&folder)))?;
        Ok(Self { socket, folder, path, outer: Manager::of_environment() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next process that says it is the node. Everything else goes to the manager outside.
    ///
    /// Cancel safe: a message is taken whole or not at all.
    pub(super) async fn main_pid(&self) -> Pid {
        let mut message = [0; MESSAGE_BYTES_MAX];
        loop {
            match self.socket.recv(&mut message).await {
                Ok(length) => {
                    let (main, rest) = read(&message[..length]);
                    self.pass_on(&rest);
                    if let Some(main) = main {
                        return main;
                    }
                }
                // Not a thing that a datagram socket without a peer does; but never in a busy loop.
                Err(error) => {
                    tracing::warn!(%error, "the node is not heard");
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    fn pass_on(&self, lines: &[&str]) {
        let Some(outer) = &self.outer else { return };
        if !lines.is_empty()
            && let Err(error) = outer.tell(lines, &[])
        {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Removes what supervisors left that were killed: sockets at which nobody listens. Those of other
/// users cannot be looked at, nor removed.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    let ours = |entry: &DirEntry| entry.file_name().to_string_lossy().starts_with(NAME);
    for folder in entries.flatten().filter(ours).map(|entry| entry.path()) {
        let deserted = std::os::unix::net::UnixDatagram::unbound()
            .and_then(|socket| socket.connect(folder.join(SOCKET)))
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if deserted {
            drop(fs::remove_dir_all(&folder));
        }
    }
}

/// Whom a message names, and its lines that concern a manager outside: for that one the supervisor is
/// the main process, and descriptors given into its store would come back to the supervisor.
fn read(message: &[u8]) -> (Option<Pid>, Vec<&str>) {
    let mut main = None;
    let mut rest = Vec::new();
    for line in message.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok()) {
        match line.split_once('=') {
            Some(("MAINPID", pid)) => {
                main = pid.parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw)
            }
            Some(("READY" | "STATUS" | "STOPPING" | "WATCHDOG" | "EXTEND_TIMEOUT_USEC", _)) => {
                rest.push(line);
            }
            _ => {}
        }
    }
    (main, rest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_message_names_the_node_and_the_rest_is_passed_on() {
        let check = |message: &[u8], main: Option<i32>, rest: &[&str]| {
            let expected = (main.and_then(Pid::from_raw), rest.to_vec());
            assert_eq!(read(message), expected, "{}", String::from_utf8_lossy(message));
        };
        check(b"MAINPID=12\nREADY=1\nSTATUS=a=b\n", Some(12), &["READY=1", "STATUS=a=b"]);
        check(b"WATCHDOG=1", None, &["WATCHDOG=1"]);
        check(b"FDSTORE=1\nFDNAME=clients\nFDPOLL=0\n", None, &[]);
        for message in [
            &b"MAINPID="[..],
            b"MAINPID=1",
            b"MAINPID=0",
            b"MAINPID=-7",
            b"MAINPID=x",
            b"",
            b"\xff=1",
        ] {
            check(message, None, &[]);
        }
    }

    #[tokio::test]
    async fn the_socket_is_the_users_alone_and_goes_with_the_supervisor() {
        let base = tempfile::tempdir().unwrap();
        let notify = Notify::offer_in(base.path()).unwrap();
        assert_eq!(fs::metadata(&notify.folder).unwrap().permissions().mode() & 0o777, 0o700);
        let manager = Manager::at(notify.path().as_os_str()).unwrap();
        manager.tell(&["READY=1"], &[]).unwrap();
        manager.tell(&["MAINPID=4711"], &[]).unwrap();
        assert_eq!(notify.main_pid().await, Pid::from_raw(4711).unwrap());
        drop(notify);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        assert!(Notify::offer_in(&base.path().join("none")).is_err());
    }

    #[tokio::test]
    async fn what_a_killed_supervisor_left_is_removed_and_what_another_uses_is_not() {
        let base = tempfile::tempdir().unwrap();
        let left = base.path().join("ferrule-init-left");
        fs::create_dir(&left).unwrap();
        drop(std::os::unix::net::UnixDatagram::bind(left.join(SOCKET)).unwrap());
        let other = base.path().join("other");
        fs::create_dir(&other).unwrap();
        let [first, second] = [(); 2].map(|()| Notify::offer_in(base.path()).unwrap());
        assert!(!left.exists() && other.exists());
        assert!(first.path().exists() && second.path().exists());
    }
}
