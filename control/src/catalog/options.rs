//! The deep structures of a service as JSON, one column each.
//!
//! Mirrors of the snapshot's types: what is on disk changes only when somebody changes it here.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::snapshot::{Check, CheckKind, HeaderChange, HttpOptions, TlsOptions, TlsVersions};

#[derive(Serialize, Deserialize)]
struct Tls {
    alpn: Vec<String>,
    versions: Versions,
    default_self_signed: bool,
}

#[derive(Serialize, Deserialize)]
enum Versions {
    #[serde(rename = "TLSv1.2 TLSv1.3")]
    Both,
    #[serde(rename = "TLSv1.2")]
    Tls12,
    #[serde(rename = "TLSv1.3")]
    Tls13,
}

#[derive(Serialize, Deserialize)]
struct Http {
    h2_backend: bool,
    /// In order; without values the header is removed.
    response_headers: Vec<(String, Option<Vec<String>>)>,
    pristine: bool,
}

#[derive(Serialize, Deserialize)]
struct Probe {
    #[serde(flatten)]
    kind: Kind,
    grace_period_ms: u64,
    interval_ms: u64,
    timeout_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Kind {
    Tcp,
    Http { method: String, path: String, headers: Vec<(String, String)> },
}

pub(super) fn tls_to_json(options: &TlsOptions) -> String {
    let TlsOptions { alpn, versions, default_self_signed } = options;
    let versions = match versions {
        TlsVersions::Tls12AndTls13 => Versions::Both,
        TlsVersions::Tls12 => Versions::Tls12,
        TlsVersions::Tls13 => Versions::Tls13,
    };
    let alpn = alpn.iter().map(ToString::to_string).collect();
    json(&Tls { alpn, versions, default_self_signed: *default_self_signed })
}

pub(super) fn tls_from_json(text: &str) -> serde_json::Result<TlsOptions> {
    let Tls { alpn, versions, default_self_signed } = serde_json::from_str(text)?;
    let versions = match versions {
        Versions::Both => TlsVersions::Tls12AndTls13,
        Versions::Tls12 => TlsVersions::Tls12,
        Versions::Tls13 => TlsVersions::Tls13,
    };
    let alpn = alpn.into_iter().map(Arc::from).collect();
    Ok(TlsOptions { alpn, versions, default_self_signed })
}

pub(super) fn http_to_json(options: &HttpOptions) -> String {
    let HttpOptions { h2_backend, response_headers, pristine } = options;
    let change = |change: &HeaderChange| match change {
        HeaderChange::Remove => None,
        HeaderChange::Set(values) => Some(values.iter().map(ToString::to_string).collect()),
    };
    json(&Http {
        h2_backend: *h2_backend,
        response_headers: response_headers
            .iter()
            .map(|(name, header)| (name.to_string(), change(header)))
            .collect(),
        pristine: *pristine,
    })
}

pub(super) fn http_from_json(text: &str) -> serde_json::Result<HttpOptions> {
    let Http { h2_backend, response_headers, pristine } = serde_json::from_str(text)?;
    let change = |values: Option<Vec<String>>| match values {
        None => HeaderChange::Remove,
        Some(values) => HeaderChange::Set(values.into_iter().map(Arc::from).collect()),
    };
    let response_headers =
        response_headers.into_iter().map(|(name, values)| (name.into(), change(values))).collect();
    Ok(HttpOptions { h2_backend, response_headers, pristine })
}

pub(super) fn checks_to_json(checks: &[Check]) -> String {
    let probe = |check: &Check| {
        let Check { kind, grace_period, interval, timeout } = check;
        let kind = match kind {
            CheckKind::Tcp => Kind::Tcp,
            CheckKind::Http { method, path, headers } => Kind::Http {
                method: method.to_string(),
                path: path.to_string(),
                headers: headers
                    .iter()
                    .map(|(name, value)| (name.to_string(), value.to_string()))
                    .collect(),
            },
        };
        Probe {
            kind,
            grace_period_ms: milliseconds(*grace_period),
            interval_ms: milliseconds(*interval),
            timeout_ms: milliseconds(*timeout),
        }
    };
    json(&checks.iter().map(probe).collect::<Vec<_>>())
}

pub(super) fn checks_from_json(text: &str) -> serde_json::Result<Vec<Check>> {
    let check = |probe: Probe| {
        let Probe { kind, grace_period_ms, interval_ms, timeout_ms } = probe;
        let kind = match kind {
            Kind::Tcp => CheckKind::Tcp,
            Kind::Http { method, path, headers } => CheckKind::Http {
                method: method.into(),
                path: path.into(),
                headers: headers
                    .into_iter()
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect(),
            },
        };
        Check {
            kind,
            grace_period: Duration::from_millis(grace_period_ms),
            interval: Duration::from_millis(interval_ms),
            timeout: Duration::from_millis(timeout_ms),
        }
    };
    let probes: Vec<Probe> = serde_json::from_str(text)?;
    Ok(probes.into_iter().map(check).collect())
}

/// App files know nothing finer than a millisecond.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and numbers always fit JSON")
}
