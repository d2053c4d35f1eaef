//! App files, written the way an operator would.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// One `apps/NAME.toml` in the making.
///
/// The ports clients use belong to the edge and are filled in when the file is written: every
/// app has the edge's cleartext HTTP port and its HTTPS port unless it says otherwise.
#[derive(Debug, Clone)]
pub struct App {
    name: String,
    hostnames: Vec<String>,
    top: Vec<String>,
    internal_port: Option<u16>,
    service: Vec<String>,
    kind: &'static str,
    concurrency: Vec<String>,
    http: Vec<String>,
    https: Vec<String>,
    /// The handlers of a raw app's port, as a TOML list.
    raw: Option<String>,
    instances: Vec<(String, String, SocketAddr)>,
    more: String,
}

/// The ports of an edge that app files name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Cleartext HTTP.
    pub http: u16,
    /// HTTP over TLS.
    pub https: u16,
    /// Raw bytes.
    pub tcp: u16,
}

impl App {
    /// An HTTP app that answers to `<name>.test`, limited by requests, so that upstream
    /// connections are reused.
    pub fn new(name: &str) -> Self {
        Self { kind: "requests", ..Self::empty(name) }
    }

    fn empty(name: &str) -> Self {
        Self {
            kind: "connections",
            name: name.to_owned(),
            hostnames: vec![format!("{name}.test")],
            top: Vec::new(),
            internal_port: None,
            service: Vec::new(),
            concurrency: Vec::new(),
            http: Vec::new(),
            https: Vec::new(),
            raw: None,
            instances: Vec::new(),
            more: String::new(),
        }
    }

    /// An app whose bytes are copied, on the edge's raw port with these handlers (a TOML list).
    pub fn raw(name: &str, handlers: &str) -> Self {
        Self { raw: Some(handlers.to_owned()), ..Self::empty(name) }
    }

    /// The app's name, which is also its file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is on the edge's HTTP ports.
    pub fn is_web(&self) -> bool {
        self.raw.is_none()
    }

    /// Whether it is on the edge's raw port.
    pub fn is_raw(&self) -> bool {
        self.raw.is_some()
    }

    /// Every name it answers to.
    pub fn hostnames(&self) -> &[String] {
        &self.hostnames
    }

    /// Another name it answers to.
    pub fn hostname(mut self, name: &str) -> Self {
        self.hostnames.push(name.to_owned());
        self
    }

    /// A line at the top of the file, such as `compat = "fly"`.
    pub fn top(mut self, line: &str) -> Self {
        self.top.push(line.to_owned());
        self
    }

    /// A line of the service.
    pub fn service(mut self, line: &str) -> Self {
        self.service.push(line.to_owned());
        self
    }

    /// A line of the service's concurrency section.
    pub fn concurrency(mut self, line: &str) -> Self {
        self.concurrency.push(line.to_owned());
        self
    }

    /// A line that both HTTP ports get.
    pub fn port(self, line: &str) -> Self {
        self.http_port(line).https_port(line)
    }

    /// A line of the cleartext port, or of a raw app's only one.
    pub fn http_port(mut self, line: &str) -> Self {
        self.http.push(line.to_owned());
        self
    }

    /// A line of the TLS port.
    pub fn https_port(mut self, line: &str) -> Self {
        self.https.push(line.to_owned());
        self
    }

    /// The instances speak HTTP/2 with prior knowledge.
    pub fn h2_backend(self) -> Self {
        self.port("http_options.h2_backend = true")
    }

    /// What one instance may carry.
    pub fn limits(self, soft: u32, hard: u32) -> Self {
        self.concurrency(&format!("soft_limit = {soft}"))
            .concurrency(&format!("hard_limit = {hard}"))
    }

    /// The limits count connections: every request has an upstream connection of its own.
    pub fn by_connections(mut self) -> Self {
        self.kind = "connections";
        self
    }

    /// An instance `<app>-<n>` on node `a`.
    pub fn instance(self, address: SocketAddr) -> Self {
        self.instance_on("a", address)
    }

    /// An instance on `node`. All instances of an app listen on one port.
    ///
    /// # Panics
    /// When its port differs from the others'.
    pub fn instance_on(mut self, node: &str, address: SocketAddr) -> Self {
        let port = *self.internal_port.get_or_insert_with(|| address.port());
        assert_eq!(port, address.port(), "instances of one service listen on one port");
        let id = format!("{}-{}", self.name, self.instances.len() + 1);
        self.instances.push((id, node.to_owned(), address));
        self
    }

    /// Anything else, at the end of the file.
    pub fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    /// The file.
    pub fn file(&self, ports: Ports) -> String {
        let mut text = String::new();
        let mut line = |line: &str| writeln!(text, "{line}").expect("a String takes everything");
        line(&format!("app = {:?}", self.name));
        line(&format!("hostnames = {:?}", self.hostnames));
        self.top.iter().for_each(|top| line(top));
        line("\n[[services]]");
        line("protocol = \"tcp\"");
        line(&format!("internal_port = {}", self.internal_port.unwrap_or(8080)));
        self.service.iter().for_each(|service| line(service));
        if let Some(handlers) = &self.raw {
            line(&format!("[[services.ports]]\nport = {}\nhandlers = {handlers}", ports.tcp));
            self.http.iter().for_each(|tcp| line(tcp));
        } else {
            line(&format!("[[services.ports]]\nport = {}\nhandlers = [\"http\"]", ports.http));
            self.http.iter().for_each(|http| line(http));
            let https = ports.https;
            line(&format!("[[services.ports]]\nport = {https}\nhandlers = [\"tls\", \"http\"]"));
            self.https.iter().for_each(|https| line(https));
        }
        line(&format!("[services.concurrency]\ntype = {:?}", self.kind));
        self.concurrency.iter().for_each(|concurrency| line(concurrency));
        for (id, node, address) in &self.instances {
            let address = address.ip();
            line(&format!(
                "\n[[instances]]\nid = {id:?}\nnode = {node:?}\naddress = \"{address}\""
            ));
        }
        line(&self.more);
        text
    }
}
