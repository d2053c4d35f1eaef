//! nghttp2's server as an instance that speaks HTTP/2 with prior knowledge.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::client::Raw;
use crate::need;
use crate::port::free_address;
use crate::process::Process;
use crate::wait;

/// A running `nghttpd --no-tls`: `/` answers `h2c\n`, `/big` 1 MiB, every answer with the trailer
/// `grpc-status: 0`.
pub struct Nghttpd {
    address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

impl Nghttpd {
    /// Starts it, or `None` when it is not installed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Option<Self> {
        let nghttpd = need::tool("nghttpd")?;
        let directory = TempDir::with_prefix("ferrule-nghttpd-").expect("a temporary folder");
        fs::write(directory.path().join("index.html"), "h2c\n").expect("the folder is ours");
        fs::write(directory.path().join("big"), vec![b'b'; 1024 * 1024])
            .expect("the folder is ours");
        let address = free_address(1);
        let mut command = Command::new(nghttpd);
        command.args(["--no-tls", "--trailer=grpc-status: 0"]);
        command.arg(format!("--address={}", address.ip()));
        command.arg("-d").arg(directory.path()).arg(address.port().to_string());
        let process = Process::start("nghttpd", &mut command);
        wait::until("nghttpd listens", || Raw::try_tcp(address).is_ok());
        Some(Self { address, _process: process, _directory: directory })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
