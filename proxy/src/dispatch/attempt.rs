//! One attempt: where it goes, and what its head says there.

use std::net::SocketAddr;

use control::snapshot::ConcurrencyKind;
use http::header::{HOST, HeaderValue};
use http::uri::{Scheme, Uri};
use http::{Version, request};

use super::Exchange;
use crate::balance::Assignment;
use crate::error::{Code, Failure};
use crate::http::fields;
use crate::identify::{Origin, mesh, origin_form};
use crate::inventory::Place;
use crate::trace::Trace;
use crate::upstream::{Target, Transport};

impl Exchange<'_> {
    pub(super) fn target(&self, assignment: &Assignment) -> Result<Target, Failure> {
        let route = &self.request.identity.route;
        let service = route.service();
        let instance = &assignment.candidate.instance;
        match &assignment.candidate.place {
            Place::Local => {
                let transport = if route.http().h2_backend {
                    Transport::H2c
                } else {
                    Transport::Http1 {
                        reuse: service.concurrency.kind == ConcurrencyKind::Requests,
                    }
                };
                let address = SocketAddr::new(instance.address, service.internal_port);
                Ok(Target { address, transport })
            }
            Place::Remote(node) => {
                Ok(Target { address: node.address, transport: Transport::Mesh(node.clone()) })
            }
            Place::Unknown => Err(Code::PX01.into()), // never assigned
        }
    }

    /// Request target, host and version as the transport wants them.
    pub(super) fn address_head(
        &self,
        head: &mut request::Parts,
        target: &Target,
        assignment: &Assignment,
    ) -> Result<(), Failure> {
        let named = &self.request.identity.named;
        match &target.transport {
            Transport::Http1 { .. } => {
                head.uri = origin_form(&head.uri);
                head.version = Version::HTTP_11;
                head.headers.insert(HOST, host(named.authority.as_str())?);
                fields::join_cookies(&mut head.headers);
            }
            Transport::H2c => {
                head.uri = self.absolute(&head.uri, Scheme::HTTP)?;
                head.version = Version::HTTP_2;
                head.headers.remove(HOST);
            }
            Transport::Mesh(_) => {
                head.uri = self.absolute(&head.uri, Scheme::HTTPS)?;
                head.version = Version::HTTP_2;
                head.headers.remove(HOST);
                self.address_peer(head, assignment);
            }
        }
        Ok(())
    }

    /// What the peer needs in order to find the same instance, and to end a loop.
    fn address_peer(&self, head: &mut request::Parts, assignment: &Assignment) {
        let identity = &self.request.identity;
        let port = &self.request.downstream.forwarded.port;
        let value = |text: &str| HeaderValue::from_str(text).ok();
        let hops = match identity.origin {
            Origin::Client => 0,
            Origin::Peer { hops, .. } => hops + 1,
        };
        head.headers.insert(mesh::PORT, port.clone());
        head.headers.insert(mesh::HOPS, HeaderValue::from(hops));
        if self.request.held.trace.as_ref().is_some_and(Trace::is_wanted) {
            head.headers.insert(mesh::VERBOSE, HeaderValue::from_static("1"));
        }
        if let Some(app) = value(identity.route.entry.app.name.as_str()) {
            head.headers.insert(mesh::APP, app);
        }
        if let Some(instance) = value(assignment.candidate.instance.id.as_str()) {
            head.headers.insert(mesh::INSTANCE, instance);
        }
    }

    fn absolute(&self, uri: &Uri, scheme: Scheme) -> Result<Uri, Failure> {
        if uri.authority().is_some() && uri.scheme() == Some(&scheme) {
            return Ok(uri.clone());
        }
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(self.request.identity.named.authority.clone());
        parts.path_and_query = uri
            .path_and_query()
            .cloned()
            .or_else(|| Some(http::uri::PathAndQuery::from_static("/")));
        Uri::from_parts(parts).map_err(|error| Failure::new(Code::PP02).because(error))
    }
}

fn host(authority: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(authority).map_err(|error| Failure::new(Code::PP02).because(error))
}
