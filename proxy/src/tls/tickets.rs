//! The keys of the session tickets: one set for the process, shared by its workers.
//!
//! Tickets are stateless, so a stranger's sessions cost no memory here. Nothing else knows how the
//! keys come to be: whoever hands them to a successor process replaces what is in this file.
//!
//! A ticket resumes only under the name it was issued for. rustls seals the SNI into it and
//! compares (`can_resume` in its `server/hs.rs`), for TLS 1.2 and 1.3 alike; connections without
//! SNI get no ticket at all, because nothing would tell two apps' tickets apart.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

use super::TlsError;

/// What every worker seals and opens session tickets with. Cloning shares it.
#[derive(Clone)]
pub(super) struct Tickets {
    producer: Arc<dyn ProducesTickets>,
}

// === impl Tickets ===

impl Tickets {
    /// Fresh random keys, replaced every six hours; a ticket lives twelve at most.
    pub(super) fn generate() -> Result<Self, TlsError> {
        Ok(Self { producer: Ticketer::new().map_err(TlsError::Configure)? })
    }

    pub(super) fn producer(&self) -> Arc<dyn ProducesTickets> {
        self.producer.clone()
    }
}
