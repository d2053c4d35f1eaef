//! Load by programs that are none of ours: oha for HTTP/1.1, h2load for HTTP/2, both on CPU 1.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::peer::{LOAD_CPU, NAME, Peer, find};

/// What is spoken to the proxy; to the origin it is always HTTP/1.1 with keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// HTTP/1.1 in cleartext, 64 connections.
    H1,
    /// HTTP/1.1 over TLS 1.3, 64 connections.
    H1tls,
    /// HTTP/2 over TLS 1.3, 32 connections with 16 streams.
    H2,
}

/// What one run of load got.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub succeeded: u64,
    pub failed: u64,
    pub per_second: f64,
    /// Seconds, where the program says so.
    pub p99: Option<f64>,
}

impl Scenario {
    /// The table's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H1tls => "h1 over TLS",
            Self::H2 => "h2 over TLS",
        }
    }

    /// Loads `peer` for `duration`.
    pub(crate) fn run(self, peer: &Peer, duration: Duration) -> Result<Load> {
        match self {
            Self::H1 => oha(&format!("http://{NAME}:{}/", peer.http.port()), peer, duration),
            Self::H1tls => oha(&format!("https://{NAME}:{}/", peer.https.port()), peer, duration),
            Self::H2 => h2load(peer, duration),
        }
    }
}

fn oha(url: &str, peer: &Peer, duration: Duration) -> Result<Load> {
    let mut command = pinned("oha")?;
    command.args(["--no-tui", "--output-format", "json", "-c", "64", "--insecure"]);
    command.args(["-z", &format!("{}s", duration.as_secs())]);
    for address in [peer.http, peer.https] {
        let (port, ip) = (address.port(), address.ip());
        command.args(["--connect-to", &format!("{NAME}:{port}:{ip}:{port}")]);
    }
    let output = command.arg(url).output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let count = |key: &str, counts: &dyn Fn(&str) -> bool| -> u64 {
        let counted = report[key].as_object().into_iter().flatten();
        counted.filter(|(what, _)| counts(what)).filter_map(|(_, count)| count.as_u64()).sum()
    };
    Ok(Load {
        succeeded: count("statusCodeDistribution", &|status| status == "200"),
        // Requests in flight when the time is up are cut off; they are no failures.
        failed: count("statusCodeDistribution", &|status| status != "200")
            + count("errorDistribution", &|error| !error.contains("deadline")),
        per_second: report["summary"]["requestsPerSec"].as_f64().unwrap_or_default(),
        p99: report["latencyPercentiles"]["p99"].as_f64(),
    })
}

fn h2load(peer: &Peer, duration: Duration) -> Result<Load> {
    let mut command = pinned("h2load")?;
    command.args(["-c", "32", "-m", "16", "-D", &duration.as_secs().to_string()]);
    command.arg(format!("--connect-to={}", peer.https));
    let output = command.arg(format!("https://{NAME}:{}/", peer.https.port())).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // requests: 100 total, 100 started, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout
    let line = text.lines().find(|line| line.starts_with("requests: "));
    let line = line.with_context(|| format!("h2load said nothing of requests: {text}"))?;
    let count = |word: &str| -> u64 {
        let part = line.split(", ").find(|part| part.trim_end().ends_with(word));
        part.and_then(|part| part.split(' ').next()?.parse().ok()).unwrap_or_default()
    };
    let succeeded = count("succeeded");
    ensure!(succeeded > 0, "h2load got nothing: {text}");
    let per_second = succeeded as f64 / duration.as_secs_f64();
    Ok(Load { succeeded, failed: count("failed") + count("timeout"), per_second, p99: None })
}

fn pinned(program: &str) -> Result<Command> {
    let program = find(program)
        .with_context(|| format!("{program} is not installed: run `make install-tools`"))?;
    let mut command = Command::new("taskset");
    command.args(["-c", LOAD_CPU]).arg(program);
    Ok(command)
}
