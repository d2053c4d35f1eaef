//! What systemd is told (sd_notify(3)): that the node serves, what it does, that it lives, that it
//! ends, which process it is now; and what it keeps for the process after a crash. Where nobody
//! listens (`NOTIFY_SOCKET` is not set) nothing is said.
//!
//! Two generations of a node are one service. Only the one that serves speaks: what its predecessor
//! said while it drains would be taken for the service (`STOPPING=1` would end both).

mod notify;
mod store;

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::time::Instant;

pub use self::notify::Manager;
pub use self::store::{STORED_MAX, prepare_child, stored};

/// Tells that the process lives, while it does.
#[derive(Debug)]
pub struct Heartbeat {
    /// Without a sign of life for so long the process is killed and started again; `WatchdogSec=`.
    period: Option<Duration>,
    last: Option<Instant>,
}

/// The node serves.
pub fn ready(status: &str) {
    own().tell(&["READY=1", &line("STATUS", status)]);
}

/// The node serves, and it is this process: after it has taken over from its predecessor, or took the
/// sockets up again because its successor has died.
pub fn take_over(status: &str) {
    own().take_over(status);
}

/// Says nothing until it takes over: for a process whose predecessor is still the node.
pub fn keep_silent() {
    own().hand_over();
}

/// Another process is the node now. From here on this one says nothing, heartbeats included, unless it
/// takes over again.
pub fn hand_over() {
    own().hand_over();
}

/// It does not serve any more, and will end.
pub fn stopping() {
    own().tell(&["STOPPING=1", "STATUS=draining"]);
}

/// What `systemctl status` shows.
pub fn status(status: &str) {
    own().tell(&[&line("STATUS", status)]);
}

/// Gives sockets into the store, under a name that says what they are; see [`stored`]. Those that are
/// there already stay once.
pub fn store(name: &str, descriptors: &[BorrowedFd<'_>]) {
    own().store(name, descriptors);
}

/// Takes everything of this name out of the store. A listening socket that stays there goes on taking
/// connections that nobody accepts, so what is closed has to be removed.
pub fn remove(name: &str) {
    own().remove(name);
}

/// This process as a service.
#[derive(Debug, Default)]
struct Service {
    manager: Option<Manager>,
    /// Another process speaks for the service.
    silent: AtomicBool,
}

fn own() -> &'static Service {
    static OWN: OnceLock<Service> = OnceLock::new();
    OWN.get_or_init(|| Service { manager: Manager::of_environment(), ..Service::default() })
}

/// `NAME=value`, on one line whatever the value is.
fn line(name: &str, value: &str) -> String {
    let value = value.replace(|character: char| character.is_control(), " ");
    format!("{name}={value}")
}

// === impl Service ===

impl Service {
    fn tell(&self, lines: &[&str]) {
        self.tell_with(lines, &[]);
    }

    fn tell_with(&self, lines: &[&str], descriptors: &[BorrowedFd<'_>]) {
        let Some(manager) = &self.manager else { return };
        if self.silent.load(SeqCst) {
            return;
        }
        if let Err(error) = manager.tell(lines, descriptors) {
            tracing::debug!(%error, "systemd does not listen");
        }
    }

    fn take_over(&self, status: &str) {
        self.silent.store(false, SeqCst);
        let main = format!("MAINPID={}", std::process::id());
        // One datagram: there is no moment in which one half is known without the other.
        self.tell(&[&main, "READY=1", &line("STATUS", status)]);
    }

    fn hand_over(&self) {
        self.silent.store(true, SeqCst);
    }

    fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) {
        if !store::is_name(name) {
            tracing::error!("a socket is not stored: its name is none");
            return;
        }
        let name = line("FDNAME", name);
        for descriptors in descriptors.chunks(notify::DESCRIPTORS_MAX) {
            // FDPOLL=0: a socket whose other side is gone is for us to notice.
            self.tell_with(&["FDSTORE=1", &name, "FDPOLL=0"], descriptors);
        }
    }

    fn remove(&self, name: &str) {
        if store::is_name(name) {
            self.tell(&["FDSTOREREMOVE=1", &line("FDNAME", name)]);
        }
    }
}

// === impl Heartbeat ===

impl Heartbeat {
    /// As the environment asks for (`WATCHDOG_USEC`). A successor is started without `WATCHDOG_PID`
    /// ([`prepare_child`]), so that its predecessor's watchdog is its own.
    pub fn of_environment() -> Self {
        Self { period: sd_notify::watchdog_enabled(), last: None }
    }

    /// Gives a sign of life twice in a period, unless something has hung for the whole of one, or
    /// another process is the node by now.
    pub fn beat(&mut self, hangs_for: Duration, now: Instant) {
        if self.is_due(hangs_for, now) {
            own().tell(&["WATCHDOG=1"]);
        }
    }

