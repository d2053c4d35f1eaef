//! The header fields this edge adds and removes, in both directions.
//!
//! Towards the instance: who the client is, which no client can forge. Towards the client: who
//! served it, unless the app says `pristine`.

use std::time::SystemTime;

use bytes::Bytes;
use control::snapshot::{Compat, HeaderChange, HttpOptions, Region};
use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use telemetry::verbosity;
use ulid::Ulid;

use crate::downstream::Downstream;
use crate::http::fields;

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub const X_FORWARDED_SSL: HeaderName = HeaderName::from_static("x-forwarded-ssl");
pub const FERRULE_CLIENT_IP: HeaderName = HeaderName::from_static("ferrule-client-ip");
pub const FERRULE_REGION: HeaderName = HeaderName::from_static("ferrule-region");
pub const FERRULE_REQUEST_ID: HeaderName = HeaderName::from_static("ferrule-request-id");
pub const X_REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");
/// A token of the client's for this edge: reserved, so no instance sees it.
pub const FERRULE_TRACE: HeaderName = HeaderName::from_static(verbosity::FIELD);

const FLY_CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
const FLY_REGION: HeaderName = HeaderName::from_static("fly-region");
const FLY_REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");
const FLY_FORWARDED_PROTO: HeaderName = HeaderName::from_static("fly-forwarded-proto");
const FLY_FORWARDED_PORT: HeaderName = HeaderName::from_static("fly-forwarded-port");
const FLY_FORWARDED_SSL: HeaderName = HeaderName::from_static("fly-forwarded-ssl");

const SERVER: HeaderValue = HeaderValue::from_static("ferrule");

/// Fields added to a request, the trace context with them, so that the map grows once.
const ADDED_FIELDS: usize = 11;

/// What this node writes into every request.
pub struct Identity {
    region: HeaderValue,
    region_name: Region,
}

// === impl Identity ===

impl Identity {
    pub fn new(region: &Region) -> Self {
        let value = HeaderValue::from_str(region.as_str())
            .expect("a region is made of letters, digits and dashes");
        Self { region: value, region_name: region.clone() }
    }

    /// A new request id: ULID and region.
    pub fn request_id(&self) -> HeaderValue {
        let mut text = String::with_capacity(27 + self.region_name.as_str().len());
        let mut ulid = [0; ulid::ULID_LEN];
        text.push_str(Ulid::new().array_to_str(&mut ulid));
        text.push('-');
        text.push_str(self.region_name.as_str());
        let mut value = HeaderValue::from_maybe_shared(Bytes::from(text))
            .expect("a ULID and a region are visible ASCII");
        // Unique, so of no use in an HPACK table.
        value.set_sensitive(true);
        value
    }

    /// Rewrites a client's request fields into what the instance sees.
    pub fn rewrite_request(
        &self,
        headers: &mut HeaderMap,
        version: Version,
        downstream: &Downstream,
        compat: Compat,
        request_id: &HeaderValue,
    ) {
        fields::strip_hop_by_hop(headers);
        fields::strip_reserved(headers);
        // The expectation is met here: the server asks the client for its body when it is wanted.
        headers.remove(header::EXPECT);
        headers.reserve(ADDED_FIELDS);
        let (proto, ssl) = if downstream.is_secure() { ("https", "on") } else { ("http", "off") };
        let (proto, ssl) = (HeaderValue::from_static(proto), HeaderValue::from_static(ssl));
        let client = &downstream.forwarded;
        headers.insert(X_FORWARDED_FOR, client.client_ip.clone());
        headers.insert(FERRULE_CLIENT_IP, client.client_ip.clone());
        headers.insert(X_FORWARDED_PORT, client.port.clone());
        headers.insert(X_FORWARDED_PROTO, proto.clone());
        headers.insert(X_FORWARDED_SSL, ssl.clone());
        headers.insert(FERRULE_REGION, self.region.clone());
        headers.insert(FERRULE_REQUEST_ID, request_id.clone());
        headers.insert(X_REQUEST_START, request_start());
        headers.append(header::VIA, via(version));
        if compat == Compat::Fly {
            headers.insert(FLY_CLIENT_IP, client.client_ip.clone());
            headers.insert(FLY_FORWARDED_PORT, client.port.clone());
            headers.insert(FLY_FORWARDED_PROTO, proto);
            headers.insert(FLY_FORWARDED_SSL, ssl);
            headers.insert(FLY_REGION, self.region.clone());
            headers.insert(FLY_REQUEST_ID, request_id.clone());
        }
    }
}

/// Rewrites an instance's response fields into what the client sees.
pub fn rewrite_response(
    headers: &mut HeaderMap,
    upstream: Version,
    options: &HttpOptions,
    compat: Compat,
    request_id: &HeaderValue,
) {
    strip_response(headers);
    for (name, change) in &options.response_headers {
        apply(headers, name, change);
    }
    if options.pristine {
        return;
    }
    headers.append(header::VIA, via(upstream));
    headers.insert(header::SERVER, SERVER);
    headers.insert(FERRULE_REQUEST_ID, request_id.clone());
    if compat == Compat::Fly {
        headers.insert(FLY_REQUEST_ID, request_id.clone());
    }
}

