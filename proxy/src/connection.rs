//! One client connection, from accepted socket to last byte.
//!
//! `Accepted → Admitted → Secured`: each step consumes the one before, so a handshake cannot begin
//! on a socket that was not admitted, and dropping the connection gives back what it holds.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use control::snapshot::Handlers;
use telemetry::heapwatch::{Subsystem, tagged};
use telemetry::pressure::Level;
use telemetry::work::{Kind, State};
use tokio::net::TcpStream;

use crate::copy;
use crate::downstream::{self, Downstream, From, Transport};
use crate::drain::Class;
use crate::edge::ConnectionGuard;
use crate::error::{Code, Failure};
use crate::holdings;
use crate::http::h1::{self, End, Handover};
use crate::http::h2;
use crate::http::upgrade::Switched;
use crate::identify::Route;
use crate::inventory::{self, Binding};
use crate::io::rewind::Rewind;
use crate::io::stream::Stream;
use crate::limit::HeldTunnel;
use crate::stack;
use crate::tcp;
use crate::tls::{Alpn, PortTls};
use crate::worker::{Mark, Worker};

/// A socket somebody connected to, counted against the node's bound.
pub struct Accepted {
    pub socket: TcpStream,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub guard: ConnectionGuard,
    pub mark: Mark,
}

/// A connection to a port that some app has.
struct Admitted {
    accepted: Accepted,
    binding: Binding,
    handlers: Handlers,
}

/// A connection with its handshake behind it.
struct Secured {
    stream: Stream,
    transport: Transport,
    alpn: Alpn,
}

/// What is spoken on a connection from here on.
enum Spoken {
    Http1,
    Http2,
    /// Nothing that is looked at.
    Raw,
}

/// Serves one client.
///
/// The way to the first byte, and what only some connections become, is boxed: an idle HTTP/1
/// connection is what there are most of, and this future has the size of its largest branch.
///
/// # Errors
///
/// Why it was refused or cut; whoever spawned it counts that.
pub async fn serve(accepted: Accepted, worker: Rc<Worker>) -> Result<(), Failure> {
    let mark = accepted.mark;
    let (stream, downstream, spoken, _guard) =
        Box::pin(tagged(Subsystem::Tls, begin(accepted, &worker))).await?;
    let worker = &worker;
    let beat = downstream.slot.beat();
    if let Spoken::Raw = spoken {
        worker.classify(mark, Class::Tcp);
        let serving = Box::pin(tcp::serve(stream, &downstream, worker));
        return tagged(Subsystem::Tcp, beat.note(serving)).await;
    }
    let service = stack::service(worker, downstream);
    if let Spoken::Http2 = spoken {
        worker.carries_streams(mark);
        let timeouts = &worker.edge.config.timeouts;
        let settings = h2::Settings::for_clients(&worker.edge.config.limits, timeouts.h2_idle);
        let serving = Box::pin(h2::serve(stream, service, worker, settings));
        return tagged(Subsystem::Http2, beat.note(serving)).await;
    }
    match tagged(Subsystem::Http1, beat.note(h1::serve(stream, service, worker))).await? {
        End::Closed => Ok(()),
        End::Switched(handover) => {
            worker.classify(mark, Class::WebSocket);
            Box::pin(tunnel(*handover, worker)).await
        }
    }
}

/// Admission and handshake.
async fn begin(
    accepted: Accepted,
    worker: &Worker,
) -> Result<(Stream, Rc<Downstream>, Spoken, ConnectionGuard), Failure> {
    let slot = worker.desk.open(Kind::Connection, State::Handshake);
    let Admitted { accepted, binding, handlers } = admit(accepted, worker)?;
    let Accepted { socket, peer, local, guard, mark: _ } = accepted;
    let secured = if handlers.tls {
        let securing = secure(socket, peer, local, &binding, worker);
        tagged(Subsystem::Tls, slot.beat().note(securing)).await?
    } else {
        Secured { stream: Stream::Tcp(socket), transport: Transport::Clear, alpn: Alpn::None }
    };
    let Secured { stream, transport, alpn } = secured;
    let downstream =
        Downstream::new(peer, local, transport, From::Client(binding), slot, holdings::current());
    // One that is known before its first request counts from here on; on a shared cleartext port
    // the first request tells.
    if let Some(entry) = named_app(&downstream, worker) {
        downstream.belongs_to(&entry)?;
        // With HTTP each request is asked instead, and told why not.
        if !handlers.http && worker.edge.pressure.is_at(Level::Shed) && !entry.live.may_have_more()
        {
            worker.metrics.pressure.shed.increment();
            return Err(Code::PL06.into());
        }
    }
    let spoken = match alpn {
        _ if !handlers.http => Spoken::Raw,
        Alpn::Http2 => Spoken::Http2,
        Alpn::Http11 | Alpn::Other | Alpn::None => Spoken::Http1,
    };
    Ok((stream, Rc::new(downstream), spoken, guard))
}

/// What follows a 101.
async fn tunnel(handover: Handover, worker: &Worker) -> Result<(), Failure> {
    let Handover { stream, early, switched } = handover;
    let Switched { tunnel, held, kind } = switched;
    let held = HeldTunnel::new(held);
    let mut client = Rewind::new(early, stream);
    let copied = copy::both_ways(&mut client, tunnel, kind, worker, &held.moved);
    let copied = held.note(copied).await;
    held.ended(&copied);
    copied.inspect_err(|failure| client.stream().end_after(failure))
}

