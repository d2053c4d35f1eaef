//! Clients that owe the node nothing: they send what they are told, well-formed or not.

pub(crate) mod http1;
pub(crate) mod h2;
pub(crate) mod tls;
pub(crate) mod websocket;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;

/// A connection, in cleartext or in TLS.
pub(crate) enum Stream {
    Clear(TcpStream),
    Tls(Box<tls::Tls>),
}

/// For one read, write or connect, unless something else is said.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

impl Stream {
    pub(crate) fn clear(address: SocketAddr) -> Result<Self> {
        Ok(Self::Clear(connect(address)?))
    }

    pub(crate) fn tls(address: SocketAddr, name: &str, config: &tls::Config) -> Result<Self> {
        Ok(Self::Tls(Box::new(tls::connect(address, name, config)?)))
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Clear(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// Of reads and writes.
    pub(crate) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        // Zero would mean for ever.
        let patience = patience.max(Duration::from_millis(1));
        self.socket().set_read_timeout(Some(patience))?;
        self.socket().set_write_timeout(Some(patience))
    }

    /// Makes closing a reset.
    pub(crate) fn reset(self) -> io::Result<()> {
        rustix::net::sockopt::set_socket_linger(self.socket(), Some(Duration::ZERO))
            .map_err(io::Error::from)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A read or write that only took too long.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
