//! Parsed heads: the name a request is for, and the fields that pass this hop.

use std::net::Ipv6Addr;

use control::snapshot::{Compat, HttpOptions, NodeId, Region};
use http::header::{self, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri, Version, request};

use super::header_map;
use crate::body::Body;
use crate::config::Limits;
use crate::downstream::{Downstream, From, Transport};
use crate::http::authority::{self, Named};
use crate::http::fields::{self, strip_hop_by_hop, strip_reserved};
use crate::http::forward::{self, Identity};
use crate::http::upgrade;

/// The first line is the request target, every other one a `Host`. What is accepted is one valid
/// name, the same wherever it was said.
pub fn authority(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else { return };
    let hosts = lines.filter_map(|line| HeaderValue::from_bytes(line).ok());
    let mut head = head(uri);
    head.headers.extend(hosts.map(|host| (HOST, host)));
    let Ok(named) = authority::of(&head) else { return };
    check_name(&named);
    let spelled = named.authority.as_str();
    for same in [of_host(spelled), of_target(spelled)] {
        assert_eq!(same.as_ref().map(Named::host), Some(named.host()), "said elsewhere");
    }
    let again = of_host(named.host());
    assert_eq!(again.as_ref().map(Named::host), Some(named.host()), "idempotent");
    assert_eq!(crate::tls::offer::normal(named.host()), named.host(), "as a TLS name");
}

fn check_name(named: &Named) {
    let host = named.host();
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').expect("a bracket is closed");
        assert!(address.parse::<Ipv6Addr>().is_ok(), "{host} is no address");
        return;
    }
    let is_name_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_name_byte);
    assert!(host.split('.').all(is_label), "{host:?} is no name");
}

fn of_host(text: &str) -> Option<Named> {
    let mut head = head(Uri::from_static("/"));
    head.headers.insert(HOST, HeaderValue::from_str(text).ok()?);
    authority::of(&head).ok()
}

fn of_target(text: &str) -> Option<Named> {
    let uri = Uri::builder().scheme("http").authority(text).path_and_query("/").build().ok()?;
    authority::of(&head(uri)).ok()
}

fn head(uri: Uri) -> request::Parts {
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    request.into_parts().0
}

/// What a client says in `name: value` lines leaves this hop without its hop-by-hop fields and with
/// exactly one word on who the client is.
pub fn fields(bytes: &[u8]) {
    let before = header_map(bytes);
    for (compat, transport) in [
        (Compat::Ferrule, Transport::Clear),
        (Compat::Fly, Transport::Clear),
        (Compat::Fly, Transport::Tls { sni: None }),
    ] {
        check_request(&before, compat, transport);
    }
    check_stripping(&before);
    check_response(&before);
    check_upgrade(&before);
    let mut detached = before.clone();
    fields::detach(&mut detached);
    assert_eq!(detached, before, "detaching changes nothing");
}

