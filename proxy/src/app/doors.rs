//! How clients get in: steered to one group of sockets, or through a socket per address and port.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ebpf_filter::{FilterError, Steering};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::ListenMode;
use crate::edge::Edge;
use crate::filter::kernel_config;
use crate::handoff::{Held, Inherited, Legacy, Place};
use crate::inventory::PortsInUse;
use crate::listener::sockets::{self, BindError, Sockets};
use crate::listener::steer::{Family, Group, Slots, Steered};
use crate::listener::{Listening, Stance};
use telemetry::error::chain;

/// The doors before anybody may come in.
pub(super) struct Closed {
    kind: Kind<(Group, Kernel)>,
    reason: Option<String>,
}

/// The open doors; the control thread owns them.
pub(super) struct Doors {
    kind: Kind<Steered<Kernel>>,
    /// Why they are not steered, where that was wanted if possible.
    reason: Option<String>,
}

/// The door for other nodes.
pub(super) struct PeerDoor {
    socket: Arc<TcpListener>,
    _held: Held,
}

enum Kind<S> {
    Bound(Sockets),
    Steered(S),
}

/// Why connections cannot be steered here.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error("the listening group cannot be opened")]
    Sockets(#[source] BindError),
    #[error("the kernel does not steer")]
    Kernel(#[source] FilterError),
}

/// The slots of the program that steers.
struct Kernel {
    steering: Steering,
    config: ebpf_filter::Config,
}

// === impl Closed ===

impl Closed {
    /// Takes from the kernel what they need. Nothing arrives yet.
    ///
    /// # Errors
    ///
    /// When steering was demanded and cannot be had.
    pub(super) fn prepare(
        edge: &Edge,
        inherited: &mut Inherited,
        legacy: &Legacy,
    ) -> Result<Self, SteerError> {
        let listen = &edge.config.listen;
        let reason = match listen.mode {
            ListenMode::Steer => {
                return Ok(Self { kind: Kind::Steered(steering(edge, inherited)?), reason: None });
            }
            ListenMode::Auto if !listen.prefixes.is_empty() => match steering(edge, inherited) {
                Ok(steering) => return Ok(Self { kind: Kind::Steered(steering), reason: None }),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(%error, "connections are not steered; each port is bound");
                    Some(error)
                }
            },
            // Nothing is missing: there is nothing to steer, or it is not wanted.
            ListenMode::Auto | ListenMode::Bind => None,
        };
        let sockets = Sockets::new(listen, edge.inventory.ports(), legacy.clone());
        Ok(Self { kind: Kind::Bound(sockets), reason })
    }

    /// Lets connections come to the workers.
    ///
    /// # Errors
    ///
    /// When the kernel does not take the sockets that it is to steer to.
    pub(super) fn open(
        self,
        edge: &Edge,
        give: &mut impl FnMut(Listening),
        inherited: &mut Inherited,
        legacy: &Legacy,
    ) -> Result<Doors, SteerError> {
        let Self { kind, reason } = self;
        let kind = match kind {
            Kind::Bound(mut sockets) => {
                sockets.follow(give, inherited);
                stop_steering(edge);
                Kind::Bound(sockets)
            }
            Kind::Steered((group, kernel)) => {
                Kind::Steered(group.serve(kernel, give, legacy).map_err(SteerError::Kernel)?)
            }
        };
        Ok(Doors { kind, reason })
    }
}

/// What an earlier process steered goes past the sockets that are bound now.
pub(super) fn stop_steering(edge: &Edge) {
    if let Err(error) = Steering::detach(&kernel_config(&edge.config).pins) {
        let error = chain(&error);
        tracing::warn!(%error, "an earlier node's steering stays; the prefixes are not reached");
    }
}

fn steering(edge: &Edge, inherited: &mut Inherited) -> Result<(Group, Kernel), SteerError> {
    let config = &edge.config;
    let group = Group::open(&config.listen, config.node.workers, inherited);
    let group = group.map_err(SteerError::Sockets)?;
    let config = kernel_config(config);
    let steering = Steering::open(&config).map_err(SteerError::Kernel)?;
    Ok((group, Kernel { steering, config }))
}

// === impl Doors ===

impl Doors {
    /// How clients get in, in a word.
    pub(super) fn mode(&self) -> &'static str {
        match self.kind {
            Kind::Bound(_) => "bind",
            Kind::Steered(_) => "steer",
        }
    }

    /// Why not in a better way.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Keeps them as `stance` says until `stop`; then nothing new comes in.
    pub(super) async fn run(
        self,
        give: impl FnMut(Listening),
        ports: watch::Receiver<Arc<PortsInUse>>,
        stance: watch::Receiver<Stance>,
        stop: CancellationToken,
    ) {
        match self.kind {
            Kind::Bound(sockets) => sockets.run(give, stance, stop).await,
            Kind::Steered(steered) => steered.run(give, ports, stance, stop).await,
        }
    }
}

// === impl PeerDoor ===

impl PeerDoor {
    pub(super) fn open(
        address: SocketAddr,
        backlog: u32,
        inherited: &mut Inherited,
        legacy: &Legacy,
    ) -> Result<Self, BindError> {
        let place = Place::Peers { address };
        let found = inherited.tcp(&place, backlog);
        let socket = Arc::new(found.map_or_else(|| sockets::bind(address, backlog), Ok)?);
        let _held = legacy.hold(place, socket.clone());
        Ok(Self { socket, _held })
    }

    /// Keeps it as `stance` says until `stop`.
    pub(super) async fn run(
        self,
        mut give: impl FnMut(Listening),
        mut stance: watch::Receiver<Stance>,
        stop: CancellationToken,
    ) {
        let mut accepting: Option<CancellationToken> = None;
        loop {
            match *stance.borrow_and_update() {
                Stance::Open | Stance::Fixed => {
                    accepting.get_or_insert_with(|| {
                        let stop = CancellationToken::new();
                        give(Listening::peers(self.socket.clone(), stop.clone()));
                        stop
                    });
                }
                Stance::Paused | Stance::Given => drop(accepting.take().map(|it| it.cancel())),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = stance.changed() => if changed.is_err() { break },
            }
        }
        if let Some(accepting) = accepting {
            accepting.cancel();
        }
    }
}

// === impl Kernel ===

impl Slots for Kernel {
    type Error = FilterError;

    fn set(&mut self, family: Family, socket: BorrowedFd<'_>) -> Result<(), FilterError> {
        self.steering.set_socket(family.into(), &socket)
    }

    /// The program, where it is attached, and the prefixes.
    fn take_back(&mut self) -> Result<(), FilterError> {
        self.steering = Steering::open(&self.config)?;
        Ok(())
    }

    fn clear(&mut self, family: Family) -> Result<(), FilterError> {
        self.steering.clear(family.into())
    }
}

impl From<Family> for ebpf_filter::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }
}
