//! The validated configuration: what every module may rely on after `ferrule check` says yes.
//!
//! One struct per section of `edge.toml`; the defaults live in its `impl Default` and are what
//! `config/edge.toml` shows. Reading and checking the file is `config/read.rs`.

pub mod read;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use control::snapshot::{NodeId, Region};
use ipnet::IpNet;
use telemetry::budget::Shares;
use telemetry::heapwatch::Profile;
use telemetry::sampler::Limit;
use telemetry::sensitive::Policy;
use telemetry::{access_log, export, pressure, record, verbosity, watchdog};

use crate::announce;

/// Everything `edge.toml` says, checked, with paths resolved against the file's folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub node: Node,
    pub storage: Storage,
    pub listen: Listen,
    pub filter: Filter,
    pub inventory: Inventory,
    pub certificates: Certificates,
    /// Absent: the node stands alone and serves only its own instances.
    pub mesh: Option<Mesh>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub telemetry: Telemetry,
    pub memory: Memory,
    pub admin: Admin,
    /// Read by `ferrule announce`; absent: there is no such process.
    pub announce: Option<announce::Config>,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub region: Region,
    /// Worker threads; each has its own runtime, pools and metric shard. Default: one per core.
    pub workers: usize,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Holds `inventory.db` and whatever else outlives the process. Default: `/var/lib/ferrule`.
    pub directory: PathBuf,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub mode: ListenMode,
    /// Where apps without addresses of their own are served. In bind mode each is bound once per
    /// port in use; in steer mode they are addresses of the prefixes, and `0.0.0.0` or `::` means
    /// every address of its family that no app has for itself. Default: `0.0.0.0` and `::`.
    pub addresses: Vec<IpAddr>,
    /// Anycast prefixes of this edge: steered to the node on all ports, and filtered. At most 256,
    /// none within another. Default: none.
    pub prefixes: Vec<IpNet>,
    /// Connections the kernel keeps ready for `accept`. Default: 4096 (the kernel caps it at `somaxconn`).
    pub backlog: u32,
}

/// How connections reach the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListenMode {
    /// `Steer` when there are prefixes and the kernel lets us, else `Bind`.
    #[default]
    Auto,
    /// The kernel brings every port of whole prefixes to one group of sockets (`sk_lookup`).
    Steer,
    /// One socket per address and port in use.
    Bind,
}

/// `[filter]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub mode: FilterMode,
    /// Where traffic for the prefixes comes in; at most 16. Default: none.
    pub interfaces: Vec<String>,
    /// The cgroup (v2) whose sockets the `cgroup` mode guards. Default: the node's own.
    pub cgroup: Option<PathBuf>,
    /// A folder on a BPF file system; what is pinned there survives the process.
    /// Default: `/sys/fs/bpf/ferrule`.
    pub pins: PathBuf,
    /// Count what would be dropped, and let it pass. Default: false.
    pub dry_run: bool,
    /// One of so many drops is reported with its addresses; 0: none. Default: 100.
    pub sample_drops_every: u32,
}

/// Where packets that nobody asked for are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FilterMode {
    /// The first of the following that this machine can do, else after accept.
    #[default]
    Auto,
    /// In the driver, before the kernel has made anything of the packet.
    Xdp,
    /// At the same place of the stack for every driver, but later.
    XdpGeneric,
    /// At the ingress of the interface, on kernels with tcx.
    Tcx,
    /// Before the packet reaches a socket of the cgroup.
    Cgroup,
    /// Nowhere: connections that nobody asked for are accepted and closed.
    Off,
}

/// `[inventory]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Folder of app files, `*.toml`. Default: `apps`.
    pub directory: PathBuf,
}

/// `[certificates]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// Folder of `NAME.pem` (chain) and `NAME.key`, watched for changes. Default: `certificates`.
    pub directory: PathBuf,
}

/// `[mesh]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Where peers reach this node.
    pub address: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the nodes' certificates.
    pub ca: PathBuf,
    /// The trust domain of `spiffe://<domain>/node/<id>`. Default: `ferrule`.
    pub trust_domain: String,
    pub peers: Vec<Peer>,
}

/// One entry of `[[mesh.peers]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: NodeId,
    pub region: Region,
    pub address: SocketAddr,
}

