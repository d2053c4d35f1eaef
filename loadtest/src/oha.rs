//! Load by oha, a program that is none of ours.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::histogram::Quantiles;
use crate::process::find;

/// A run to be. Certificates are not checked: what is measured is not oha.
#[derive(Debug, Clone)]
pub(crate) struct Oha {
    /// Scheme, host and path; the port is the address's.
    pub scheme: &'static str,
    pub host: String,
    pub path: String,
    pub address: SocketAddr,
    pub connections: usize,
    /// On each connection; more than one only with HTTP/2.
    pub streams: usize,
    pub http2: bool,
    /// A connection for each request.
    pub new_connections: bool,
    /// Requests per second at which they are due, however slowly they are answered.
    pub rate: Option<u64>,
    /// A file to send.
    pub body: Option<String>,
    pub cpu: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    Count(u64),
    Time(Duration),
}

/// What a run got.
#[derive(Debug, Clone, Default)]
pub(crate) struct Got {
    pub succeeded: u64,
    /// By status or error.
    pub failed: BTreeMap<String, u64>,
    pub per_second: f64,
    pub latency: Quantiles,
}

impl Oha {
    pub(crate) fn new(scheme: &'static str, host: &str, address: SocketAddr) -> Self {
        Self {
            scheme,
            host: host.to_owned(),
            path: "/".to_owned(),
            address,
            connections: 16,
            streams: 1,
            http2: false,
            new_connections: false,
            rate: None,
            body: None,
            cpu: None,
        }
    }

    pub(crate) fn run(&self, until: Until) -> Result<Got> {
        let Self {
            scheme,
            host,
            path,
            address,
            connections,
            streams,
            http2,
            new_connections,
            rate,
            body,
            cpu,
        } = self;
        let oha = find("oha").context("oha is not installed: run `make install-tools`")?;
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.args(["-c", cpu]).arg(oha);
                command
            }
            None => Command::new(oha),
        };
        command.args(["--no-tui", "--output-format", "json", "--insecure"]);
        command.args(["-c", &connections.to_string()]);
        match until {
            Until::Count(count) => command.args(["-n", &count.to_string()]),
            Until::Time(time) => command.args(["-z", &format!("{}ms", time.as_millis())]),
        };
        if *http2 {
            command.args(["--http2", "-p", &streams.to_string()]);
        }
        if *new_connections {
            command.arg("--disable-keepalive");
        }
        if let Some(rate) = rate {
            command.args(["-q", &rate.to_string(), "--latency-correction"]);
        }
        if let Some(body) = body {
            command.args(["-m", "POST", "-D", body]);
        }
        let (ip, port) = (address.ip(), address.port());
        command.args(["--connect-to", &format!("{host}:{port}:{ip}:{port}")]);
        let output = command.arg(format!("{scheme}://{host}:{port}{path}")).output()?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(read(&said))
    }
}

fn read(said: &Value) -> Got {
    let counts = |key: &str| -> BTreeMap<String, u64> {
        let counted = said[key].as_object().into_iter().flatten();
        counted.filter_map(|(what, count)| Some((what.clone(), count.as_u64()?))).collect()
    };
    let mut failed = counts("statusCodeDistribution");
    let succeeded = failed.remove("200").unwrap_or_default();
    // Requests in flight when the time is up are cut off; they are no failures.
    failed.extend(
        counts("errorDistribution").into_iter().filter(|(what, _)| !what.contains("deadline")),
    );
    let millis = |name: &str| said["latencyPercentiles"][name].as_f64().unwrap_or_default() * 1e3;
    let latency = Quantiles {
        p50: millis("p50"),
        p90: millis("p90"),
        p99: millis("p99"),
        p999: millis("p99.9"),
        max: said["summary"]["slowest"].as_f64().unwrap_or_default() * 1e3,
    };
    let per_second = said["summary"]["requestsPerSec"].as_f64().unwrap_or_default();
    Got { succeeded, failed, per_second, latency }
}
