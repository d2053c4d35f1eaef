//! What the data plane runs on: plain, immutable values of one app, with no I/O and no clock.
//!
//! The unit of change is one [`App`]: a new version of it replaces the old one whole, and nothing
//! else moves. Live state (load, latency, health) is not here; the data plane keeps it beside the
//! instance and carries it across versions by [`InstanceId`].

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps a name that has been checked where it was read.
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name, shared with this.
            pub fn shared(&self) -> Arc<str> {
                self.0.clone()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// A tenant. 1 to 63 of `a-z`, `0-9` and `-`, not starting with `-`.
    AppName
}
name! {
    /// One running copy of an app, unique within the fleet. 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`.
    InstanceId
}
name! {
    /// A machine that runs ferrule. Same alphabet as [`InstanceId`].
    NodeId
}
name! {
    /// Where nodes are: 1 to 16 of `a-z`, `0-9` and `-`.
    Region
}

/// A tenant: what it is called, where it listens, what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub name: AppName,
    /// Rises with every accepted change of this app on this node.
    pub revision: u64,
    /// Names it answers to, lower case; on a shared address they choose the app.
    pub hostnames: Vec<Hostname>,
    /// Dedicated addresses; empty means shared ones.
    pub addresses: Vec<IpAddr>,
    pub services: Vec<Service>,
    pub instances: Vec<Instance>,
    pub compat: Compat,
}

/// A name an app answers to, in lower case and without a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hostname {
    Exact(Arc<str>),
    /// `*.example.org`, kept as `example.org`; matches exactly one label more.
    Wildcard(Arc<str>),
}

/// Which spelling of the request headers the app's instances expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compat {
    #[default]
    Ferrule,
    /// `fly-*` headers are sent and accepted beside our own.
    Fly,
}

/// Ports of an app and where they lead. TCP only for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The port the instances listen on.
    pub internal_port: u16,
    pub ports: Vec<Port>,
    pub concurrency: Concurrency,
    pub checks: Vec<Check>,
}

/// One port or range of ports with what is done to its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub range: RangeInclusive<u16>,
    pub handlers: Handlers,
    /// 301 to https for every cleartext request. Only with the `http` handler.
    pub force_https: bool,
    pub tls: TlsOptions,
    pub http: HttpOptions,
}

/// What is done to a connection before it is passed on; the order they are written in means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Handlers {
    /// The client's side terminates TLS here.
    pub tls: bool,
    /// HTTP is spoken here; without it the bytes are copied.
    pub http: bool,
    /// A PROXY protocol header is sent to the instance first (raw TCP only).
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// Version of the PROXY protocol header written towards the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    V1,
    V2,
}

/// TLS as one port offers it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// ALPN protocols in order of preference. Default: `h2`, `http/1.1` with the `http` handler, else none.
    pub alpn: Vec<Arc<str>>,
    pub versions: TlsVersions,
    /// Serve a self-signed certificate when none fits the SNI, instead of refusing. Default: false.
    pub default_self_signed: bool,
}

/// TLS versions a port accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TlsVersions {
    #[default]
    Tls12AndTls13,
    Tls12,
    Tls13,
}

/// HTTP as one port offers it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpOptions {
    /// Speak HTTP/2 with prior knowledge to the instances (gRPC needs it). Default: false.
    pub h2_backend: bool,
    /// Response headers set or removed, in the order written; names in lower case.
    pub response_headers: Vec<(Arc<str>, HeaderChange)>,
    /// Leave `server`, `via` and `ferrule-request-id` of the instance alone. Default: false.
    pub pristine: bool,
}

/// What happens to one response header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderChange {
    Remove,
    Set(Vec<Arc<str>>),
}

/// How much one instance may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    pub kind: ConcurrencyKind,
    /// Above it an instance is chosen only when its peers are above theirs too. Default: 20.
    pub soft_limit: u32,
    /// Never exceeded; `None` = unlimited.
    pub hard_limit: Option<u32>,
}

/// What is counted against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConcurrencyKind {
    Requests,
    /// Every HTTP request uses an upstream connection of its own.
    Connections,
}

/// An active health check that gates routing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub kind: CheckKind,
    /// Time after the instance appears during which failures do not count. Default: 1 s.
    pub grace_period: Duration,
    /// Time between attempts. Default: 15 s.
    pub interval: Duration,
    /// Longest wait for one attempt. Default: 2 s.
    pub timeout: Duration,
}

/// What a check does. Success of an HTTP check is any 2xx; redirects are not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckKind {
    Tcp,
    Http { method: Arc<str>, path: Arc<str>, headers: Vec<(Arc<str>, Arc<str>)> },
}

/// One running copy of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub node: NodeId,
    pub address: IpAddr,
    /// Cordoned instances get nothing new. Default: false.
    pub cordoned: bool,
}

/// One app came, changed or went.
#[derive(Debug, Clone)]
pub enum Change {
    Upsert(Arc<App>),
    Remove(AppName),
}

// === impl App ===

impl App {
    /// Every (service, port) pair.
    pub fn ports(&self) -> impl Iterator<Item = (usize, &Service, &Port)> {
        self.services.iter().enumerate().flat_map(|(index, service)| {
            service.ports.iter().map(move |port| (index, service, port))
        })
    }
}

// === impl Change ===

impl Change {
    /// Whose change it is.
    pub fn app(&self) -> &AppName {
        match self {
            Self::Upsert(app) => &app.name,
            Self::Remove(name) => name,
        }
    }
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            alpn: vec!["h2".into(), "http/1.1".into()],
            versions: TlsVersions::default(),
            default_self_signed: false,
        }
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { kind: ConcurrencyKind::Connections, soft_limit: 20, hard_limit: None }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
        }
    }
}
