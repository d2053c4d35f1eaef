//! What `/inventory` and `/certificates` say, for the listings of the command line.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::tls;

/// Every app this node knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    pub apps: Vec<App>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub name: String,
    pub revision: u64,
    pub hostnames: Vec<String>,
    /// Dedicated addresses; empty means shared ones.
    pub addresses: Vec<IpAddr>,
    pub services: Vec<Service>,
    pub instances: Vec<Instance>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub internal_port: u16,
    /// One port or a range, as in `443` and `9000-9010`.
    pub ports: Vec<String>,
    pub soft_limit: u32,
    pub hard_limit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub id: String,
    pub node: String,
    pub address: IpAddr,
    pub place: Place,
    /// What the checks say; absent where this node does not check (another node's instance).
    pub healthy: Option<bool>,
    pub cordoned: bool,
    /// Permits that this node holds for it.
    pub in_flight: u64,
}

/// Where an instance is, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Local,
    Remote,
    /// On a node this one knows no way to.
    Unknown,
}

/// Every certificate this node offers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    pub certificates: Vec<Certificate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Of its files, without the ending.
    pub name: String,
    /// Names that the version being served is valid for; empty when none is.
    pub hostnames: Vec<String>,
    /// End of its validity, in seconds since 1970.
    pub not_after_unix_seconds: Option<u64>,
    /// Why the files as they are now cannot be used.
    pub problem: Option<String>,
}

// === impl Certificates ===

impl From<Vec<tls::certificates::Listed>> for Certificates {
    fn from(listed: Vec<tls::certificates::Listed>) -> Self {
        Self { certificates: listed.into_iter().map(Certificate::from).collect() }
    }
}

impl From<tls::certificates::Listed> for Certificate {
    fn from(listed: tls::certificates::Listed) -> Self {
        let tls::certificates::Listed { name, dns_names, not_after, problem } = listed;
        let seconds = |time: SystemTime| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs());
        let not_after_unix_seconds = not_after.and_then(seconds);
        Self { name, hostnames: dns_names, not_after_unix_seconds, problem }
    }
}
