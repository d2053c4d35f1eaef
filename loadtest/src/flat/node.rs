//! The node under test, and what it says of its memory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::client::DOMAIN;
use super::{Flat, Leak, Reading};
use crate::peer::{Running, free};

/// A running node.
pub(super) struct Node {
    http: SocketAddr,
    admin: SocketAddr,
    _process: Running,
}

/// Scrapes at a rate, until it is told to end.
pub(super) struct Scraper {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Result<()>>,
}

// === impl Node ===

impl Node {
    pub(super) fn start(
        flat: &Flat,
        home: &Path,
        origin: SocketAddr,
        endpoint: Option<&str>,
    ) -> Result<Self> {
        let (http, admin) = (free()?, free()?);
        fs::create_dir_all(home.join("apps"))?;
        fs::create_dir_all(home.join("certificates"))?;
        fs::write(home.join("edge.toml"), config(http, admin, endpoint))?;
        fs::write(home.join("apps/flat.toml"), app(http, origin))?;
        let program = fs::canonicalize(&flat.ferrule)
            .with_context(|| format!("{} is not built", flat.ferrule.display()))?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(home.join("edge.toml"));
        // Whatever the machine exports to is not meant.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
        if let Some(leak) = flat.leak {
            let name = match leak {
                Leak::Children => "children",
                Leak::Queue => "queue",
            };
            command.env("FERRULE_LEAK", name);
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.unwrap_or_default());
        }
        let log = fs::File::create(home.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let node = Self { http, admin, _process: Running::spawn(command)? };
        let deadline = Instant::now() + Duration::from_secs(30);
        while get(admin, "/readyz").is_err() || TcpStream::connect(http).is_err() {
            let said = || fs::read_to_string(home.join("log")).unwrap_or_default();
            ensure!(Instant::now() < deadline, "the node is not ready: {}", said());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(node)
    }

    pub(super) fn http(&self) -> SocketAddr {
        self.http
    }

    pub(super) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Memory after `requests`: the least of a few readings, since a batch that is just being
    /// exported is no growth.
    pub(super) fn read(&self, requests: u64) -> Result<Reading> {
        const READINGS: usize = 5;
        const APART: Duration = Duration::from_millis(12);
        let mut least: Option<Reading> = None;
        for _ in 0..READINGS {
            thread::sleep(APART);
            let metrics = get(self.admin, "/metrics")?;
            let allocated = kind(&metrics, "allocated")?;
            if least.is_none_or(|least| allocated < least.allocated) {
                let resident = kind(&metrics, "resident")?;
                least = Some(Reading { requests, allocated, resident });
            }
        }
        least.context("no reading")
    }

    /// Lines of a scrape that have a value.
    pub(super) fn series(&self) -> Result<usize> {
        let metrics = get(self.admin, "/metrics")?;
        Ok(metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count())
    }
}

/// Everything that telemetry can do, with the least memory it may have, so that what is bounded is
/// full before the warm-up is over. Every record is kept, far beyond what a node does.
fn config(http: SocketAddr, admin: SocketAddr, endpoint: Option<&str>) -> String {
    let otlp = endpoint.map_or_else(String::new, |endpoint| {
        format!(
            "[telemetry.otlp]\nendpoint = \"{endpoint}\"\ntimeout = \"1s\"\n\
             queue_bytes = \"256KiB\"\nring_bytes = \"128KiB\"\nschedule_delay = \"10ms\"\n\
             metric_interval = \"500ms\"\n"
        )
    });
    format!(
        "[node]\nid = \"a\"\nregion = \"ams\"\nworkers = 2\n\
         [storage]\ndirectory = \"storage\"\n\
         [listen]\nmode = \"bind\"\naddresses = [\"{}\"]\n\
         [telemetry]\nexpose = [\"url.path\", \"user_agent.original\"]\n\
         [telemetry.records]\nsample_percent = 100.0\n\
         exports_per_second_max = 1000000\napp_exports_per_second_max = 1000000\n\
         [telemetry.access_log]\npath = \"/dev/null\"\nbuffer_bytes = \"64KiB\"\n\
         {otlp}\
         [admin]\naddress = \"{admin}\"\nsocket = \"admin.sock\"\n",
        http.ip()
    )
}

fn app(http: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "app = \"flat\"\nhostnames = [\"*.{DOMAIN}\"]\n\
         [[services]]\nprotocol = \"tcp\"\ninternal_port = {}\n\
         [[services.ports]]\nport = {}\nhandlers = [\"http\"]\n\
         [services.concurrency]\ntype = \"requests\"\nsoft_limit = 1000\nhard_limit = 2000\n\
         [[instances]]\nid = \"flat-1\"\nnode = \"a\"\naddress = \"{}\"\n",
        origin.port(),
        http.port(),
        origin.ip()
    )
}

fn kind(metrics: &str, kind: &str) -> Result<u64> {
    let name = format!("ferrule_memory_bytes{{kind=\"{kind}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value.with_context(|| format!("no {name}in the scrape"))?.parse::<f64>()? as u64)
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{path} is not answered with 200");
    Ok(answer)
}

// === impl Scraper ===

impl Scraper {
    pub(super) fn start(admin: SocketAddr, per_second: u32) -> Self {
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            let Some(pause) = Duration::from_secs(1).checked_div(per_second) else { return Ok(()) };
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                get(admin, "/metrics")?;
            }
            Ok(())
        };
        Self { stop, thread: thread::spawn(run) }
    }

    pub(super) fn end(self) -> Result<()> {
        let Self { stop, thread } = self;
        drop(stop);
        thread.join().expect("the scraper does not panic")
    }
}
