//! Who is measured: each proxy with one worker on CPU 0, the same certificate, keep-alive to the
//! same origins, no request log. These are on CPU 1: Debian's nginx with a static KiB and 10 MiB,
//! and nghttpd for HTTP/2 in cleartext.

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::machine;
use crate::origin::{Collector, Takes};
use crate::process::{Running, find, free, wait_until};

/// The name every client asks for.
pub(crate) const NAME: &str = "bench.test";

/// CPU of the proxy, and of everyone who only serves the measurement.
const PROXY_CPU: &str = "0";
pub(crate) const LOAD_CPU: &str = "1";

/// Bytes of a large body.
pub(crate) const LARGE: usize = 10 << 20;

/// What every proxy forwards to.
pub(crate) struct Origins {
    http1: SocketAddr,
    h2c: SocketAddr,
    /// A file of 10 MiB, and one of 100 B.
    large: PathBuf,
    message: PathBuf,
    _processes: [Running; 2],
}

/// The one certificate of the run, self-signed, ECDSA P-256.
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    both: PathBuf,
    pub der: rustls::pki_types::CertificateDer<'static>,
}

/// Whom the peers that export speak to.
pub(crate) struct Collectors {
    running: Vec<(Takes, Collector)>,
    /// Nobody listens there.
    refused: SocketAddr,
}

/// Peers that export, and what their collector does with it; `None`: there is none.
const EXPORTING: [(&str, Option<Takes>); 7] = [
    ("observed", Some(Takes::Everything)),
    ("logged", Some(Takes::Everything)),
    ("refused", None),
    ("hanging", Some(Takes::Nothing)),
    ("busy", Some(Takes::Busy)),
    ("closing", Some(Takes::Closed)),
    ("trickling", Some(Takes::Trickle)),
];

/// One proxy.
pub(crate) struct Peer {
    name: String,
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// HTTP/2 to the origin too.
    pub grpc: SocketAddr,
    /// Files to send.
    pub large: PathBuf,
    pub message: PathBuf,
    pub certificate: rustls::pki_types::CertificateDer<'static>,
    process: Running,
}

// === impl Peer ===

