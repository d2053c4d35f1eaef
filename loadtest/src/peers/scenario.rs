//! What is asked of a proxy, by programs that are none of ours where there are any: oha and h2load.
//! Handshakes are made here. All of it on the CPU of the load.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use super::handshakes;
use super::peer::{LARGE, LOAD_CPU, NAME, Peer};
use crate::histogram::Quantiles;
use crate::oha::{Oha, Until};
use crate::process::find;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// HTTP/1.1 in cleartext, 64 connections, 1 KiB.
    H1,
    /// HTTP/1.1 over TLS 1.3, 64 connections, 1 KiB.
    H1tls,
    /// HTTP/2 over TLS 1.3, 32 connections of 16 streams, 1 KiB, HTTP/1.1 to the origin.
    H2,
    /// POST of 100 B over HTTP/2, 32 connections of 16 streams, 1 KiB and trailers, HTTP/2 in
    /// cleartext to the origin.
    Grpc,
    /// A full TLS 1.3 handshake and a request on each connection.
    Handshakes,
    /// The same, resumed.
    Resumptions,
    /// 10 MiB down over HTTP/1.1 and TLS, 8 connections.
    Download,
    /// 10 MiB up over HTTP/1.1 and TLS, 8 connections.
    Upload,
    /// HTTP/1.1 over TLS, 4,000 requests per second whatever happens, 64 connections.
    Latency,
}

/// What one run of load got.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Requests, handshakes or MiB.
    pub units: f64,
    pub failed: u64,
    pub seconds: f64,
    pub latency: Option<Quantiles>,
}

/// At which `latency` asks.
const RATE: u64 = 4_000;

impl Scenario {
    pub(crate) const ALL: [Self; 9] = [
        Self::H1,
        Self::H1tls,
        Self::H2,
        Self::Grpc,
        Self::Handshakes,
        Self::Resumptions,
        Self::Download,
        Self::Upload,
        Self::Latency,
    ];

    /// The report's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H1tls => "h1 over TLS",
            Self::H2 => "h2 over TLS",
            Self::Grpc => "gRPC",
            Self::Handshakes => "full handshakes",
            Self::Resumptions => "resumed handshakes",
            Self::Download => "10 MiB down",
            Self::Upload => "10 MiB up",
            Self::Latency => "latency at 4,000/s",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::H1 => "HTTP/1.1 in cleartext, 64 connections, 1 KiB (oha).",
            Self::H1tls => "HTTP/1.1 over TLS 1.3, 64 connections, 1 KiB (oha).",
            Self::H2 => {
                "HTTP/2 over TLS 1.3, 32 connections of 16 streams, 1 KiB; HTTP/1.1 to the \
                origin (h2load)."
            }
            Self::Grpc => {
                "POST of 100 B over HTTP/2, 32 connections of 16 streams, 1 KiB and \
                trailers; HTTP/2 in cleartext to the origin (h2load, nghttpd)."
            }
            Self::Handshakes => {
                "TLS 1.3 handshakes without resumption, each with a request; 16 at a time."
            }
            Self::Resumptions => "The same with the ticket of the connection before.",
            Self::Download => {
                "Bodies of 10 MiB from the origin, HTTP/1.1 over TLS, 8 connections (oha)."
            }
            Self::Upload => {
                "Bodies of 10 MiB to the origin, HTTP/1.1 over TLS, 8 connections (oha)."
            }
            Self::Latency => {
                "HTTP/1.1 over TLS, 64 connections: requests are due 4,000 times a second, \
                and latency is counted from then (oha with correction)."
            }
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Handshakes | Self::Resumptions => "handshake",
            Self::Download | Self::Upload => "MiB",
            _ => "request",
        }
    }

    /// Loads `peer` for `duration`.
    pub(crate) fn run(self, peer: &Peer, duration: Duration) -> Result<Load> {
        let oha = |scheme, address| Oha {
            connections: 64,
            cpu: Some(LOAD_CPU),
            ..Oha::new(scheme, NAME, address)
        };
        let tls = || oha("https", peer.https);
        match self {
            Self::H1 => by_oha(&oha("http", peer.http), duration, 1.0),
            Self::H1tls => by_oha(&tls(), duration, 1.0),
            Self::H2 => h2load(peer, duration, &[], peer.https.port()),
            Self::Grpc => {
                let data = peer.message.display().to_string();
                let fields =
                    ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", &data];
                h2load(peer, duration, &fields, peer.grpc.port())
            }
            Self::Handshakes => handshakes::run(peer, duration, false),
            Self::Resumptions => handshakes::run(peer, duration, true),
            Self::Download => {
                let oha = Oha { path: "/large".to_owned(), connections: 8, ..tls() };
                by_oha(&oha, duration, LARGE as f64 / f64::from(1 << 20))
            }
            Self::Upload => {
                let body = Some(peer.large.display().to_string());
                let oha = Oha { path: "/sink".to_owned(), connections: 8, body, ..tls() };
                by_oha(&oha, duration, LARGE as f64 / f64::from(1 << 20))
            }
            Self::Latency => by_oha(&Oha { rate: Some(RATE), ..tls() }, duration, 1.0),
        }
    }
}

/// Of load with large bodies.
const LEAST: Duration = Duration::from_secs(3);

fn by_oha(oha: &Oha, duration: Duration, units_each: f64) -> Result<Load> {
    // Eight large bodies take their time, and what is not complete does not count.
    let duration = if units_each > 1.0 { duration.max(LEAST) } else { duration };
    let got = oha.run(Until::Time(duration))?;
    ensure!(got.succeeded > 0, "nothing was answered: {:?}", got.failed);
    let units = got.succeeded as f64 * units_each;
    let seconds = got.succeeded as f64 / got.per_second;
    Ok(Load { units, failed: got.failed.values().sum(), seconds, latency: Some(got.latency) })
}

fn h2load(peer: &Peer, duration: Duration, more: &[&str], port: u16) -> Result<Load> {
    let h2load = find("h2load").context("h2load is not installed: run `make install-tools`")?;
    let mut command = Command::new("taskset");
    command.args(["-c", LOAD_CPU]).arg(h2load).args(more);
    command.args(["-c", "32", "-m", "16", "-D", &duration.as_secs().max(1).to_string()]);
    command.arg(format!("--connect-to={}:{port}", peer.https.ip()));
    let output = command.arg(format!("https://{NAME}:{port}/")).output()?;
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
    Ok(Load {
        units: succeeded as f64,
        failed: count("failed") + count("timeout"),
        seconds: duration.as_secs_f64(),
        latency: None,
    })
}
