//! Attributes by the semantic conventions, and ferrule's own.

use opentelemetry::{KeyValue, Value as OtelValue};
use opentelemetry_semantic_conventions::attribute as convention;

use super::source::Exportable;
use crate::record::model::{Exposed, Protocol, Value, Verbosity};

/// Attributes under construction.
pub(super) struct Attributes(Vec<KeyValue>);

// === impl Attributes ===

impl Attributes {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    pub(super) fn put(&mut self, key: &'static str, value: impl Into<OtelValue>) {
        self.0.push(KeyValue::new(key, value));
    }

    fn put_some(&mut self, key: &'static str, value: Option<impl Into<OtelValue>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    pub(super) fn fields(&mut self, fields: &[(&'static str, Value<'_>)]) {
        for (key, value) in fields {
            self.put(key, of_value(value));
        }
    }

    pub(super) fn finish(mut self) -> Vec<KeyValue> {
        self.0.shrink_to_fit();
        self.0
    }
}

/// What is known of a request, whether or not anything was written down while it ran.
pub(super) fn of_request(record: &dyn Exportable) -> Attributes {
    let wide = record.wide();
    let mut attributes = Attributes::with_capacity(24);
    let (name, version) = protocol(wide.protocol);
    if wide.protocol != Protocol::Tcp {
        attributes.put(convention::HTTP_REQUEST_METHOD, wide.method.as_str());
        attributes.put(convention::URL_SCHEME, if wide.tls { "https" } else { "http" });
    }
    attributes.put_some(convention::NETWORK_PROTOCOL_NAME, name);
    attributes.put_some(convention::NETWORK_PROTOCOL_VERSION, version);
    attributes.put_some(convention::HTTP_RESPONSE_STATUS_CODE, wide.status.map(i64::from));
    // The conventions: the code of what went wrong, or else the status that says so.
    let error = wide.error.map(OtelValue::from);
    let status = wide.status.filter(|status| *status >= 500);
    let error = error.or_else(|| status.map(|status| status.to_string().into()));
    attributes.put_some(convention::ERROR_TYPE, error);
    attributes.put(convention::HTTP_REQUEST_BODY_SIZE, unsigned(wide.request_bytes));
    attributes.put(convention::HTTP_RESPONSE_BODY_SIZE, unsigned(wide.response_bytes));
    if let Some(exposed) = &wide.exposed {
        expose(&mut attributes, exposed);
    }
    attributes.put("ferrule.request_id", wide.request_id.as_str().to_owned());
    attributes.put_some("ferrule.app", wide.app.clone());
    attributes.put_some("ferrule.instance", wide.instance.clone());
    attributes.put_some("ferrule.node", wide.node.clone());
    attributes.put("ferrule.attempts", i64::from(wide.attempts));
    let head = wide.head_after.map(|after| after.as_secs_f64());
    attributes.put_some("ferrule.head_after_seconds", head);
    kept(&mut attributes, record);
    if record.segment() > 0 {
        attributes.put("ferrule.segment", i64::from(record.segment()));
    }
    attributes
}

/// What a segment says of a request that goes on.
pub(super) fn of_segment(record: &dyn Exportable) -> Attributes {
    let wide = record.wide();
    let mut attributes = Attributes::with_capacity(8);
    attributes.put("ferrule.request_id", wide.request_id.as_str().to_owned());
    attributes.put_some("ferrule.app", wide.app.clone());
    kept(&mut attributes, record);
    attributes.put("ferrule.segment", i64::from(record.segment()));
    attributes.put("ferrule.open", true);
    attributes
}

fn kept(attributes: &mut Attributes, record: &dyn Exportable) {
    attributes.put("ferrule.keep", record.keep().as_str());
    let verbosity = match record.wide().verbosity {
        Verbosity::Wide => "wide",
        Verbosity::Normal => "normal",
        Verbosity::Verbose => "verbose",
    };
    attributes.put("ferrule.verbosity", verbosity);
    let (entries, bytes) = record.cut();
    if entries > 0 {
        attributes.put("ferrule.entries_cut", i64::from(entries));
        attributes.put("ferrule.bytes_cut", i64::from(bytes));
    }
}

