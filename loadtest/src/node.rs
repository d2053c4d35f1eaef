//! A real node, started from a folder of its own, and what it says of itself.

pub(crate) mod config;
mod scrape;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::authority::Authority;
use crate::client::tls;
use crate::process::{Running, is_gone, signal_process, wait_until};
use config::{App, DOMAIN, Ports, Setup};
pub(crate) use scrape::Scrape;

/// A running node.
pub(crate) struct Node {
    home: TempDir,
    ports: Ports,
    authority: Authority,
    process: Running,
}

/// One line of the ledger.
pub(crate) struct Held {
    pub owner: String,
    pub bytes: f64,
    /// The highest so far, and the cap, in what the owner counts.
    pub high: f64,
    pub cap: f64,
}

/// How long a node may take to be ready: a debug build on a busy machine.
const READY: Duration = Duration::from_secs(60);

impl Node {
    pub(crate) fn start(setup: &Setup) -> Result<Self> {
        let home = TempDir::with_prefix("ferrule-proof-")?;
        for folder in ["apps", "certificates"] {
            fs::create_dir_all(home.path().join(folder))?;
        }
        fs::write(home.path().join("edge.toml"), setup.text())?;
        for (name, bytes) in &setup.files {
            fs::write(home.path().join(name), bytes)?;
        }
        let authority = Authority::new()?;
        authority.write(&home.path().join("certificates"), "proof", &names())?;
        let program = fs::canonicalize(&setup.program)
            .with_context(|| format!("{} is not built", setup.program.display()))?;
        let mut command = match setup.wrapper.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = Command::new(wrapper);
                let home = home.path().display().to_string();
                command.args(arguments.iter().map(|argument| argument.replace("{home}", &home)));
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("run").arg("--config").arg(home.path().join("edge.toml"));
        // Whatever the machine exports to is not meant.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.envs(setup.environment.iter().map(|(name, value)| (name, value)));
        for app in &setup.apps {
            fs::write(home.path().join(format!("apps/{}.toml", app.name)), app.text())?;
        }
        let process = Running::logged(command, home.path())?;
        let mut node = Self { home, ports: setup.ports, authority, process };
        node.becomes_ready(setup)?;
        Ok(node)
    }

    fn becomes_ready(&mut self, setup: &Setup) -> Result<()> {
        let deadline = Instant::now() + READY;
        let mut wanted: Vec<u16> = setup.apps.iter().flat_map(App::ports).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let open = |port: &u16| TcpStream::connect((self.ports.ip, *port)).is_ok();
        while self.get("/readyz").is_err() || !wanted.iter().all(open) {
            if let Some(status) = self.process.ended()? {
                bail!("the node ended with {status}: {}", self.log());
            }
            ensure!(Instant::now() < deadline, "the node is not ready: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn http(&self) -> SocketAddr {
        (self.ports.ip, self.ports.http).into()
    }

    pub(crate) fn https(&self) -> SocketAddr {
        (self.ports.ip, self.ports.https).into()
    }

    pub(crate) fn tcp(&self) -> SocketAddr {
        (self.ports.ip, self.ports.tcp).into()
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        (self.ports.ip, self.ports.admin).into()
    }

    pub(crate) fn ports(&self) -> &Ports {
        &self.ports
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// TLS settings of a client that trusts the node's certificate.
    pub(crate) fn tls(&self, protocols: &[&str]) -> Result<tls::Config> {
        tls::config(&self.authority.der(), protocols)
    }

    /// The process that serves: after an upgrade it is another one than was started.
    pub(crate) fn pid(&self) -> Result<u32> {
        let status: serde_json::Value = serde_json::from_str(&self.get("/status")?)?;
        Ok(u32::try_from(status["pid"].as_u64().context("no pid in /status")?)?)
    }

    /// The process that was started.
    pub(crate) fn first_pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Whether the process that was started is still there.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.process.ended(), Ok(None))
    }

    pub(crate) fn scrape(&self) -> Result<Scrape> {
        Ok(Scrape::parse(&self.get("/metrics")?))
    }

    /// Owners of the ledger and the bytes that they hold.
    pub(crate) fn ledger(&self) -> Result<Vec<(String, f64)>> {
        Ok(self.ledger_lines()?.into_iter().map(|held| (held.owner, held.bytes)).collect())
    }

    pub(crate) fn ledger_lines(&self) -> Result<Vec<Held>> {
        let page: serde_json::Value = serde_json::from_str(&self.get("/memory.json")?)?;
        let lines = page["ledger"].as_array().context("no ledger in /memory.json")?;
        let line = |line: &serde_json::Value| {
            let owner = line["owner"].as_str().unwrap_or("?").to_owned();
            let number = |key: &str| line[key].as_f64().unwrap_or_default();
            Held { owner, bytes: number("bytes"), high: number("high"), cap: number("cap") }
        };
        Ok(lines.iter().map(line).collect())
    }

    pub(crate) fn get(&self, path: &str) -> Result<String> {
        get(self.admin(), path)
    }

    /// Waits until nothing is in flight; says what still is.
    pub(crate) fn settles(&self, patience: Duration) -> Result<()> {
        self.settles_to(0, patience)
    }

    /// Waits until there is no more of anything in flight than `standing`.
    pub(crate) fn settles_to(&self, standing: u64, patience: Duration) -> Result<()> {
        let mut left = String::new();
        let settled = wait_until(patience, || match self.scrape() {
            Ok(scrape) => {
                left = scrape.left(standing).join(", ");
                left.is_empty()
            }
            Err(error) => {
                left = format!("{error:#}");
                false
            }
        });
        ensure!(settled, "still there after {patience:?}: {left}");
        Ok(())
    }

    pub(crate) fn write_app(&self, app: &App) -> Result<()> {
        let place = self.home.path().join(format!("apps/{}.toml", app.name));
        let draft = place.with_extension("draft");
        fs::write(&draft, app.text())?;
        Ok(fs::rename(draft, place)?)
    }

    pub(crate) fn remove_app(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.home.path().join(format!("apps/{name}.toml")))?)
    }

    /// Another certificate for the same names.
    pub(crate) fn renew_certificate(&self) -> Result<()> {
        self.authority.write(&self.home.path().join("certificates"), "proof", &names())
    }

    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A successor is no child of ours, and ends when it is asked.
        if let Ok(pid) = self.pid()
            && pid != self.process.id()
            && signal_process(pid, Signal::TERM).is_ok()
        {
            wait_until(Duration::from_secs(10), || is_gone(pid));
        }
    }
}

/// A GET of an admin page.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{path}: {}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}

/// Every host of a run.
pub(crate) fn names() -> Vec<String> {
    vec![DOMAIN.to_owned(), format!("*.{DOMAIN}")]
}
