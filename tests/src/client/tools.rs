//! Clients that are none of ours, with what they print read into numbers.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use crate::edge::Edge;
use crate::need;
use crate::process::{Outcome, run};

/// `curl`, pointed at an edge whatever the name's real address is.
pub struct Curl {
    command: Command,
}

impl Curl {
    /// Ready to talk to `address` of the edge, or `None` when it is not installed.
    pub fn new(edge: &Edge, address: SocketAddr) -> Option<Self> {
        let mut command = Command::new(need::tool("curl")?);
        command.args(["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"]);
        command.arg("--cacert").arg(edge.certs().ca());
        command.args(["--connect-to", &format!("::{address}")]);
        Some(Self { command })
    }

    /// Adds arguments and runs it.
    pub fn run(mut self, arguments: &[&str]) -> Outcome {
        run(self.command.args(arguments))
    }
}

/// What `h2load` counted.
#[derive(Debug, Default)]
pub struct H2load {
    /// Requests that got a 2xx or 3xx.
    pub succeeded: u64,
    /// All others.
    pub failed: u64,
    /// Requests per second.
    pub rate: f64,
}

impl H2load {
    /// Runs it with these arguments; `None` when it is not installed.
    ///
    /// # Panics
    /// When it prints no result.
    pub fn run(arguments: &[&str]) -> Option<Self> {
        let output = run(Command::new(need::tool("h2load")?).args(arguments));
        let text = &output.stdout;
        let line = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            line.unwrap_or_else(|| panic!("h2load said no {start:?}: {output:?}"))
        };
        // requests: 100 total, 100 started, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout
        let counts = line("requests: ");
        let count = |word: &str| {
            let part = counts.split(", ").find(|part| part.trim_end().ends_with(word));
            let number = part.and_then(|part| part.split(' ').next()).map(str::parse);
            number.and_then(Result::ok).unwrap_or_default()
        };
        // finished in 1.02s, 9803.92 req/s, 10.00MB/s
        let rate = line("finished in ").split(", ").nth(1).and_then(|part| part.split(' ').next());
        Some(Self {
            succeeded: count("succeeded"),
            failed: count("failed") + count("errored") + count("timeout"),
            rate: rate.and_then(|rate| rate.parse().ok()).unwrap_or_default(),
        })
    }
}

/// What `oha` counted.
#[derive(Debug)]
pub struct Oha {
    /// Its whole report.
    pub report: Value,
}

impl Oha {
    /// Runs it with these arguments; `None` when it is not installed.
    ///
    /// # Panics
    /// When it prints no report.
    pub fn run(arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(need::tool("oha")?);
        command.args(["--no-tui", "--output-format", "json"]).args(arguments);
        let output = run(&mut command);
        let report = serde_json::from_str(&output.stdout);
        Some(Self { report: report.unwrap_or_else(|_| panic!("oha has no report: {output:?}")) })
    }

    /// Responses with this status code.
    pub fn responses(&self, status: u16) -> u64 {
        self.report["statusCodeDistribution"][status.to_string()].as_u64().unwrap_or_default()
    }

    /// Requests without a response, apart from those cut off when the time was up.
    pub fn errors(&self) -> u64 {
        let errors = self.report["errorDistribution"].as_object();
        let counted = errors.into_iter().flatten().filter(|(what, _)| !what.contains("deadline"));
        counted.filter_map(|(_, count)| count.as_u64()).sum()
    }
}

/// What `openssl s_client` saw of a handshake.
#[derive(Debug)]
pub struct Sclient {
    /// Everything it printed.
    pub text: String,
}

impl Sclient {
    /// Shakes hands with `address`, asking for `sni`; `None` when openssl is not installed.
    pub fn run(address: SocketAddr, sni: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(need::tool("openssl")?);
        command.args(["s_client", "-connect", &address.to_string(), "-servername", sni]);
        let output = run(command.args(arguments).stdin(std::process::Stdio::null()));
        Some(Self { text: output.stdout + &output.stderr })
    }

    /// The protocol version, such as `TLSv1.3`, if the handshake succeeded.
    pub fn version(&self) -> Option<&str> {
        let line = self.text.lines().find(|line| line.starts_with("New, TLS"))?;
        let version = line.strip_prefix("New, ")?.split(',').next()?;
        Some(version)
    }

    /// The protocol chosen by ALPN.
    pub fn alpn(&self) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix("ALPN protocol: "))
    }
}
