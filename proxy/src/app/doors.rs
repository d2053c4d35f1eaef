//! How clients get in: steered to one group of sockets, or through a socket per address and port.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ebpf_filter::{FilterError, Steering};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::ListenMode;
use crate::edge::Edge;
use crate::filter::kernel_config;
use crate::inventory::PortsInUse;
use crate::listener::Listening;
use crate::listener::sockets::{BindError, Sockets};
use crate::listener::steer::{Family, Group, Slots, Steered};
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
struct Kernel(Steering);

// === impl Closed ===

impl Closed {
    /// Takes from the kernel what they need. Nothing arrives yet.
    ///
    /// # Errors
    ///
    /// When steering was demanded and cannot be had.
    pub(super) fn prepare(edge: &Edge) -> Result<Self, SteerError> {
        let listen = &edge.config.listen;
        let reason = match listen.mode {
            ListenMode::Steer => {
                return Ok(Self { kind: Kind::Steered(steering(edge)?), reason: None });
            }
            ListenMode::Auto if !listen.prefixes.is_empty() => match steering(edge) {
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
        // What an earlier node steered would go past the sockets that are bound now.
        if let Err(error) = Steering::detach(&kernel_config(&edge.config).pins) {
            let error = chain(&error);
            tracing::warn!(%error, "an earlier node's steering stays; the prefixes are not reached");
        }
        let sockets = Sockets::new(listen, edge.inventory.ports());
        Ok(Self { kind: Kind::Bound(sockets), reason })
    }

    /// Lets connections come to the workers.
    ///
    /// # Errors
    ///
    /// When the kernel does not take the sockets that it is to steer to.
    pub(super) fn open(self, give: &mut impl FnMut(Listening)) -> Result<Doors, SteerError> {
        let Self { kind, reason } = self;
        let kind = match kind {
            Kind::Bound(mut sockets) => {
                sockets.follow(give);
                Kind::Bound(sockets)
            }
            Kind::Steered((group, kernel)) => {
                Kind::Steered(group.serve(kernel, give).map_err(SteerError::Kernel)?)
            }
        };
        Ok(Doors { kind, reason })
    }
}

fn steering(edge: &Edge) -> Result<(Group, Kernel), SteerError> {
    let config = &edge.config;
    let group = Group::open(&config.listen, config.node.workers).map_err(SteerError::Sockets)?;
    let steering = Steering::open(&kernel_config(config)).map_err(SteerError::Kernel)?;
    Ok((group, Kernel(steering)))
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

    /// Keeps them open until `stop`; then nothing new comes in.
    pub(super) async fn run(
        self,
        give: impl FnMut(Listening),
        ports: watch::Receiver<Arc<PortsInUse>>,
        stop: CancellationToken,
    ) {
        match self.kind {
            Kind::Bound(sockets) => sockets.run(give, stop).await,
            Kind::Steered(steered) => steered.run(ports, stop).await,
        }
    }
}

// === impl Kernel ===

impl Slots for Kernel {
    type Error = FilterError;

    fn set(&mut self, family: Family, socket: BorrowedFd<'_>) -> Result<(), FilterError> {
        self.0.set_socket(family.into(), &socket)
    }

    fn clear(&mut self, family: Family) -> Result<(), FilterError> {
        self.0.clear(family.into())
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