impl Peer {
    /// Starts it and waits until it forwards; `None` when it is not installed.
    pub(crate) fn start(
        name: &str,
        ferrule: &Path,
        directory: &Path,
        certificate: &Certificate,
        origins: &Origins,
        collectors: &Collectors,
    ) -> Result<Option<Self>> {
        let collector = collectors.of(name);
        let program = match name {
            "nginx" | "haproxy" => match find(name) {
                Some(program) => program,
                None => return Ok(None),
            },
            name if collector.is_some() || matches!(name, "ferrule" | "before") => {
                fs::canonicalize(ferrule).with_context(|| ferrule.display().to_string())?
            }
            other => bail!("no peer is called {other}"),
        };
        let home = directory.join(name);
        fs::create_dir_all(&home)?;
        let (http, https, grpc) = (free()?, free()?, free()?);
        let places = Places { home: &home, http, https, grpc, certificate, origins };
        let arguments = match (name, collector) {
            ("nginx", _) => places.nginx()?,
            ("haproxy", _) => places.haproxy()?,
            ("logged", Some(endpoint)) => places.ferrule(&(exporting(&endpoint) + LOGGING))?,
            (_, Some(endpoint)) => places.ferrule(&exporting(&endpoint))?,
            (_, None) => places.ferrule("")?,
        };
        let process = start(PROXY_CPU, &program, &arguments, &home)?;
        let certificate = certificate.der.clone();
        let (large, message) = (origins.large.clone(), origins.message.clone());
        let name = name.to_owned();
        let peer = Self { name, http, https, grpc, large, message, certificate, process };
        peer.forwards().with_context(|| {
            format!("it wrote: {}", fs::read_to_string(home.join("log")).unwrap_or_default())
        })?;
        Ok(Some(peer))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until what the last connections held is given back: memory stands still for a second.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut last = machine::pss_of_tree(self.pid())?;
        let mut since = Instant::now();
        let deadline = Instant::now() + Duration::from_secs(20);
        while since.elapsed() < Duration::from_secs(1) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            let now = machine::pss_of_tree(self.pid())?;
            if now.abs_diff(last) > 64 {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn forwards(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(1024) = request(self.http) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} does not forward within 20 s", self.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A request of its own connection; returns the length of the body.
fn request(address: SocketAddr) -> Result<usize> {
    use std::io::Write as _;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no head")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not a 200");
    Ok(answer.len() - head - 4)
}

// === impl Collectors ===

impl Collectors {
    pub(crate) fn start() -> Result<Self> {
        let kinds = EXPORTING.iter().filter_map(|(_, takes)| *takes);
        let running = kinds.map(|takes| Ok((takes, Collector::start(takes)?)));
        Ok(Self { running: running.collect::<Result<_>>()?, refused: free()? })
    }

    /// Where a peer exports to, if it does.
    fn of(&self, peer: &str) -> Option<String> {
        let (_, takes) = EXPORTING.iter().find(|(name, _)| *name == peer)?;
        let running = takes.and_then(|takes| self.running.iter().find(|(kind, _)| *kind == takes));
        Some(match running {
            Some((_, collector)) => collector.endpoint(),
            None => format!("http://{}", self.refused),
        })
    }
}

// === impl Origins, Certificate ===

impl Origins {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let nginx = find("nginx").context("nginx, the origin, is not installed")?;
        let nghttpd = find("nghttpd").context("nghttpd, the gRPC origin, is not installed")?;
        let home = directory.join("origin");
        let html = home.join("html");
        fs::create_dir_all(&html)?;
        fs::write(html.join("index.html"), [b'k'; 1024])?;
        fs::write(html.join("large"), vec![b'l'; LARGE])?;
        fs::write(home.join("message"), [b'm'; 100])?;
        let (http1, h2c) = (free()?, free()?);
        // The whole body is taken before the request goes on, without it, to the static KiB.
        let server = format!(
            "listen {http1} backlog=4096; root {};
             location /sink {{
               client_max_body_size 0; client_body_buffer_size 16m;
               proxy_pass http://{http1}/index.html; proxy_method GET;
               proxy_pass_request_body off; proxy_set_header Content-Length \"\";
             }}",
            html.display()
        );
        let arguments = nginx_arguments(&home, &server, "")?;
        let web = start(LOAD_CPU, &nginx, &arguments, &home)?;
        let port = h2c.port().to_string();
        let ip = h2c.ip().to_string();
        let root = text(&html);
        let arguments = ["--no-tls", "-a", &ip, "-d", &root, "--trailer", "grpc-status: 0", &port];
        let grpc = start(LOAD_CPU, &nghttpd, &arguments.map(str::to_owned), &home)?;
        let listens =
            |address| wait_until(Duration::from_secs(10), || TcpStream::connect(address).is_ok());
        ensure!(listens(h2c), "the gRPC origin does not listen");
        ensure!(
            wait_until(Duration::from_secs(10), || request(http1).is_ok()),
            "the origin does not answer"
        );
        let (large, message) = (html.join("large"), home.join("message"));
        Ok(Self { http1, h2c, large, message, _processes: [web, grpc] })
    }
}

impl Certificate {
    pub(crate) fn write(directory: &Path) -> Result<Self> {
        let pair = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let (chain, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let certificate = Self {
            chain: directory.join("bench.pem"),
            key: directory.join("bench.key"),
            both: directory.join("both.pem"),
            der: pair.cert.der().clone(),
        };
        fs::write(&certificate.chain, &chain)?;
        fs::write(&certificate.key, &key)?;
        fs::write(&certificate.both, chain + &key)?;
        Ok(certificate)
    }
}

/// Pinned to a CPU; what it writes goes to `<home>/log`.
fn start(cpu: &str, program: &Path, arguments: &[String], home: &Path) -> Result<Running> {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu]).arg(program).args(arguments);
    Running::logged(command, home)
}

// === configurations ===

struct Places<'a> {
    home: &'a Path,
    http: SocketAddr,
    https: SocketAddr,
    grpc: SocketAddr,
    certificate: &'a Certificate,
    origins: &'a Origins,
}

