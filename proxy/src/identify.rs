//! Which app is meant, and by which of its ports.
//!
//! A client's request is identified by the address it came to and the name it carries; the TLS name
//! and the request's name must mean the same app. A peer's request says which app it is for, and its
//! certificate is why it is believed.

pub mod layer;

use std::sync::Arc;

use control::snapshot::{HttpOptions, Port, Service};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{request, uri};

use crate::downstream::{Downstream, From};
use crate::error::Code;
use crate::http::authority::{self, Named};
use crate::inventory::{Binding, Entry};

/// An app, and the service and port of it that a connection or request came to.
#[derive(Clone)]
pub struct Route {
    pub entry: Arc<Entry>,
    pub service: usize,
    port: usize,
}

/// A request with everything known of where it is going.
pub struct Identity {
    pub route: Route,
    pub named: Named,
    pub origin: Origin,
}

/// Who sent a request.
pub enum Origin {
    Client,
    /// A node that has chosen an instance of ours.
    Peer {
        instance: Option<HeaderValue>,
        hops: u32,
    },
}

/// What one node tells another; stripped at the edge, so that no client can say it.
pub mod mesh {
    use super::HeaderName;

    pub const APP: HeaderName = HeaderName::from_static("ferrule-mesh-app");
    pub const PORT: HeaderName = HeaderName::from_static("ferrule-mesh-port");
    pub const INSTANCE: HeaderName = HeaderName::from_static("ferrule-mesh-instance");
    pub const HOPS: HeaderName = HeaderName::from_static("ferrule-mesh-hops");
    /// The request is to be written down in full detail here, too.
    pub const VERBOSE: HeaderName = HeaderName::from_static("ferrule-mesh-verbose");
    /// In an answer: nothing of the request reached an instance, try elsewhere; the value is the
    /// code.
    pub const REFUSED: HeaderName = HeaderName::from_static("ferrule-mesh-refused");
    /// In an answer: the instance failed and may have seen the request; the value is the code.
    pub const FAILED: HeaderName = HeaderName::from_static("ferrule-mesh-failed");
    /// In an answer: the node wants no new requests if others can take them.
    pub const DRAINING: HeaderName = HeaderName::from_static("ferrule-mesh-draining");
    /// The node asks to be told whether to send here, one byte at a time, as long as it listens.
    pub const STATE: HeaderName = HeaderName::from_static("ferrule-mesh-state");
    pub const STATE_SERVING: u8 = b's';
    pub const STATE_DRAINING: u8 = b'd';
}

// === impl Route ===

impl Route {
    /// The service of `entry` that listens on `port`.
    pub fn find(entry: &Arc<Entry>, port: u16) -> Option<Self> {
        let (service, port) = entry.port(port)?;
        Some(Self { entry: entry.clone(), service, port })
    }

    pub fn service(&self) -> &Service {
        &self.entry.app.services[self.service]
    }

    pub fn port(&self) -> &Port {
        &self.service().ports[self.port]
    }

    pub fn http(&self) -> &HttpOptions {
        &self.port().http
    }
}

/// Identifies a request and takes from its head what only nodes say to each other.
///
/// # Errors
///
/// PE01 nobody answers to the name, PE02 the name does not belong to this connection, PP02 it is no
/// name, PR02 and PR06 for peers.
pub fn identify(
    downstream: &Downstream,
    inventory: &crate::inventory::Inventory,
    head: &mut request::Parts,
    hops_max: u32,
) -> Result<Identity, Code> {
    let named = authority::of(head)?;
    match &downstream.from {
        From::Client(binding) => {
            let entry = of_client(downstream, inventory, binding, &named)?;
            let route = Route::find(&entry, downstream.local.port()).ok_or(Code::PE01)?;
            if !route.port().handlers.http {
                return Err(Code::PE01);
            }
            Ok(Identity { route, named, origin: Origin::Client })
        }
        From::Peer(_) => {
            let (route, origin) = of_peer(inventory, &mut head.headers, hops_max)?;
            Ok(Identity { route, named, origin })
        }
    }
}

fn of_client(
    downstream: &Downstream,
    inventory: &crate::inventory::Inventory,
    binding: &Binding,
    named: &Named,
) -> Result<Arc<Entry>, Code> {
    let dedicated = match binding {
        Binding::Dedicated { entry, .. } => {
            // The app may have changed since the connection was made.
            Some(inventory.by_name(entry.app.name.as_str()).ok_or(Code::PE01)?)
        }
        Binding::Shared { .. } => None,
    };
    let host = named.host();
    match downstream.sni() {
        None => dedicated.or_else(|| inventory.by_hostname(host)).ok_or(Code::PE01),
        Some(sni) if sni == host => {
            dedicated.or_else(|| inventory.by_hostname(host)).ok_or(Code::PE01)
        }
        //= https://www.rfc-editor.org/rfc/rfc9110#section-7.4
        //# a server MUST reject the request ... if the received request does not match the
        //# authenticated connection's context
        // Another name of the same app is fine: clients coalesce connections.
        Some(sni) => {
            let by_host = inventory.by_hostname(host).ok_or(Code::PE02)?;
            let by_sni = dedicated.or_else(|| inventory.by_hostname(sni)).ok_or(Code::PE02)?;
            if by_host.app.name == by_sni.app.name { Ok(by_host) } else { Err(Code::PE02) }
        }
    }
}

fn of_peer(
    inventory: &crate::inventory::Inventory,
    headers: &mut HeaderMap,
    hops_max: u32,
) -> Result<(Route, Origin), Code> {
    let text =
        |value: Option<HeaderValue>| value.and_then(|value| value.to_str().ok().map(str::to_owned));
    let hops =
        text(headers.remove(mesh::HOPS)).and_then(|hops| hops.parse().ok()).ok_or(Code::PP02)?;
    if hops >= hops_max {
        return Err(Code::PR06);
    }
    let app = text(headers.remove(mesh::APP)).ok_or(Code::PP02)?;
    let port =
        text(headers.remove(mesh::PORT)).and_then(|port| port.parse().ok()).ok_or(Code::PP02)?;
    let instance = headers.remove(mesh::INSTANCE);
    let entry = inventory.by_name(&app).ok_or(Code::PR02)?;
    let route = Route::find(&entry, port).ok_or(Code::PR02)?;
    Ok((route, Origin::Peer { instance, hops }))
}

/// The request target without scheme and authority, as HTTP/1 has it.
pub fn origin_form(uri: &uri::Uri) -> uri::Uri {
    match uri.path_and_query() {
        Some(path) => uri::Uri::from(path.clone()),
        None => uri::Uri::from_static("/"),
    }
}
