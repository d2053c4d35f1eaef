//! Who is measured: each proxy with one worker on CPU 0, the same certificate, keep-alive to the
//! same origin, no request log. The origin, Debian's nginx with a static KiB, is on CPU 1.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::machine;
use crate::servers::Collector;

/// The name every client asks for.
pub(crate) const NAME: &str = "bench.test";

/// CPU of the proxy, and of everyone who only serves the measurement.
const PROXY_CPU: &str = "0";
pub(crate) const LOAD_CPU: &str = "1";

/// A child that ends with its owner.
pub(crate) struct Running(Child);

/// What every proxy forwards to.
pub(crate) struct Origin {
    address: SocketAddr,
    _process: Running,
}

/// The one certificate of the run, self-signed, ECDSA P-256.
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    both: PathBuf,
    pub der: rustls::pki_types::CertificateDer<'static>,
}

/// One proxy.
pub(crate) struct Peer {
    name: String,
    version: String,
    pub http: SocketAddr,
    pub https: SocketAddr,
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
        origin: &Origin,
        collector: &Collector,
    ) -> Result<Option<Self>> {
        let program = match name {
            "ferrule" | "observed" | "logged" | "before" => {
                fs::canonicalize(ferrule).with_context(|| ferrule.display().to_string())?
            }
            "nginx" | "haproxy" => match find(name) {
                Some(program) => program,
                None => return Ok(None),
            },
            other => bail!("no peer is called {other}"),
        };
        let home = directory.join(name);
        fs::create_dir_all(&home)?;
        let (http, https) = (free()?, free()?);
        let places = Places { home: &home, http, https, certificate, origin: origin.address };
        let arguments = match name {
            "ferrule" | "before" => places.ferrule("")?,
            "observed" => places.ferrule(&exporting(collector))?,
            "logged" => places.ferrule(&(exporting(collector) + LOGGING))?,
            "nginx" => places.nginx()?,
            _ => places.haproxy()?,
        };
        let process = Running::start(PROXY_CPU, &program, &arguments, &home)?;
        let version = version(&program, name)?;
        let certificate = certificate.der.clone();
        let peer = Self { name: name.to_owned(), version, http, https, certificate, process };
        peer.forwards().with_context(|| {
            format!("it wrote: {}", fs::read_to_string(home.join("log")).unwrap_or_default())
        })?;
        Ok(Some(peer))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Name and version.
    pub(crate) fn describe(&self) -> String {
        format!("{} ({})", self.name, self.version)
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

// === impl Origin, Certificate ===

impl Origin {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let nginx = find("nginx").context("nginx, the origin, is not installed")?;
        let home = directory.join("origin");
        fs::create_dir_all(home.join("html"))?;
        fs::write(home.join("html/index.html"), [b'k'; 1024])?;
        let address = free()?;
        let server = format!("listen {address} backlog=4096; root {}/html;", home.display());
        let arguments = nginx_arguments(&home, &server, "")?;
        let process = Running::start(LOAD_CPU, &nginx, &arguments, &home)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while request(address).is_err() {
            ensure!(Instant::now() < deadline, "the origin does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { address, _process: process })
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

// === impl Running ===

impl Running {
    /// What it writes goes to `<home>/log`.
    fn start(cpu: &str, program: &Path, arguments: &[String], home: &Path) -> Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", cpu]).arg(program).args(arguments);
        let log = fs::File::create(home.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        let child = command.spawn();
        Ok(Self(child.with_context(|| command.get_program().display().to_string())?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // TERM first, so that a master process takes its workers along.
        let asked = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(10);
        while asked.is_ok() && Instant::now() < deadline {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("process {} could not be ended", self.0.id());
        }
    }
}

// === configurations ===

struct Places<'a> {
    home: &'a Path,
    http: SocketAddr,
    https: SocketAddr,
    certificate: &'a Certificate,
    origin: SocketAddr,
}

impl Places<'_> {
    /// With these sections beside the usual ones.
    fn ferrule(&self, sections: &str) -> Result<Vec<String>> {
        let Self { home, http, https, certificate, origin } = self;
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
        let app = format!(
            "app = \"bench\"\nhostnames = [\"{NAME}\"]\n\
             [[services]]\nprotocol = \"tcp\"\ninternal_port = {}\n\
             [[services.ports]]\nport = {}\nhandlers = [\"http\"]\n\
             [[services.ports]]\nport = {}\nhandlers = [\"tls\", \"http\"]\n\
             [services.concurrency]\ntype = \"requests\"\nsoft_limit = 1000\nhard_limit = 2000\n\
             [[instances]]\nid = \"bench-1\"\nnode = \"a\"\naddress = \"{}\"\n",
            origin.port(),
            http.port(),
            https.port(),
            origin.ip()
        );
        fs::write(home.join("edge.toml"), config)?;
        fs::write(home.join("apps/bench.toml"), app)?;
        Ok(vec!["run".into(), "--config".into(), text(&home.join("edge.toml"))])
    }

    fn nginx(&self) -> Result<Vec<String>> {
        let Self { home, http, https, certificate, origin } = self;
        let server = format!(
            "listen {http} backlog=4096; listen {https} ssl http2 backlog=4096; server_name {NAME};
             ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3;
             location / {{
               proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\";
               proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
               proxy_set_header X-Forwarded-Proto $scheme;
             }}",
            text(&certificate.chain),
            text(&certificate.key)
        );
        let upstream = format!(
            "upstream origin {{ server {origin}; keepalive 128; keepalive_requests 100000000; }}"
        );
        nginx_arguments(home, &server, &upstream)
    }

    fn haproxy(&self) -> Result<Vec<String>> {
        let Self { home, http, https, certificate, origin } = self;
        let config = format!(
            "global\n  nbthread 1\n  ssl-default-bind-options ssl-min-ver TLSv1.2\n\
             defaults\n  mode http\n  http-reuse always\n  option forwardfor\n\
             \x20 timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n\
             \x20 timeout http-keep-alive 300s\n\
             frontend edge\n  bind {http} backlog 4096\n\
             \x20 bind {https} ssl crt {} alpn h2,http/1.1 backlog 4096\n  default_backend origin\n\
             backend origin\n  server origin {origin}\n",
            text(&certificate.both)
        );
        fs::write(home.join("haproxy.cfg"), config)?;
        Ok(vec!["-db".into(), "-f".into(), text(&home.join("haproxy.cfg"))])
    }
}

/// Requests are recorded and sampled as by default.
fn exporting(collector: &Collector) -> String {
    format!("[telemetry.otlp]\nendpoint = \"{}\"\n", collector.endpoint())
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

fn version(program: &Path, name: &str) -> Result<String> {
    let flag = if matches!(name, "nginx" | "haproxy") { "-v" } else { "--version" };
    let output = Command::new(program).arg(flag).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let word = said.split_whitespace().find(|word| word.chars().any(|c| c.is_ascii_digit()));
    Ok(word.unwrap_or("?").trim_start_matches("nginx/").to_owned())
}

/// Where a program is installed; Debian keeps daemons outside a user's PATH.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = ["target/tools/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(own).map(|place| place.join(name)).find(|p| p.is_file())
}

pub(crate) fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