impl Places<'_> {
    /// With these sections beside the usual ones.
    fn ferrule(&self, sections: &str) -> Result<Vec<String>> {
        let Self { home, http, https, grpc, certificate, origins } = self;
        fs::create_dir_all(home.join("apps"))?;
        fs::create_dir_all(home.join("certificates"))?;
        fs::copy(&certificate.chain, home.join("certificates/bench.pem"))?;
        fs::copy(&certificate.key, home.join("certificates/bench.key"))?;
        let admin = free()?;
        // Limits and telemetry as in production; only room for the idle connections is made.
        let config = format!(
            "[node]\nid = \"a\"\nregion = \"ams\"\nworkers = 1\n\
             [storage]\ndirectory = \"storage\"\n\
             [listen]\nmode = \"bind\"\naddresses = [\"{}\"]\n\
             [limits]\napp_connections_max = 50000\n\
             [timeouts]\nh1_idle = \"5m\"\nh2_idle = \"5m\"\n\
             [admin]\naddress = \"{admin}\"\nsocket = \"admin.sock\"\n\
             {sections}",
            http.ip()
        );
        let limits =
            "[services.concurrency]\ntype = \"requests\"\nsoft_limit = 1000\nhard_limit = 2000\n";
        let app = format!(
            "app = \"bench\"\nhostnames = [\"{NAME}\"]\n\
             [[services]]\nprotocol = \"tcp\"\ninternal_port = {}\n\
             [[services.ports]]\nport = {}\nhandlers = [\"http\"]\n\
             [[services.ports]]\nport = {}\nhandlers = [\"tls\", \"http\"]\n\
             {limits}\
             [[services]]\nprotocol = \"tcp\"\ninternal_port = {}\n\
             [[services.ports]]\nport = {}\nhandlers = [\"tls\", \"http\"]\n\
             http_options = {{ h2_backend = true }}\n\
             {limits}\
             [[instances]]\nid = \"bench-1\"\nnode = \"a\"\naddress = \"{}\"\n",
            origins.http1.port(),
            http.port(),
            https.port(),
            origins.h2c.port(),
            grpc.port(),
            origins.http1.ip()
        );
        fs::write(home.join("edge.toml"), config)?;
        fs::write(home.join("apps/bench.toml"), app)?;
        Ok(vec!["run".into(), "--config".into(), text(&home.join("edge.toml"))])
    }

    /// Buffers so that a body is not copied through the disk, and not in pieces of a page; uploads go
    /// on as they come.
    fn nginx(&self) -> Result<Vec<String>> {
        let Self { home, http, https, grpc, certificate, origins } = self;
        let tls = format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3;
             ssl_session_cache shared:tls:10m;",
            text(&certificate.chain),
            text(&certificate.key)
        );
        let server = format!(
            "listen {http} backlog=4096; listen {https} ssl http2 backlog=4096; server_name {NAME};
             {tls} client_max_body_size 0;
             location / {{
               proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\";
               proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
               proxy_set_header X-Forwarded-Proto $scheme;
               proxy_buffers 8 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
               proxy_request_buffering off; client_body_buffer_size 64k;
             }}
             }}
             server {{
               listen {grpc} ssl http2 backlog=4096; server_name {NAME}; {tls}
               location / {{ grpc_pass grpc://h2c; grpc_set_header X-Forwarded-For $remote_addr; }}"
        );
        let upstream = format!(
            "upstream origin {{ server {}; keepalive 128; keepalive_requests 100000000; }}
             upstream h2c {{ server {}; keepalive 512; keepalive_requests 100000000; }}",
            origins.http1, origins.h2c
        );
        nginx_arguments(home, &server, &upstream)
    }

    fn haproxy(&self) -> Result<Vec<String>> {
        let Self { home, http, https, grpc, certificate, origins } = self;
        let both = text(&certificate.both);
        let config = format!(
            "global\n  nbthread 1\n  ssl-default-bind-options ssl-min-ver TLSv1.2\n\
             defaults\n  mode http\n  http-reuse always\n  option forwardfor\n\
             \x20 timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n\
             \x20 timeout http-keep-alive 300s\n\
             frontend edge\n  bind {http} backlog 4096\n\
             \x20 bind {https} ssl crt {both} alpn h2,http/1.1 backlog 4096\n  default_backend origin\n\
             frontend grpc\n  bind {grpc} ssl crt {both} alpn h2 backlog 4096\n  default_backend h2c\n\
             backend origin\n  server origin {}\n\
             backend h2c\n  server h2c {} proto h2\n",
            origins.http1, origins.h2c
        );
        fs::write(home.join("haproxy.cfg"), config)?;
        Ok(vec!["-db".into(), "-f".into(), text(&home.join("haproxy.cfg"))])
    }
}

/// Requests are recorded and sampled as by default.
fn exporting(endpoint: &str) -> String {
    format!("[telemetry.otlp]\nendpoint = \"{endpoint}\"\n")
}

const LOGGING: &str = "[telemetry.access_log]\npath = \"/dev/null\"\n";

/// A master and one worker, nothing recycled while it is measured.
fn nginx_arguments(home: &Path, server: &str, upstream: &str) -> Result<Vec<String>> {
    let path = text(home);
    let root = rustix::process::geteuid().is_root();
    let user = if root { "user root;" } else { "" };
    let config = format!(
        "daemon off; {user} worker_processes 1; worker_rlimit_nofile 60000; pid {path}/nginx.pid;
         error_log {path}/error.log error;
         events {{ worker_connections 30000; }}
         http {{
           access_log off; default_type application/octet-stream; sendfile on; tcp_nodelay on;
           open_file_cache max=10; keepalive_timeout 300s; keepalive_requests 100000000;
           client_body_temp_path {path}/t1; proxy_temp_path {path}/t2; fastcgi_temp_path {path}/t3;
           uwsgi_temp_path {path}/t4; scgi_temp_path {path}/t5;
           {upstream}
           server {{ {server} }}
         }}\n"
    );
    fs::write(home.join("nginx.conf"), config)?;
    let conf = text(&home.join("nginx.conf"));
    Ok(["-p", &path, "-c", &conf, "-e", "stderr"].map(str::to_owned).into())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
