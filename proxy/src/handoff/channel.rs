//! Messages with descriptors between two processes of one node.
//!
//! A message is one packet of a `SOCK_SEQPACKET` socket: JSON of at most 64 KiB, with at most 200
//! descriptors beside it. Whatever is cut short, too long, or has other descriptors than it says ends
//! the conversation: a socket that got lost on the way would be a client that waits for ever.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zeroize::Zeroizing;

/// Bytes of one message. The kernel's buffer for a socket holds three of this size by default.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Descriptors beside one message; the kernel takes 253 (`SCM_MAX_FD`).
pub const DESCRIPTORS_MAX: usize = 200;

/// One end of the conversation.
///
/// Both directions may be used at once, each by one task: packets are whole or not there, so a call
/// that is dropped while it waits has neither sent nor taken anything.
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
}

/// A message as it came, with what came beside it. Messages may hold keys, so they are wiped.
pub type Packet = (Zeroizing<Vec<u8>>, Vec<OwnedFd>);

/// What can be sent: it says how many descriptors belong to it.
pub trait Message: Serialize + DeserializeOwned {
    fn descriptors(&self) -> usize {
        0
    }
}

/// Why the conversation is over.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the other process is gone")]
    Closed,
    #[error("the channel to the other process fails")]
    Socket(#[source] io::Error),
    #[error("a message is longer than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    #[error("more than {DESCRIPTORS_MAX} descriptors came with a message, or some were lost")]
    DescriptorsLost,
    #[error("a message should have {expected} descriptors and has {found}")]
    Descriptors { expected: usize, found: usize },
    #[error("a message is none that this process knows")]
    Garbage(#[source] serde_json::Error),
    #[error("a message cannot be written")]
    Unwritable(#[source] serde_json::Error),
}

/// Both ends; the second is for another process.
///
/// # Errors
///
/// When the kernel has no more sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends at once or not at all, for those who have no runtime.
///
/// # Errors
///
/// As [`Channel::send`]; besides when there is no room.
pub fn send_now(socket: &OwnedFd, message: &impl Message) -> Result<(), ChannelError> {
    let bytes = written(message, 0)?;
    transmit(socket, &bytes, &[]).map_err(ChannelError::of)
}

// === impl Channel ===

impl Channel {
    /// # Errors
    ///
    /// When it is not a socket that can be polled.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe code; an OwnedFd keeps its descriptor"
        )]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket })
    }

    /// Sends one message with copies of these descriptors.
    ///
    /// # Errors
    ///
    /// When it is too large, or nobody is there.
    pub async fn send(
        &self,
        message: &impl Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let bytes = written(message, descriptors.len())?;
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, |socket| transmit(socket, &bytes, descriptors))
            .await;
        sent.map_err(ChannelError::of)
    }

    /// The next message, with what came beside it.
    ///
    /// # Errors
    ///
    /// When it is not whole, not known, or nobody is there.
    pub async fn receive<M: Message>(&self) -> Result<(M, Vec<OwnedFd>), ChannelError> {
        let (bytes, descriptors) = self.packet().await?;
        understood(&bytes, descriptors)
    }

    /// The next message as it came.
    ///
    /// # Errors
    ///
    /// When it is not whole, or nobody is there.
    pub async fn packet(&self) -> Result<Packet, ChannelError> {
        self.socket.async_io(Interest::READABLE, take).await.map_err(ChannelError::of)?
    }
}

/// A packet as what it means.
///
/// # Errors
///
/// When it is not known, or has other descriptors than it says.
pub fn understood<M: Message>(
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<(M, Vec<OwnedFd>), ChannelError> {
    let message: M = serde_json::from_slice(bytes).map_err(ChannelError::Garbage)?;
    let (expected, found) = (message.descriptors(), descriptors.len());
    if expected != found {
        return Err(ChannelError::Descriptors { expected, found });
    }
    Ok((message, descriptors))
}

fn written(message: &impl Message, descriptors: usize) -> Result<Zeroizing<Vec<u8>>, ChannelError> {
    let expected = message.descriptors();
    if expected != descriptors {
        return Err(ChannelError::Descriptors { expected, found: descriptors });
    }
    if descriptors > DESCRIPTORS_MAX {
        return Err(ChannelError::DescriptorsLost);
    }
    // At its full size from the start: growing would leave what was written so far behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MESSAGE_BYTES_MAX));
    serde_json::to_writer(&mut *bytes, message).map_err(ChannelError::Unwritable)?;
    if bytes.len() > MESSAGE_BYTES_MAX { Err(ChannelError::TooLong) } else { Ok(bytes) }
}

pub(super) fn transmit(
    socket: &OwnedFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // A packet is sent whole or not at all.
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

type Taken = Result<Packet, ChannelError>;

/// The outer error is the socket's, and may be that there is nothing yet.
fn take(socket: &OwnedFd) -> io::Result<Taken> {
    let mut bytes = Zeroizing::new(vec![0; MESSAGE_BYTES_MAX]);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)?
    };
    // Taken out first: what is not wanted is closed, not leaked.
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > DESCRIPTORS_MAX {
        return Ok(Err(ChannelError::DescriptorsLost));
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Err(ChannelError::TooLong));
    }
    if received.bytes == 0 {
        return Ok(Err(ChannelError::Closed));
    }
    bytes.truncate(received.bytes);
    Ok(Ok((bytes, descriptors)))
}

// === impl ChannelError ===

impl ChannelError {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::Socket(error),
        }
    }

    /// Whether the other process ended, rather than say something wrong.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Closed)
    }
}

#[cfg(test)]
mod tests;