/// Marks an answer of our own.
pub fn sign_response(headers: &mut HeaderMap, request_id: &HeaderValue) {
    headers.insert(header::SERVER, SERVER);
    headers.insert(FERRULE_REQUEST_ID, request_id.clone());
}

/// What ends at this hop, `te`, which means nothing in a response, and tokens, which are between the
/// client and this edge.
pub fn strip_response(headers: &mut HeaderMap) {
    fields::strip_hop_by_hop(headers);
    // Rare, so that looking at the names is cheaper than asking the map twice.
    if headers.keys().any(|name| matches!(name.as_str(), "te" | verbosity::FIELD)) {
        headers.remove(header::TE);
        headers.remove(FERRULE_TRACE);
    }
}

fn apply(headers: &mut HeaderMap, name: &str, change: &HeaderChange) {
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { return };
    headers.remove(&name);
    if let HeaderChange::Set(values) = change {
        for value in values {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(&name, value);
            }
        }
    }
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_2 => "2 ferrule",
        Version::HTTP_10 => "1.0 ferrule",
        _ => "1.1 ferrule",
    })
}

/// `t=` and microseconds since the epoch.
fn request_start() -> HeaderValue {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Digits by hand: the formatter costs more than all fields around this one.
    let mut text = [b'0'; 22];
    let (mut at, mut micros) = (text.len(), since_epoch.as_micros() as u64);
    while micros > 0 || at == text.len() {
        at -= 1;
        text[at] = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    at -= 2;
    text[at..at + 2].copy_from_slice(b"t=");
    let mut value = HeaderValue::from_bytes(&text[at..]).expect("digits are visible ASCII");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::downstream::{From, Transport};

    fn downstream() -> Downstream {
        Downstream::new(
            "198.51.100.9:4711".parse().unwrap(),
            "198.51.100.1:443".parse().unwrap(),
            Transport::Tls { sni: None },
            From::Peer(control::snapshot::NodeId::new("unused")),
            crate::downstream::unlisted(),
            std::rc::Rc::default(),
        )
    }

    #[test]
    fn the_instance_sees_exactly_what_this_edge_says_of_the_client() {
        let identity = Identity::new(&Region::new("ams"));
        let id = identity.request_id();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "a.test"),
            ("accept", "*/*"),
            ("x-forwarded-for", "1.1.1.1"),
            ("ferrule-client-ip", "1.1.1.1"),
            ("expect", "100-continue"),
            ("connection", "x-forwarded-for, close"),
            ("via", "1.1 cdn"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        identity.rewrite_request(
            &mut headers,
            Version::HTTP_2,
            &downstream(),
            Compat::Ferrule,
            &id,
        );
        let start = headers.remove(X_REQUEST_START).unwrap();
        assert!(start.to_str().unwrap().starts_with("t=1"));
        let mut seen: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        seen.sort();
        let id = id.to_str().unwrap();
        let expected = [
            "accept: */*".to_owned(),
            "ferrule-client-ip: 198.51.100.9".to_owned(),
            "ferrule-region: ams".to_owned(),
            format!("ferrule-request-id: {id}"),
            "host: a.test".to_owned(),
            "via: 1.1 cdn".to_owned(),
            "via: 2 ferrule".to_owned(),
            "x-forwarded-for: 198.51.100.9".to_owned(),
            "x-forwarded-port: 443".to_owned(),
            "x-forwarded-proto: https".to_owned(),
            "x-forwarded-ssl: on".to_owned(),
        ];
        assert_eq!(seen, expected);
        assert!(id.ends_with("-ams") && id.len() == 26 + 4, "{id}");
    }

    #[test]
    fn the_apps_policy_is_applied_to_responses() {
        let identity = Identity::new(&Region::new("ams"));
        let team = HeaderChange::Set(vec![Arc::from("edge"), Arc::from("core")]);
        let mut options = HttpOptions {
            response_headers: vec![
                (Arc::from("x-powered-by"), HeaderChange::Remove),
                (Arc::from("x-team"), team),
            ],
            ..HttpOptions::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-powered-by", HeaderValue::from_static("php"));
        headers.insert("server", HeaderValue::from_static("nginx"));
        headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
        headers.insert(FERRULE_TRACE, HeaderValue::from_static("v1.k.e30.AAAA"));
        let mut pristine = headers.clone();
        let id = identity.request_id();
        rewrite_response(&mut headers, Version::HTTP_11, &options, Compat::Ferrule, &id);
        assert_eq!(headers["server"], "ferrule");
        assert_eq!(headers["via"], "1.1 ferrule");
        assert_eq!(headers["ferrule-request-id"], id);
        assert_eq!(headers.get_all("x-team").iter().count(), 2);
        assert!(!headers.contains_key("x-powered-by") && !headers.contains_key("keep-alive"));
        options.pristine = true;
        rewrite_response(&mut pristine, Version::HTTP_11, &options, Compat::Ferrule, &id);
        assert_eq!(pristine["server"], "nginx");
        assert!(!pristine.contains_key("via") && !pristine.contains_key("ferrule-request-id"));
        assert!(!headers.contains_key(FERRULE_TRACE) && !pristine.contains_key(FERRULE_TRACE));
    }
}
