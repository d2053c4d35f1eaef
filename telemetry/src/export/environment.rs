//! The environment variables of the OpenTelemetry specification, and what they win over.
//!
//! For every setting, from the strongest: the variable of the signal
//! (`OTEL_EXPORTER_OTLP_TRACES_TIMEOUT`), the variable of all signals
//! (`OTEL_EXPORTER_OTLP_TIMEOUT`), `edge.toml`, the default. An empty variable is an unset one.
//! `OTEL_SDK_DISABLED=true` turns everything off. Of the resource, what the node knows of itself
//! wins over `OTEL_RESOURCE_ATTRIBUTES`; `OTEL_SERVICE_NAME` wins over both.
//!
//! One deviation: the specification would warn about a value that cannot be used and go on
//! without it. A node would then run without what its operator asked for, so here it is an error.
//! Sources: "OpenTelemetry Environment Variable Specification"; "OpenTelemetry Protocol Exporter".

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::config::{Compression, Config, Headers, Protocol, Target};
use super::queue::Signal;
use super::{grpc, list};

/// A configuration with something to export, with the environment applied.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) traces: Option<Target>,
    pub(super) logs: Option<Target>,
    pub(super) metrics: Option<Target>,
    pub(super) resource: Vec<(String, String)>,
    /// The rest, with the environment's values in it.
    pub(super) config: Config,
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {value}{reason}")]
pub struct Problem {
    /// The variable, or the key in `edge.toml`.
    pub name: String,
    value: Shown,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    Value(String),
    /// A secret, or a text that holds some.
    Hidden,
}

/// Reads one variable; [`std::env::var_os`] outside tests.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Config {
    /// Applies the environment. `None` when there is nothing to export.
    ///
    /// The variable of a signal wins over that of all signals, and both over this configuration.
    /// Understood are `OTEL_EXPORTER_OTLP_{,TRACES_,LOGS_,METRICS_}` with `ENDPOINT`, `PROTOCOL`,
    /// `HEADERS`, `TIMEOUT`, `COMPRESSION`, `CERTIFICATE`, `CLIENT_CERTIFICATE`, `CLIENT_KEY` and
    /// `INSECURE`; `OTEL_{TRACES,LOGS,METRICS}_EXPORTER`; `OTEL_SDK_DISABLED`; `OTEL_SERVICE_NAME`;
    /// `OTEL_RESOURCE_ATTRIBUTES`; `OTEL_METRIC_EXPORT_INTERVAL`; and of the batch processor
    /// `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`, `OTEL_BSP_MAX_QUEUE_SIZE` and
    /// `OTEL_BSP_EXPORT_TIMEOUT`, which is [`Self::give_up_after`].
    ///
    /// # Errors
    /// Every value that cannot be used, of the environment and of this configuration.
    pub fn resolve(&self, variable: Lookup<'_>) -> Result<Option<Settings>, Vec<Problem>> {
        let mut reader = Reader { variable, problems: Vec::new() };
        let settings = reader.settings(self);
        if reader.problems.is_empty() { Ok(settings) } else { Err(reader.problems) }
    }
}

impl Settings {
    /// Whether traces go anywhere.
    pub fn has_traces(&self) -> bool {
        self.traces.is_some()
    }

    /// Exports nothing: the thread only empties the outboxes into the ring, for
    /// `ferrule trace show` on a node without a collector.
    pub fn local(config: &Config) -> Self {
        let config = config.clone();
        Self { traces: None, logs: None, metrics: None, resource: Vec::new(), config }
    }
}

struct Reader<'a> {
    variable: Lookup<'a>,
    problems: Vec<Problem>,
}

// === impl Reader ===

