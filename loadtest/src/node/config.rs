//! What a node is told: `edge.toml`, and its apps.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::free;

/// Every name of a run is in it.
pub(crate) const DOMAIN: &str = "proof.test";

/// Where a node is met.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub ip: IpAddr,
    pub http: u16,
    pub https: u16,
    /// Of apps that want bytes.
    pub tcp: u16,
    pub admin: u16,
}

/// A node to be.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub program: PathBuf,
    pub ports: Ports,
    pub apps: Vec<App>,
    pub environment: Vec<(String, String)>,
    /// A program that starts the node, with its arguments; `{home}` is the node's folder.
    pub wrapper: Vec<String>,
    /// Further files of the node's folder.
    pub files: Vec<(String, Vec<u8>)>,
    /// What follows the sections.
    pub tail: String,
    sections: BTreeMap<&'static str, BTreeMap<&'static str, String>>,
}

/// A tenant.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub name: String,
    pub hosts: Vec<String>,
    /// Port and handlers.
    pub doors: Vec<(u16, &'static str)>,
    pub h2_backend: bool,
    /// `requests` or `connections`.
    pub counts: &'static str,
    pub hard_limit: u32,
    pub internal_port: u16,
    /// Id, node, address.
    pub instances: Vec<(String, String, IpAddr)>,
    /// Further lines of the service.
    pub service: String,
}

// === impl Setup ===

impl Setup {
    pub(crate) fn new(program: &Path) -> Result<Self> {
        let port = || -> Result<u16> { Ok(free()?.port()) };
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ports = Ports { ip, http: port()?, https: port()?, tcp: port()?, admin: port()? };
        Ok(Self::at(program, ports))
    }

    /// Nodes of one edge serve the same ports, so each has an address of its own.
    pub(crate) fn at(program: &Path, ports: Ports) -> Self {
        let ip = ports.ip;
        let setup = Self {
            program: program.to_owned(),
            ports,
            apps: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            files: Vec::new(),
            tail: String::new(),
            sections: BTreeMap::new(),
        };
        let quoted = |value: &str| format!("\"{value}\"");
        setup
            .set("node", "id", quoted("a"))
            .set("node", "region", quoted("ams"))
            .set("node", "workers", 2)
            .set("storage", "directory", quoted("storage"))
            .set("listen", "mode", quoted("bind"))
            .set("listen", "addresses", format!("[\"{ip}\"]"))
            .set("admin", "address", quoted(&SocketAddr::new(ip, ports.admin).to_string()))
            .set("admin", "socket", quoted("admin.sock"))
    }

    /// A value as TOML writes it.
    pub(crate) fn set(
        mut self,
        section: &'static str,
        key: &'static str,
        value: impl ToString,
    ) -> Self {
        self.sections.entry(section).or_default().insert(key, value.to_string());
        self
    }

    pub(crate) fn app(mut self, app: App) -> Self {
        self.apps.push(app);
        self
    }

    /// Telemetry goes to `endpoint`, in batches.
    pub(crate) fn exports_to(self, endpoint: &str) -> Self {
        self.set("telemetry.otlp", "endpoint", format!("\"{endpoint}\""))
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            writeln!(text, "[{section}]").expect("a String takes everything");
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").expect("a String takes everything");
            }
        }
        text + &self.tail
    }
}

// === impl App ===

impl App {
    /// HTTP and HTTPS at the node's ports, towards one instance.
    pub(crate) fn web(name: &str, ports: &Ports, instance: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            hosts: vec![format!("{name}.{DOMAIN}")],
            doors: vec![(ports.http, "\"http\""), (ports.https, "\"tls\", \"http\"")],
            h2_backend: false,
            counts: "requests",
            hard_limit: 5_000,
            internal_port: instance.port(),
            instances: vec![(format!("{name}-1"), "a".to_owned(), instance.ip())],
            service: String::new(),
        }
    }

    /// HTTP/2 to the instance as well.
    pub(crate) fn grpc(name: &str, ports: &Ports, instance: SocketAddr) -> Self {
        Self { h2_backend: true, ..Self::web(name, ports, instance) }
    }

    /// Bytes as they come.
    pub(crate) fn tcp(name: &str, ports: &Ports, instance: SocketAddr) -> Self {
        let doors = vec![(ports.tcp, "")];
        let web = Self::web(name, ports, instance);
        Self { hosts: Vec::new(), doors, counts: "connections", ..web }
    }

    /// At all hosts of the domain below its name.
    pub(crate) fn with_subdomains(mut self) -> Self {
        self.hosts.push(format!("*.{}.{DOMAIN}", self.name));
        self
    }

    pub(crate) fn instance(mut self, id: &str, node: &str, ip: IpAddr) -> Self {
        self.instances.push((id.to_owned(), node.to_owned(), ip));
        self
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.doors.iter().map(|(port, _)| *port)
    }

    pub(super) fn text(&self) -> String {
        let Self { name, hosts, doors, h2_backend, counts, hard_limit, internal_port, .. } = self;
        let soft = hard_limit.div_ceil(2);
        let mut text = format!("app = \"{name}\"\n");
        let mut line = |what: std::fmt::Arguments<'_>| {
            text.write_fmt(what).expect("a String takes everything");
        };
        if !hosts.is_empty() {
            line(format_args!("hostnames = {hosts:?}\n"));
        }
        line(format_args!("[[services]]\nprotocol = \"tcp\"\ninternal_port = {internal_port}\n"));
        for (port, handlers) in doors {
            line(format_args!("[[services.ports]]\nport = {port}\nhandlers = [{handlers}]\n"));
            if *h2_backend {
                line(format_args!("http_options = {{ h2_backend = true }}\n"));
            }
        }
        line(format_args!(
            "[services.concurrency]\ntype = \"{counts}\"\nsoft_limit = {soft}\nhard_limit = {hard_limit}\n"
        ));
        line(format_args!("{}", self.service));
        for (id, node, ip) in &self.instances {
            line(format_args!(
                "[[instances]]\nid = \"{id}\"\nnode = \"{node}\"\naddress = \"{ip}\"\n"
            ));
        }
        text
    }
}