    fn is_due(&mut self, hangs_for: Duration, now: Instant) -> bool {
        let Some(period) = self.period else { return false };
        // Half a period before the kill, so that who is silent has hung for a whole one by then.
        let is_due = self.last.is_none_or(|last| now - last >= period / 2);
        let is_well = hangs_for < period / 2;
        if is_due && is_well {
            self.last = Some(now);
        }
        is_due && is_well
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io::IoSliceMut;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::net::UnixDatagram;

    use rustix::cmsg_space;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use tempfile::TempDir;

    use super::*;

    /// A service, and its manager's socket.
    fn managed() -> (Service, UnixDatagram, TempDir) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("notify");
        let listening = UnixDatagram::bind(&path).unwrap();
        listening.set_nonblocking(true).unwrap();
        let manager = Manager::at(path.as_os_str()).unwrap();
        (Service { manager: Some(manager), ..Service::default() }, listening, directory)
    }

    /// The next datagram, if there is one, and what came with it.
    fn next(listening: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
        let mut bytes = [0; 1_024];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(250))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let length = recvmsg(listening, &mut into, &mut control, flags).ok()?.bytes;
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        });
        let descriptors = descriptors.collect();
        Some((String::from_utf8(bytes[..length].to_vec()).unwrap(), descriptors))
    }

    #[test]
    fn who_takes_over_says_so_in_one_datagram() {
        let (service, listening, _directory) = managed();
        service.take_over("listen bind\nREADY=0");
        let expected =
            format!("MAINPID={}\nREADY=1\nSTATUS=listen bind READY=0\n", std::process::id());
        assert_eq!(next(&listening).unwrap().0, expected);
    }

    #[test]
    fn who_has_handed_over_says_nothing_until_it_takes_over_again() {
        let (service, listening, _directory) = managed();
        service.tell(&["WATCHDOG=1"]);
        assert_eq!(next(&listening).unwrap().0, "WATCHDOG=1\n");
        service.hand_over();
        for lines in [["WATCHDOG=1"], ["STOPPING=1"], ["STATUS=draining"]] {
            service.tell(&lines);
        }
        service.remove("clients");
        service.store("clients", &[listening.as_fd()]);
        assert!(next(&listening).is_none());
        service.take_over("");
        service.tell(&["WATCHDOG=1"]);
        assert!(next(&listening).unwrap().0.starts_with("MAINPID="));
        assert_eq!(next(&listening).unwrap().0, "WATCHDOG=1\n");
    }

    #[test]
    fn sockets_are_stored_and_removed_by_name() {
        let (service, listening, _directory) = managed();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let many = vec![socket.as_fd(); 201];
        service.store("clients", &many);
        let (text, descriptors) = next(&listening).unwrap();
        assert_eq!(
            (text.as_str(), descriptors.len()),
            ("FDSTORE=1\nFDNAME=clients\nFDPOLL=0\n", 200)
        );
        let (text, mut descriptors) = next(&listening).unwrap();
        assert_eq!(
            (text.as_str(), descriptors.len()),
            ("FDSTORE=1\nFDNAME=clients\nFDPOLL=0\n", 1)
        );
        let copy = std::net::TcpListener::from(descriptors.remove(0));
        assert_eq!(copy.local_addr().unwrap(), socket.local_addr().unwrap());
        service.remove("clients");
        assert_eq!(next(&listening).unwrap().0, "FDSTOREREMOVE=1\nFDNAME=clients\n");
        // Without a name systemd would take out what has none, and a colon ends one.
        service.remove("");
        service.store("clients:mesh", &[socket.as_fd()]);
        assert!(next(&listening).is_none());
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        let service = Service::default();
        service.take_over("serves");
        service.store("clients", &[std::io::stdin().as_fd()]);
        service.remove("clients");
        // Nor does one that is gone keep anybody.
        let manager = Manager::at(OsStr::new("/nonexistent/notify")).unwrap();
        Service { manager: Some(manager), ..Service::default() }.take_over("serves");
    }

    #[test]
    fn a_heart_beats_twice_in_a_period_while_nothing_hangs() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut heartbeat = Heartbeat { period: Some(30 * second), last: None };
        let beats = (0..120)
            .filter(|seconds| {
                let hangs_for =
                    if *seconds < 60 { Duration::ZERO } else { (*seconds - 60) * second };
                heartbeat.is_due(hangs_for, start + *seconds * second)
            })
            .collect::<Vec<_>>();
        assert_eq!(beats, [0, 15, 30, 45, 60]);
    }

    #[test]
    fn without_a_watchdog_there_is_no_beat() {
        let mut heartbeat = Heartbeat { period: None, last: None };
        assert!(!heartbeat.is_due(Duration::ZERO, Instant::now()));
    }
}
