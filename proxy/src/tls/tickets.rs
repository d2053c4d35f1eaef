//! The keys of the session tickets: one set for the process, shared by its workers, and handed to
//! the process that takes over.
//!
//! Tickets are stateless, so a stranger's sessions cost no memory here. Which keys seal and open is
//! `ring.rs`; this file is how rustls uses them, and how they leave the process: as [`TicketKeys`],
//! which serde writes and nothing else shows.
//!
//! A ticket resumes only under the name it was issued for. rustls seals the SNI into it and
//! compares (`can_resume` in its `server/hs.rs`), for TLS 1.2 and 1.3 alike; connections without
//! SNI get no ticket at all, because nothing would tell two apps' tickets apart.

mod ring;

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rustix::time::{ClockId, clock_gettime};
use rustls::server::ProducesTickets;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use telemetry::lock::Mutex;
use zeroize::Zeroizing;

use super::TlsError;
use ring::{Key, KeyBytes, Ring, TICKET_LIFE};

/// What every worker seals and opens session tickets with. Cloning shares it.
#[derive(Clone)]
pub(super) struct Tickets {
    ticketer: Arc<Ticketer>,
}

/// The keys as they are handed to a successor on this machine.
///
/// Whoever has them can read the tickets of the last twelve hours and the TLS 1.2 sessions behind
/// them: they go over a socket between two processes of one user, and nowhere else. `Debug` says
/// nothing of them; what is serialized is for the receiver to wipe.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TicketKeys {
    current: TicketKey,
    previous: Option<TicketKey>,
    /// When `current` began to seal, in seconds of the clock that does not stop in suspend.
    began_seconds: u64,
}

/// The name and the secret of one key.
#[derive(Clone, PartialEq)]
struct TicketKey(KeyBytes);

struct Ticketer {
    ring: ArcSwap<Ring>,
    /// Held by whoever makes the next key.
    rotating: Mutex<()>,
    /// Seconds on a clock that both processes of a hand-over read alike.
    clock: fn() -> u64,
}

// === impl Tickets ===

impl Tickets {
    /// Fresh random keys, replaced every six hours; a ticket lives twelve at most.
    pub(super) fn generate() -> Result<Self, TlsError> {
        Self::with_clock(seconds)
    }

    fn with_clock(clock: fn() -> u64) -> Result<Self, TlsError> {
        let randomness = || TlsError::Configure(rustls::Error::FailedToGetRandomBytes);
        let ring = Ring::generate(clock()).ok_or_else(randomness)?;
        let (ring, rotating) = (ArcSwap::from_pointee(ring), Mutex::new("ticket keys", ()));
        Ok(Self { ticketer: Arc::new(Ticketer { ring, rotating, clock }) })
    }

    pub(super) fn producer(&self) -> Arc<dyn ProducesTickets> {
        self.ticketer.clone()
    }

    /// The keys of this moment, for a successor. A key that is made here later is not known there:
    /// what it sealed is a full handshake.
    pub(super) fn export(&self) -> TicketKeys {
        let ring = self.ticketer.ring.load();
        TicketKeys {
            current: TicketKey(ring.current.bytes.clone()),
            previous: ring.previous.as_ref().map(|key| TicketKey(key.bytes.clone())),
            began_seconds: ring.began,
        }
    }

    /// Goes on with a predecessor's keys and their times; what was sealed here before opens no more.
    pub(super) fn import(&self, keys: &TicketKeys) {
        let TicketKeys { current, previous, began_seconds } = keys;
        let key = |TicketKey(bytes): &TicketKey| Key::new(bytes.clone());
        // Whatever it says, no key of theirs seals for more than six hours here.
        let began = (*began_seconds).min((self.ticketer.clock)());
        let ring = Ring { current: key(current), previous: previous.as_ref().map(key), began };
        let _rotating = self.ticketer.rotating.lock();
        self.ticketer.ring.store(Arc::new(ring));
    }
}

// === impl Ticketer ===

impl Ticketer {
    /// The keys that are good now; `None` when a new one is due and there is no randomness for it.
    fn ring(&self) -> Option<Arc<Ring>> {
        let now = (self.clock)();
        let ring = self.ring.load();
        if !ring.is_over(now) {
            return Some(Arc::clone(&ring));
        }
        let _rotating = self.rotating.lock();
        let ring = self.ring.load();
        if ring.is_over(now) {
            let next = Arc::new(ring.next(now)?);
            self.ring.store(next.clone());
            return Some(next);
        }
        Some(Arc::clone(&ring))
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFE as u32
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.ring()?.current.seal(session)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.ring()?.open(ticket)
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticketer")
    }
}

/// Of the clock that counts from boot, also while the machine sleeps: nobody can set it, and every
/// process reads the same.
fn seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}

// === impl TicketKeys ===

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKeys")
    }
}

impl Serialize for TicketKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(bytes) = self;
        serializer.serialize_str(&Zeroizing::new(STANDARD_NO_PAD.encode(&bytes[..])))
    }
}

impl<'de> Deserialize<'de> for TicketKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Neither what was there nor how it was wrong: errors end in a log.
        let refused = || de::Error::custom("not a ticket key");
        let text = Zeroizing::new(String::deserialize(deserializer).map_err(|_| refused())?);
        let decoded = Zeroizing::new(STANDARD_NO_PAD.decode(&*text).map_err(|_| refused())?);
        let mut bytes = KeyBytes::default();
        if decoded.len() != bytes.len() {
            return Err(refused());
        }
        bytes.copy_from_slice(&decoded);
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests;
