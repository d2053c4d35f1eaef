//! TCP connections to instances: made in time, without Nagle, counted while they are open.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use telemetry::metrics::{Gauge, Registry};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::{Code, Failure, Retry};
use crate::metrics::catalogue;

/// A TCP connection to an instance, and its place in the count of open ones.
pub(super) struct Stream {
    pub(super) tcp: TcpStream,
    pub(super) open: Open,
}

/// One open connection in `ferrule_upstream_connections`; leaves it when dropped.
pub struct Open(Gauge);

/// The gauges of `ferrule_upstream_connections{kind}`.
pub(super) struct Kinds {
    pub(super) http1: Gauge,
    pub(super) h2c: Gauge,
    pub(super) mesh: Gauge,
    pub(super) tcp: Gauge,
}

/// Connects to `address` within `within`.
///
/// # Errors
///
/// PC01, PC03, PC05 or PC06; nothing was sent, so any request may go elsewhere.
pub(super) async fn connect(
    address: SocketAddr,
    within: Duration,
    kind: &Gauge,
) -> Result<Stream, Failure> {
    let unsent = |code| Failure::new(code).retry(Retry::Unsent);
    let tcp = match timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(unsent(code_of(&error)).because(error)),
        Err(elapsed) => return Err(unsent(Code::PC05).because(elapsed)),
    };
    // A head and the start of its body leave as two segments at worst; neither may wait for an ACK.
    tcp.set_nodelay(true).map_err(|error| unsent(Code::PC06).because(error))?;
    Ok(Stream { tcp, open: Open::new(kind) })
}

fn code_of(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Code::PC01,
        io::ErrorKind::ConnectionReset => Code::PC03,
        io::ErrorKind::TimedOut => Code::PC05,
        _ => Code::PC06,
    }
}

// === impl Open ===

impl Open {
    pub(super) fn new(kind: &Gauge) -> Self {
        kind.add(1);
        Self(kind.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

// === impl Kinds ===

impl Kinds {
    pub(super) fn new(registry: &Registry) -> Self {
        let kind = |kind| catalogue::UPSTREAM_CONNECTIONS.gauge_in(registry, &[kind]);
        Self { http1: kind("http1"), h2c: kind("h2c"), mesh: kind("mesh"), tcp: kind("tcp") }
    }
}
