//! Rotel, a collector nobody here wrote: an oracle that shares no code with ours but the protocol's
//! definitions.

use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use super::Transport;
use crate::need;
use crate::port::{free_address, is_listening};
use crate::process::Process;
use crate::wait;

/// A running Rotel that prints what it receives.
pub struct Rotel {
    http: SocketAddr,
    grpc: SocketAddr,
    process: Process,
    _directory: TempDir,
}

impl Rotel {
    /// Starts it, or `None` when it is not installed. It prints what it receives of `signal`:
    /// `traces`, `logs` or `metrics`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(signal: &str) -> Option<Self> {
        let rotel = need::tool("rotel-agent")?;
        let directory = TempDir::with_prefix("ferrule-rotel-").expect("a temporary folder");
        let (http, grpc) = (free_address(1), free_address(1));
        let mut command = Command::new(rotel);
        command.args(["start", "--exporter", "blackhole", "--batch-timeout", "50ms"]);
        command.args(["--debug-log", signal, "--debug-log-verbosity", "detailed"]);
        command.arg(format!("--otlp-http-endpoint={http}"));
        command.arg(format!("--otlp-grpc-endpoint={grpc}"));
        command.arg("--pid-file").arg(directory.path().join("pid"));
        command.arg("--log-file").arg(directory.path().join("log"));
        let process = Process::start("rotel-agent", &mut command);
        wait::until("rotel listens", || is_listening(http) && is_listening(grpc));
        Some(Self { http, grpc, process, _directory: directory })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` would be.
    pub fn endpoint(&self, transport: Transport) -> String {
        match transport {
            Transport::Http => format!("http://{}", self.http),
            Transport::Grpc => format!("http://{}", self.grpc),
        }
    }

    /// Everything it has printed.
    pub fn output(&self) -> String {
        self.process.output()
    }
}
