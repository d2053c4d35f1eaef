//! One datagram to a service manager, with or without descriptors (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg, socket_with,
};

/// Descriptors in one datagram; the kernel takes 253 (`SCM_MAX_FD`).
pub(super) const DESCRIPTORS_MAX: usize = 200;

/// Longest wait for a manager that does not read. It bounds how long a thread that tells something
/// can hang in it.
const SEND: Duration = Duration::from_secs(2);

/// Where a manager listens.
#[derive(Debug, Clone)]
pub struct Manager {
    address: SocketAddrUnix,
}

// === impl Manager ===

impl Manager {
    /// What `NOTIFY_SOCKET` says: a path, or a name of the abstract kind after an `@`.
    ///
    /// # Errors
    ///
    /// When it is neither.
    pub fn at(socket: &OsStr) -> io::Result<Self> {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => SocketAddrUnix::new_abstract_name(name)?,
            path @ [b'/', ..] => SocketAddrUnix::new(path)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self { address })
    }

    /// The manager of this process, if it has one.
    pub fn of_environment() -> Option<Self> {
        let socket: OsString = std::env::var_os("NOTIFY_SOCKET")?;
        Self::at(&socket)
            .inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET cannot be used"))
            .ok()
    }

    /// Tells the manager these lines, all at once.
    ///
    /// # Errors
    ///
    /// When it is not there, or does not read.
    pub fn tell(&self, lines: &[&str], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = lines.iter().flat_map(|line| [*line, "\n"]).collect::<String>();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = sendmsg(
            self.connect()?,
            &[IoSlice::new(text.as_bytes())],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// A socket for one datagram: a manager that was started again is found again.
    fn connect(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(SEND))?;
        rustix::net::connect(&socket, &self.address)?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_has_a_path_or_an_abstract_name() {
        let check = |socket: &str, expected: bool| {
            assert_eq!(Manager::at(OsStr::new(socket)).is_ok(), expected, "{socket}");
        };
        check("/run/systemd/notify", true);
        check("@ferrule", true);
        check("", false);
        check("@", false);
        check("run/notify", false);
        check(&format!("/{}", "n".repeat(200)), false);
    }

    #[test]
    fn a_manager_with_an_abstract_name_is_told() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let name = format!("ferrule-notify-{}", std::process::id());
        let listening = SocketAddr::from_abstract_name(&name).unwrap();
        let listening = UnixDatagram::bind_addr(&listening).unwrap();
        let manager = Manager::at(OsStr::new(&format!("@{name}"))).unwrap();
        manager.tell(&["READY=1", "STATUS=serves"], &[]).unwrap();
        let mut buffer = [0; 64];
        let length = listening.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serves\n");
    }
}