/// `[limits]`: every bound that a stranger can push against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections on this node. Default: 100,000.
    pub connections_max: u32,
    /// Client connections of one app on this node. Default: 2,048, or `connections_max` if that is less.
    pub app_connections_max: u32,
    /// Requests in flight on this node. Default: 20,000.
    pub requests_in_flight_max: u32,
    /// TLS handshakes in flight on this node. Default: 1,024.
    pub handshakes_in_flight_max: u32,
    /// TLS handshakes in flight of one client prefix (IPv4 /24, IPv6 /48). Default: 128.
    pub handshakes_per_prefix_max: u32,
    /// Requests of one app that may wait for a permit. Default: 512.
    pub queue_length_max: u32,
    /// Bytes of a request target. Longer: 414. Default: 16 KiB.
    pub request_target_bytes_max: usize,
    /// Bytes of one header field. Default: 16 KiB.
    pub header_bytes_max: usize,
    /// Bytes of a request or response head. Larger: 431. Default: 32 KiB.
    pub head_bytes_max: usize,
    /// Fields of a head. More: 431. Default: 100.
    pub header_fields_max: usize,
    /// Streams a client may have open on one HTTP/2 connection. Default: 100.
    pub h2_streams_max: u32,
    /// Receive window of one stream. Default: 64 KiB.
    pub h2_stream_window_bytes: u32,
    /// Receive window of one connection. Default: 1 MiB.
    pub h2_connection_window_bytes: u32,
    /// Bytes of a response waiting to be sent on one stream. Default: 64 KiB.
    pub h2_send_buffer_bytes: usize,
    /// Bytes of responses waiting to be sent on one connection, over all its streams: the more there
    /// are, the less each stream may hold, but for 2 KiB that each may always have. Default: 128 KiB.
    pub h2_connection_send_buffer_bytes: usize,
    /// HTTP/2 frames other than DATA and HEADERS of one connection in 10 s. Default: 10,000.
    pub h2_control_frames_max: u32,
    /// Streams of one connection reset in 10 s, by either side. Default: 100.
    pub h2_resets_max: u32,
    /// Idle upstream connections that one worker keeps to one instance: bare sockets, so that a
    /// burst of streams need not connect anew. Default: 512.
    pub upstream_idle_per_instance_max: usize,
    /// Idle upstream connections that one worker keeps. Default: 2,048.
    pub upstream_idle_max: usize,
    /// Streams of one worker on one mesh or h2c connection; more wait for their turn. Default: 1,000.
    pub upstream_streams_max: u32,
    /// Bytes of a request body kept for a second attempt. Default: 64 KiB.
    pub replay_bytes_max: usize,
    /// Attempts to find an instance for one request. Default: 5.
    pub attempts_max: u32,
    /// Retries as a share of requests, in percent, above a floor of 10 per second. Default: 20.
    pub retry_budget_percent: u32,
    /// Nodes a request may pass. Default: 2.
    pub hops_max: u32,
    /// Counts that another generation of the process reads during an upgrade, 64 bytes each: one for
    /// each instance and service of this node, and one for each app with connections. What finds no
    /// room holds for one process only. Default: 65,536.
    pub shared_counts_max: usize,
    /// Labels a metric may have before `__other__` takes the rest. Default: 1,000.
    pub metric_labels_max: usize,
    /// Time series that `/metrics` may show before `__other__` takes the rest. Default: 10,000.
    pub metric_series_max: usize,
}

/// `[timeouts]`: every place where a peer can stop has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to the end of the TLS handshake. Default: 10 s.
    pub handshake: Duration,
    /// From the first byte to the end of a request head, however slowly it comes. Default: 10 s.
    pub request_head: Duration,
    /// Until it is answered, a request body must bring 1 KiB/s, averaged over this time; from then
    /// on it may be silent for `websocket_idle`. Default: 20 s.
    pub request_body: Duration,
    /// Longest time in which a client takes not one byte of a response. Default: 30 s.
    pub response_write: Duration,
    /// An HTTP/1 connection without a request. Default: 60 s.
    pub h1_idle: Duration,
    /// An HTTP/2 connection without a stream; PINGs do not count. Default: 60 s.
    pub h2_idle: Duration,
    /// An upgraded connection (WebSocket) without a byte. Default: 10 min.
    pub websocket_idle: Duration,
    /// A raw TCP connection without a byte. Default: 1 h.
    pub tcp_idle: Duration,
    /// A TCP connection to an instance or peer. Default: 3 s.
    pub connect: Duration,
    /// From the request's last byte to the head of the answer. Default: 14 s.
    pub response_head: Duration,
    /// Longest time in which an instance sends not one byte of an answer. Default: 60 s.
    pub response_body: Duration,
    /// An upstream connection in the pool. Default: 4 s.
    pub upstream_idle: Duration,
    /// Waiting for a permit at the hard limit. Default: 5 s.
    pub queue: Duration,
    /// A metric of an app that nothing touched; it is not shown until something does. Default: 30 min.
    pub metric_idle: Duration,
    /// Between saying that new work should go elsewhere, to health checks and peers, and telling the
    /// first connection to go. Default: 1 s.
    pub drain_delay: Duration,
    /// Connections are told to go one by one, spread evenly over this time. Default: 2 s, or half of
    /// `drain` if that is less than it.
    pub drain_spread: Duration,
    /// When the node ends, from the first connection told until requests that are left are cut.
    /// Default: 30 s.
    pub drain: Duration,
    /// The same for WebSockets, and what else a client upgraded to. Default: 30 s.
    pub drain_websocket: Duration,
    /// The same for raw TCP, which cannot be told to go. Default: 60 s.
    pub drain_tcp: Duration,
    /// From the start of a successor until it is ready; later it is ended. Default: 30 s.
    pub handoff: Duration,
    /// Of that, how long a successor may wait for connections to the nodes that its predecessor was
    /// connected to; 0: it makes none before they are needed. Default: 1 s.
    pub handoff_warm: Duration,
    /// A successor that dies within this time after it took over gives everything back. Default: 1 s.
    pub handoff_probation: Duration,
}

