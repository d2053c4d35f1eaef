//! Why a node does not start.

use std::io;

use control::inventory::OpenError;
use ebpf_filter::FilterError;
use telemetry::record;
use telemetry::verbosity::KeyError;

use super::doors::SteerError;
use super::observe::ObserveError;
use crate::admin;
use crate::handoff::successor::ClaimError;
use crate::listener::sockets;
use crate::tls::{CertificatesError, TlsError};

/// Why a node did not start. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the runtime cannot start")]
    Runtime(#[source] io::Error),
    #[error("a worker thread cannot start")]
    Worker(#[source] io::Error),
    #[error("the inventory cannot be opened")]
    Inventory(#[source] OpenError),
    #[error("the certificates cannot be read")]
    Certificates(#[source] CertificatesError),
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsError),
    #[error("the mesh cannot be set up")]
    Mesh(#[source] TlsError),
    #[error("the mesh has no address")]
    MeshAddress(#[source] sockets::BindError),
    #[error("there is no memory for shared counts")]
    Counts(#[source] io::Error),
    #[error("requests cannot be recorded")]
    Records(#[source] record::ConfigError),
    #[error("the keys of verbosity tokens cannot be had")]
    Keys(#[source] KeyError),
    #[error("nobody can watch the workers")]
    Watch(#[source] io::Error),
    #[error("telemetry cannot be read")]
    Observe(#[source] ObserveError),
    #[error("the kernel's filter cannot be had as configured")]
    Filter(#[source] FilterError),
    #[error("connections cannot be steered")]
    Steer(#[source] SteerError),
    #[error("the node cannot be asked about itself")]
    Admin(#[source] admin::BindError),
    #[error("the end of whoever started the node cannot be followed")]
    Leash(#[source] io::Error),
    #[error("nothing can be taken over")]
    Claim(#[source] ClaimError),
    #[error("of {expected} apps only {known} are known, and the source has not answered")]
    Behind { known: u64, expected: u64 },
}