fn check_request(before: &HeaderMap, compat: Compat, transport: Transport) {
    let node = From::Peer(NodeId::new("unused"));
    let peer = "198.51.100.9:4711".parse().expect("an address");
    let local = "198.51.100.1:443".parse().expect("an address");
    let downstream = Downstream::new(
        peer,
        local,
        transport,
        node,
        crate::downstream::unlisted(),
        std::rc::Rc::default(),
    );
    let identity = Identity::new(&Region::new("ams"));
    let id = identity.request_id();
    let mut after = before.clone();
    identity.rewrite_request(&mut after, Version::HTTP_11, &downstream, compat, &id);
    let secure = downstream.is_secure();
    let (proto, ssl) = if secure { ("https", "on") } else { ("http", "off") };
    let id = id.to_str().expect("visible ASCII");
    let ours = [
        ("x-forwarded-for", "198.51.100.9"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-proto", proto),
        ("x-forwarded-ssl", ssl),
        ("ferrule-client-ip", "198.51.100.9"),
        ("ferrule-region", "ams"),
        ("ferrule-request-id", id),
    ];
    let theirs = [
        ("fly-client-ip", "198.51.100.9"),
        ("fly-forwarded-port", "443"),
        ("fly-forwarded-proto", proto),
        ("fly-forwarded-ssl", ssl),
        ("fly-region", "ams"),
        ("fly-request-id", id),
    ];
    let fly = if compat == Compat::Fly { &theirs[..] } else { &[] };
    for (name, value) in ours.iter().chain(fly) {
        let values: Vec<_> = after.get_all(*name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
    assert_eq!(after.get_all("x-request-start").iter().count(), 1);
    assert!(!after.contains_key(header::EXPECT));
    let expected = ours.len() + fly.len() + 1;
    let reserved = after.iter().filter(|(name, _)| is_about_the_client(name)).count();
    assert_eq!(reserved, expected, "nothing but ours says who the client is: {after:?}");
    check_nothing_ends_here(before, &after, &ours);
}

/// Every spelling of a name that some server takes for one of these.
fn is_about_the_client(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    let prefixes = ["x-forwarded-", "ferrule-", "fly-"];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        || ["forwarded", "x-real-ip", "x-request-start", "x-client-ip"].contains(&&*name)
}

fn check_nothing_ends_here(before: &HeaderMap, after: &HeaderMap, ours: &[(&str, &str)]) {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ] {
        assert!(!after.contains_key(name), "{name}");
    }
    let te: Vec<_> = after.get_all(header::TE).iter().collect();
    assert!(te.is_empty() || te == ["trailers"], "{te:?}");
    let named = before
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    for name in named {
        let Ok(name) = HeaderName::from_bytes(name) else { continue };
        let stays = [HOST, header::CONTENT_LENGTH, header::TE, header::VIA];
        let is_ours = ours.iter().any(|(ours, _)| name == *ours) || is_about_the_client(&name);
        assert!(stays.contains(&name) || is_ours || !after.contains_key(&name), "{name}");
    }
    for name in [HOST, header::CONTENT_LENGTH] {
        let (was, is) = (before.get_all(&name), after.get_all(&name));
        assert!(was.iter().eq(is.iter()), "{name} is not the client's to remove");
    }
}

fn check_stripping(before: &HeaderMap) {
    let mut once = before.clone();
    strip_hop_by_hop(&mut once);
    strip_reserved(&mut once);
    assert!(once.len() <= before.len());
    let mut twice = once.clone();
    strip_hop_by_hop(&mut twice);
    strip_reserved(&mut twice);
    assert_eq!(once, twice, "stripping is idempotent");
}

/// What HTTP/2 lets through is what HTTP/1 can say, within the limits.
fn check_response(before: &HeaderMap) {
    let limits = Limits::default();
    let mut head = head(Uri::from_static("/"));
    (head.version, head.headers) = (Version::HTTP_2, before.clone());
    if fields::check_request(&head, &limits).is_ok() {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(head.headers.len() <= limits.header_fields_max);
        assert!(head.headers.keys().all(|name| name.as_str().bytes().all(is_token)), "a token");
        for name in [HOST, header::CONTENT_LENGTH] {
            assert!(head.headers.get_all(&name).iter().count() <= 1, "two of {name}");
        }
    }
    let mut after = before.clone();
    let id = HeaderValue::from_static("id");
    let options = HttpOptions::default();
    forward::rewrite_response(&mut after, Version::HTTP_11, &options, Compat::Ferrule, &id);
    check_nothing_ends_here(before, &after, &[("ferrule-request-id", "id"), ("server", "ferrule")]);
    assert!(!after.contains_key(header::TE));
    for (name, value) in [("ferrule-request-id", "id"), ("server", "ferrule")] {
        let values: Vec<_> = after.get_all(name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
}

/// A protocol that is asked for is one protocol.
fn check_upgrade(before: &HeaderMap) {
    let mut head = head(Uri::from_static("/"));
    (head.method, head.headers) = (Method::GET, before.clone());
    let Some(protocol) = upgrade::requested(&head, &Body::Empty) else { return };
    let is_allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~/".contains(&byte)
    };
    assert!(
        !protocol.is_empty() && protocol.bytes().all(is_allowed),
        "{protocol:?} is no protocol"
    );
    assert!(&*protocol != "h2c" && &*protocol != upgrade::RAW, "{protocol}");
}