impl Reader<'_> {
    fn settings(&mut self, config: &Config) -> Option<Settings> {
        if self.parsed("OTEL_SDK_DISABLED", "is neither true nor false", boolean) == Some(true) {
            return None;
        }
        let [traces, logs, metrics] = Signal::ALL.map(|signal| self.target(config, signal));
        let resource = self.resource();
        let config = self.bounds(config);
        if traces.is_none() && logs.is_none() && metrics.is_none() {
            return None;
        }
        Some(Settings { traces, logs, metrics, resource, config })
    }

    fn target(&mut self, config: &Config, signal: Signal) -> Option<Target> {
        let signal_name = signal.name().to_uppercase();
        let exporter = format!("OTEL_{signal_name}_EXPORTER");
        let exports = self.parsed(&exporter, "is neither otlp nor none", |text| match text {
            "otlp" => Some(true),
            "none" => Some(false),
            _ => None,
        });
        let named = Named { signal: &signal_name };
        let protocol = self.of_signal(&named, "PROTOCOL", PROTOCOLS, Protocol::parse);
        let protocol = protocol.unwrap_or(config.protocol);
        let timeout = self.of_signal(&named, "TIMEOUT", MILLISECONDS, milliseconds);
        let compression = self.of_signal(&named, "COMPRESSION", COMPRESSIONS, Compression::parse);
        let certificate = self.of_signal(&named, "CERTIFICATE", "", path);
        let identity = self.of_signal(&named, "CLIENT_CERTIFICATE", "", path);
        let key = self.of_signal(&named, "CLIENT_KEY", "", path);
        let insecure = self.of_signal(&named, "INSECURE", "is neither true nor false", boolean);
        let headers = self.headers(config, &named);
        let uri = self.uri(config, &named, signal, protocol, insecure.unwrap_or_default());
        if exports == Some(false) {
            return None;
        }
        Some(Target {
            uri: uri?,
            protocol,
            headers,
            timeout: timeout.unwrap_or(config.timeout),
            compression: compression.unwrap_or(config.compression),
            certificate: certificate.or_else(|| config.certificate.clone()),
            identity: identity.zip(key),
        })
    }

    /// The variable of a signal is used as it is; to a base, the signal's path is added.
    fn uri(
        &mut self,
        config: &Config,
        named: &Named<'_>,
        signal: Signal,
        protocol: Protocol,
        insecure: bool,
    ) -> Option<Uri> {
        let (own, common) = named.pair("ENDPOINT");
        let (name, text, complete) = if let Some(text) = self.text(&own) {
            (own, text, true)
        } else if let Some(text) = self.text(&common) {
            (common, text, false)
        } else {
            ("telemetry.otlp.endpoint".to_owned(), config.endpoint.clone()?, false)
        };
        let whole = match (protocol, text.contains("://")) {
            // The specification lets gRPC's have no scheme.
            (Protocol::Grpc, false) if insecure => format!("http://{text}"),
            (Protocol::Grpc, false) => format!("https://{text}"),
            _ => text.clone(),
        };
        let path = match protocol {
            Protocol::Grpc => Some(grpc::path(signal).to_owned()),
            Protocol::HttpProtobuf if complete => None,
            Protocol::HttpProtobuf => Some(format!("/v1/{}", signal.name())),
        };
        match build_uri(&whole, path, protocol) {
            Ok(uri) => Some(uri),
            Err(reason) => {
                // Whatever stands before an @ may be a password.
                let secret = text.contains('@') || text.contains('?');
                self.problem(&name, (!secret).then_some(&text), reason);
                None
            }
        }
    }

    fn headers(&mut self, config: &Config, named: &Named<'_>) -> HeaderMap {
        const REASON: &str = "is not a list of name=value with names and values of HTTP headers";
        let (own, common) = named.pair("HEADERS");
        let from_environment = [own, common].into_iter().find_map(|name| {
            let text = self.text(&name)?;
            Some((name, list::parse(&text)))
        });
        let (name, pairs) = match from_environment {
            Some((name, Some(pairs))) => (name, pairs),
            Some((name, None)) => {
                self.problem(&name, None, REASON);
                return HeaderMap::new();
            }
            None => {
                let Headers(pairs) = &config.headers;
                ("telemetry.otlp.headers".to_owned(), pairs.clone())
            }
        };
        let mut headers = HeaderMap::new();
        for (key, value) in pairs {
            let header = HeaderName::try_from(&key).ok().zip(HeaderValue::try_from(&value).ok());
            let Some((key, mut value)) = header else {
                self.problem(&name, None, REASON);
                continue;
            };
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        headers
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let mut attributes = match self.text(NAME) {
            None => Vec::new(),
            Some(text) => list::parse(&text).unwrap_or_else(|| {
                self.problem(NAME, Some(&text), "is not a list of key=value");
                Vec::new()
            }),
        };
        if let Some(name) = self.text("OTEL_SERVICE_NAME") {
            attributes.push(("service.name".to_owned(), name));
        }
        attributes
    }

    fn bounds(&mut self, config: &Config) -> Config {
        let mut config = config.clone();
        let delay = self.parsed("OTEL_BSP_SCHEDULE_DELAY", MILLISECONDS, milliseconds);
        config.schedule_delay = delay.unwrap_or(config.schedule_delay);
        let spans = self.parsed("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", COUNT, count);
        config.batch_spans = spans.unwrap_or(config.batch_spans);
        let queue = self.parsed("OTEL_BSP_MAX_QUEUE_SIZE", COUNT, count);
        config.queue_units = queue.or(config.queue_units);
        let limit = self.parsed("OTEL_BSP_EXPORT_TIMEOUT", MILLISECONDS, milliseconds);
        config.give_up_after = limit.unwrap_or(config.give_up_after);
        let interval = self.parsed("OTEL_METRIC_EXPORT_INTERVAL", MILLISECONDS, milliseconds);
        config.metric_interval = interval.unwrap_or(config.metric_interval);
        self.check(&config);
        config
    }

    fn check(&mut self, config: &Config) {
        let positive = [
            ("timeout", config.timeout),
            ("schedule_delay", config.schedule_delay),
            ("poll", config.poll),
            ("retry_initial", config.retry_initial),
            ("metric_interval", config.metric_interval),
        ];
        for (key, duration) in positive {
            if duration.is_zero() {
                self.problem(&format!("telemetry.otlp.{key}"), None, "has to be longer than 0");
            }
        }
        let sizes = [
            ("queue_bytes", config.queue_bytes, 64 * 1024),
            ("batch_bytes", config.batch_bytes, 16 * 1024),
            ("batch_spans", config.batch_spans, 1),
        ];
        for (key, size, least) in sizes {
            if size < least {
                let name = format!("telemetry.otlp.{key}");
                self.problem(&name, Some(&size.to_string()), "is too small to send anything");
            }
        }
    }

    fn of_signal<T>(
        &mut self,
        named: &Named<'_>,
        what: &str,
        reason: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let (own, common) = named.pair(what);
        self.parsed(&own, reason, &parse).or_else(|| self.parsed(&common, reason, &parse))
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        reason: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(text.trim());
        if value.is_none() {
            self.problem(name, Some(&text), reason);
        }
        value
    }

    fn text(&mut self, name: &str) -> Option<String> {
        let value = (self.variable)(name).filter(|value| !value.is_empty())?;
        let text = value.into_string();
        if text.is_err() {
            self.problem(name, None, "is not UTF-8");
        }
        text.ok()
    }

    fn problem(&mut self, name: &str, value: Option<&str>, reason: &'static str) {
        let value = value.map_or(Shown::Hidden, |value| Shown::Value(value.to_owned()));
        let problem = Problem { name: name.to_owned(), value, reason };
        // A variable of all signals is read for each of them.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

struct Named<'a> {
    signal: &'a str,
}

impl Named<'_> {
    /// The variable of the signal and that of all.
    fn pair(&self, what: &str) -> (String, String) {
        let signal = self.signal;
        (format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}"))
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value:?} "),
            Self::Hidden => Ok(()),
        }
    }
}