/// Serves another node.
///
/// # Errors
///
/// As [`serve`].
pub async fn serve_peer(accepted: Accepted, worker: Rc<Worker>) -> Result<(), Failure> {
    let Accepted { socket, peer, local, guard: _guard, mark } = accepted;
    let slot = worker.desk.open(Kind::Connection, State::Handshake);
    let edge = worker.edge.clone();
    let Some(mesh) = &edge.mesh else { return Err(Code::PX01.into()) };
    let handshake = edge.mesh_handshakes.admit().map_err(|_| Code::PT10)?;
    let accepting = mesh.accept(socket, edge.config.timeouts.handshake);
    let (stream, node) = slot.beat().note(accepting).await?;
    drop(handshake);
    // The certificate is good; the node must also be one that this one knows.
    if edge.nodes.get(&node).is_none() {
        return Err(Code::PT04.into());
    }
    let transport = Transport::Tls { sni: None };
    let downstream = Rc::new(Downstream::new(
        peer,
        local,
        transport,
        From::Peer(node),
        slot,
        holdings::current(),
    ));
    let beat = downstream.slot.beat();
    let service = stack::service(&worker, downstream);
    worker.carries_streams(mark);
    let settings = h2::Settings::for_peers(&edge.config.limits);
    let serving = Box::pin(h2::serve(Stream::Tls(stream), service, &worker, settings));
    tagged(Subsystem::Mesh, beat.note(serving)).await
}

/// Whether anybody wants the connection; decided before any work is spent on it.
fn admit(accepted: Accepted, worker: &Worker) -> Result<Admitted, Failure> {
    let local = accepted.local;
    let address = downstream::canonical(local.ip());
    let binding = worker.edge.inventory.binding(address, local.port()).ok_or(Code::PE01)?;
    let handlers = binding.handlers();
    Ok(Admitted { accepted, binding, handlers })
}

async fn secure(
    socket: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    binding: &Binding,
    worker: &Worker,
) -> Result<Secured, Failure> {
    let client = downstream::canonical(peer.ip());
    let choose = |sni: Option<&str>| offer(sni, local.port(), binding, worker);
    let secured = worker.edge.tls.accept(socket, client, choose).await?;
    let transport = Transport::Tls { sni: secured.sni };
    Ok(Secured { stream: Stream::Tls(secured.stream), transport, alpn: secured.alpn })
}

/// What the app that `sni` names offers on this port.
fn offer(
    sni: Option<&str>,
    port: u16,
    binding: &Binding,
    worker: &Worker,
) -> Result<PortTls, Failure> {
    let inventory = &worker.edge.inventory;
    let by_name = sni.and_then(|sni| inventory.by_hostname(sni));
    let route = match binding {
        // A certificate of one app is never shown at the address of another.
        Binding::Dedicated { entry, .. } => {
            let entry = inventory.by_name(entry.app.name.as_str()).ok_or(Code::PT05)?;
            if sni.is_some() && by_name.is_none_or(|named| named.app.name != entry.app.name) {
                return Err(Code::PT05.into());
            }
            Route::find(&entry, port)
        }
        Binding::Shared { .. } => by_name.and_then(|entry| Route::find(&entry, port)),
    };
    let route = route.filter(|route| route.port().handlers.tls).ok_or(Code::PT05)?;
    let offer = worker.edge.tls.port(&route.port().tls);
    match (sni, first_name(&route)) {
        (None, Some(name)) => Ok(offer.without_sni(name)),
        _ => Ok(offer),
    }
}

/// The name that a client without SNI is served under.
fn first_name(route: &Route) -> Option<Arc<str>> {
    route.entry.app.hostnames.iter().find_map(|name| match name {
        control::snapshot::Hostname::Exact(name) => Some(name.clone()),
        control::snapshot::Hostname::Wildcard(_) => None,
    })
}

/// The app of a connection, where address, port or TLS name tell it.
fn named_app(downstream: &Downstream, worker: &Worker) -> Option<Arc<inventory::Entry>> {
    match &downstream.from {
        From::Client(Binding::Dedicated { entry, .. }) => Some(entry.clone()),
        From::Client(Binding::Shared { .. }) => {
            worker.edge.inventory.by_hostname(downstream.sni()?)
        }
        From::Peer(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a call of `function` makes, without making it.
    fn size<A, B, F: Future>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// A connection's future is memory for as long as the connection lives, so it is bounded, with
    /// a quarter of room; and from below, so that the bound stays tight.
    #[test]
    fn the_future_of_a_connection_is_small() {
        let client = size(serve);
        assert!((CLIENT_BYTES_MAX / 2..=CLIENT_BYTES_MAX).contains(&client), "{client}");
        let peer = size(serve_peer);
        assert!((PEER_BYTES_MAX / 2..=PEER_BYTES_MAX).contains(&peer), "{peer}");
    }

    const CLIENT_BYTES_MAX: usize = 600;
    const PEER_BYTES_MAX: usize = 512;
}