/// `[memory]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// What memory is held against: bytes, or the cgroup's limit, else the machine's memory. Default:
    /// `auto`.
    pub limit: Limit,
    /// From which share of the limit what is given up.
    pub pressure: pressure::Config,
    /// How long a poll may take.
    pub watchdog: watchdog::Config,
    /// Whether the heap is watched for leaks. Default: true.
    pub heapwatch: bool,
    /// In which scales. Default: production.
    pub profile: Profile,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Client text that may be exported and logged. Default: none.
    pub expose: Policy,
    pub records: record::Config,
    pub otlp: export::Config,
    /// Absent: there is none.
    pub access_log: Option<access_log::Config>,
    pub verbosity: verbosity::Config,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Read-only HTTP. Default: `127.0.0.1:9900`.
    pub address: SocketAddr,
    /// Control commands, mode 0600. Default: `/run/ferrule/admin.sock`.
    pub socket: PathBuf,
}

// === impl Telemetry ===

impl Telemetry {
    /// What it may hold in all follows from the memory there is; what is written can only be less.
    pub fn stay_within(&mut self, shares: Shares) {
        let Shares { total: _, records, export_queue, rings, access_log: _ } = shares;
        let at_most = |bytes: usize, share: u64| bytes.min(share as usize);
        self.records.budget_bytes = records as usize;
        self.otlp.queue_bytes = at_most(self.otlp.queue_bytes, export_queue);
        self.otlp.ring_bytes = at_most(self.otlp.ring_bytes, rings);
    }

    /// The defaults of a node with this storage.
    pub fn in_storage(storage: &Storage) -> Self {
        let key_file = storage.directory.join(verbosity::KEY_FILE);
        Self {
            expose: Policy::none(),
            records: record::Config::default(),
            otlp: export::Config::default(),
            access_log: None,
            verbosity: verbosity::Config { key_file, ..verbosity::Config::default() },
        }
    }
}

// === impl defaults ===

impl Default for Memory {
    fn default() -> Self {
        Self {
            limit: Limit::default(),
            pressure: pressure::Config::default(),
            watchdog: watchdog::Config::default(),
            heapwatch: true,
            profile: Profile::Production,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self { directory: "/var/lib/ferrule".into() }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            mode: ListenMode::Auto,
            addresses: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            prefixes: Vec::new(),
            backlog: 4096,
        }
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            mode: FilterMode::Auto,
            interfaces: Vec::new(),
            cgroup: None,
            pins: "/sys/fs/bpf/ferrule".into(),
            dry_run: false,
            sample_drops_every: 100,
        }
    }
}

impl Default for Inventory {
    fn default() -> Self {
        Self { directory: "apps".into() }
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self { directory: "certificates".into() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            app_connections_max: 2_048,
            requests_in_flight_max: 20_000,
            handshakes_in_flight_max: 1_024,
            handshakes_per_prefix_max: 128,
            queue_length_max: 512,
            request_target_bytes_max: 16 * 1024,
            header_bytes_max: 16 * 1024,
            head_bytes_max: 32 * 1024,
            header_fields_max: 100,
            h2_streams_max: 100,
            h2_stream_window_bytes: 64 * 1024,
            h2_connection_window_bytes: 1024 * 1024,
            h2_send_buffer_bytes: 64 * 1024,
            h2_connection_send_buffer_bytes: 128 * 1024,
            h2_control_frames_max: 10_000,
            h2_resets_max: 100,
            upstream_idle_per_instance_max: 512,
            upstream_idle_max: 2_048,
            upstream_streams_max: 1_000,
            replay_bytes_max: 64 * 1024,
            attempts_max: 5,
            retry_budget_percent: 20,
            hops_max: 2,
            shared_counts_max: 65_536,
            metric_labels_max: 1_000,
            metric_series_max: 10_000,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            request_head: Duration::from_secs(10),
            request_body: Duration::from_secs(20),
            response_write: Duration::from_secs(30),
            h1_idle: Duration::from_secs(60),
            h2_idle: Duration::from_secs(60),
            websocket_idle: Duration::from_secs(600),
            tcp_idle: Duration::from_secs(3600),
            connect: Duration::from_secs(3),
            response_head: Duration::from_secs(14),
            response_body: Duration::from_secs(60),
            upstream_idle: Duration::from_secs(4),
            queue: Duration::from_secs(5),
            metric_idle: Duration::from_secs(1800),
            drain_delay: Duration::from_secs(1),
            drain_spread: Duration::from_secs(2),
            drain: Duration::from_secs(30),
            drain_websocket: Duration::from_secs(30),
            drain_tcp: Duration::from_secs(60),
            handoff: Duration::from_secs(30),
            handoff_warm: Duration::from_secs(1),
            handoff_probation: Duration::from_secs(1),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 9900).into(),
            socket: "/run/ferrule/admin.sock".into(),
        }
    }
}
