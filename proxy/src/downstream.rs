//! What is known of a client's connection before its first request; shared by all of them.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crate::holdings::Holdings;
use control::snapshot::{AppName, NodeId};
use http::HeaderValue;
use telemetry::work::{Desk, Kind, Slot, State};

use crate::error::Failure;
use crate::inventory::{self, Binding, Entry};

/// One client connection.
pub struct Downstream {
    /// Who the socket says is on the other side.
    pub peer: SocketAddr,
    /// The address and port that were connected to.
    pub local: SocketAddr,
    pub transport: Transport,
    pub from: From,
    /// Ready-made values of the forwarding headers.
    pub forwarded: Forwarded,
    /// What it waits for, for whoever asks.
    pub slot: Slot,
    holdings: Rc<Holdings>,
    /// Requests that have begun and not ended.
    requests: Cell<u32>,
    /// The app it counts for.
    app: RefCell<Option<Counted>>,
}

/// A request of a connection on the list of what is going on, until dropped.
pub struct Live {
    pub slot: Slot,
    downstream: Rc<Downstream>,
}

struct Counted {
    app: AppName,
    _guard: inventory::ConnectionGuard,
}

/// Cleartext, or TLS with the name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    Clear,
    Tls { sni: Option<Arc<str>> },
}

/// Whether a stranger connected, or another node of this edge.
pub enum From {
    /// A client, at an address and port that mean this.
    Client(Binding),
    /// The node that its certificate names.
    Peer(NodeId),
}

/// Header values that are the same for every request of a connection.
pub struct Forwarded {
    pub client_ip: HeaderValue,
    pub port: HeaderValue,
}

// === impl Downstream ===

impl Downstream {
    pub fn new(
        peer: SocketAddr,
        local: SocketAddr,
        transport: Transport,
        from: From,
        slot: Slot,
        holdings: Rc<Holdings>,
    ) -> Self {
        slot.enter(State::Idle);
        let text = |value: String| {
            HeaderValue::from_maybe_shared(bytes::Bytes::from(value))
                .expect("addresses and numbers are visible ASCII")
        };
        let forwarded = Forwarded {
            client_ip: text(canonical(peer.ip()).to_string()),
            port: text(local.port().to_string()),
        };
        let (requests, app) = (Cell::new(0), RefCell::default());
        Self { peer, local, transport, from, forwarded, slot, holdings, requests, app }
    }

    /// Lists one more request.
    pub fn begin_request(self: &Rc<Self>, desk: &Desk) -> Live {
        let before = self.requests.replace(self.requests.get() + 1);
        if before == 0 {
            self.slot.enter(State::Serving);
        }
        Live { slot: desk.open(Kind::Request, State::Identify), downstream: self.clone() }
    }

    /// Counts this connection for the app of `entry`, and no longer for another one.
    ///
    /// # Errors
    ///
    /// PL04 when the app has as many connections as it may.
    pub fn belongs_to(&self, entry: &Entry) -> Result<(), Failure> {
        let mut counted = self.app.borrow_mut();
        if counted.as_ref().is_some_and(|counted| counted.app == entry.app.name) {
            return Ok(());
        }
        let guard = entry.live.connect()?;
        self.slot.belongs_to(entry.live.id());
        self.holdings.belong_to(&entry.live);
        *counted = Some(Counted { app: entry.app.name.clone(), _guard: guard });
        Ok(())
    }

    pub fn is_secure(&self) -> bool {
        matches!(self.transport, Transport::Tls { .. })
    }

    pub fn sni(&self) -> Option<&str> {
        match &self.transport {
            Transport::Tls { sni } => sni.as_deref(),
            Transport::Clear => None,
        }
    }
}

// === impl Live ===

impl Live {
    /// Work that goes on when neither the request nor its connection is served as HTTP any more: each
    /// poll of it is one of both.
    pub fn note<F: Future>(&self, work: F) -> impl Future<Output = F::Output> {
        self.slot.beat().note(self.downstream.slot.beat().note(work))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let requests = &self.downstream.requests;
        requests.set(requests.get() - 1);
        if requests.get() == 0 {
            self.downstream.slot.enter(State::Idle);
        }
    }
}

/// A line on no list, for what is tried outside a worker.
#[cfg(any(test, fuzzing, feature = "micro"))]
pub(crate) fn unlisted() -> Slot {
    telemetry::work::Board::new(1, 0).desk(0).open(Kind::Connection, State::Handshake)
}

/// An IPv4 client of a dual-stack socket is an IPv4 client.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