const PROTOCOLS: &str = "is neither http/protobuf nor grpc";
const COMPRESSIONS: &str = "is neither none nor gzip";
const MILLISECONDS: &str = "is not a number of milliseconds above 0";
const COUNT: &str = "is not a number above 0";

fn build_uri(text: &str, path: Option<String>, protocol: Protocol) -> Result<Uri, &'static str> {
    const REASON: &str = "is not a URL with http or https and a host";
    let uri: Uri = text.parse().map_err(|_| REASON)?;
    let scheme = uri.scheme_str().unwrap_or_default();
    if !matches!(scheme, "http" | "https") || uri.host().is_none_or(str::is_empty) {
        return Err(REASON);
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("holds a user name; use a header");
    }
    let Some(path) = path else { return Ok(uri) };
    let base = match protocol {
        Protocol::Grpc => "",
        Protocol::HttpProtobuf => uri.path().trim_end_matches('/'),
    };
    let path = format!("{base}{path}");
    let authority = uri.authority().cloned().ok_or(REASON)?;
    let built = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    built.map_err(|_| REASON)
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn milliseconds(text: &str) -> Option<Duration> {
    text.parse().ok().filter(|number| *number > 0).map(Duration::from_millis)
}

fn count(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number| *number > 0)
}

fn path(text: &str) -> Option<PathBuf> {
    Some(text.into())
}

#[cfg(test)]
mod tests;