/// An upper bound of what `attributes` take in the protocol's encoding.
pub(super) fn wire_len(attributes: &[KeyValue]) -> usize {
    // Two tags and lengths around, one each in front of key and value, at most 4 bytes long.
    const ATTRIBUTE: usize = 20;
    attributes.iter().map(|pair| ATTRIBUTE + pair.key.as_str().len() + text_len(&pair.value)).sum()
}

/// Bytes of memory `attributes` hold.
pub(super) fn memory_len(attributes: &Vec<KeyValue>) -> usize {
    let text: usize = attributes.iter().map(|pair| text_len(&pair.value)).sum();
    attributes.capacity() * size_of::<KeyValue>() + text
}

/// Name and version, the name only where it is not HTTP.
fn protocol(protocol: Protocol) -> (Option<&'static str>, Option<&'static str>) {
    match protocol {
        Protocol::Http1 => (None, Some("1.1")),
        Protocol::Http2 | Protocol::Mesh => (None, Some("2")),
        Protocol::WebSocket => (Some("websocket"), None),
        Protocol::Tcp => (Some("tcp"), None),
    }
}

fn expose(attributes: &mut Attributes, exposed: &Exposed) {
    let Exposed { client, host, path, query, user_agent } = exposed;
    let owned = |text: &Option<Box<str>>| text.as_deref().map(str::to_owned);
    attributes.put_some(convention::CLIENT_ADDRESS, client.map(|client| client.to_string()));
    if let Some((address, port)) = host.as_deref().map(split_host) {
        attributes.put(convention::SERVER_ADDRESS, address.to_owned());
        attributes.put_some(convention::SERVER_PORT, port.map(i64::from));
    }
    attributes.put_some(convention::URL_PATH, owned(path));
    attributes.put_some(convention::URL_QUERY, owned(query));
    attributes.put_some(convention::USER_AGENT_ORIGINAL, owned(user_agent));
}

/// Address, without the brackets of IPv6, and port of an authority.
fn split_host(host: &str) -> (&str, Option<u16>) {
    let (address, port) = match host.rsplit_once(':') {
        Some((address, port)) if !port.contains(']') => match port.parse() {
            Ok(port) => (address, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    };
    let inner = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
    (inner.unwrap_or(address), port)
}

fn of_value(value: &Value<'_>) -> OtelValue {
    match *value {
        Value::Bool(value) => value.into(),
        Value::Unsigned(value) => unsigned(value).into(),
        Value::Signed(value) => value.into(),
        Value::Float(value) => value.into(),
        Value::Static(value) => value.into(),
        Value::Catalogued(value) | Value::Exposed(value) => value.to_owned().into(),
    }
}

/// The protocol has signed integers only.
fn unsigned(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn text_len(value: &OtelValue) -> usize {
    match value {
        OtelValue::String(text) => text.as_str().len(),
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_an_address_and_maybe_a_port() {
        for (host, address, port) in [
            ("hello.example", "hello.example", None),
            ("hello.example:8443", "hello.example", Some(8443)),
            ("[2001:db8::1]:443", "2001:db8::1", Some(443)),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("hello.example:x", "hello.example:x", None),
            ("hello.example:99999", "hello.example:99999", None),
        ] {
            assert_eq!(split_host(host), (address, port), "{host}");
        }
    }

    #[test]
    fn numbers_that_the_protocol_cannot_hold_are_its_largest() {
        assert_eq!(of_value(&Value::Unsigned(u64::MAX)), OtelValue::I64(i64::MAX));
        assert_eq!(of_value(&Value::Signed(-3)), OtelValue::I64(-3));
    }
}
