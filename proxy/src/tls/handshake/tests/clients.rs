//! Clients that do what they should not.

use std::sync::Mutex;

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls_pki_types::ServerName;

/// Remembers sessions without regard to the server's name.
#[derive(Debug)]
pub(super) struct OneForAllNames {
    cache: ClientSessionMemoryCache,
    pub(super) stored: Mutex<usize>,
}

impl OneForAllNames {
    pub(super) fn new() -> Self {
        Self { cache: ClientSessionMemoryCache::new(8), stored: Mutex::new(0) }
    }
}

fn everybody() -> ServerName<'static> {
    ServerName::try_from("everybody.invalid").unwrap()
}

impl ClientSessionStore for OneForAllNames {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(everybody(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.kx_hint(&everybody())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        *self.stored.lock().unwrap() += 1;
        self.cache.set_tls12_session(everybody(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.cache.tls12_session(&everybody())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.cache.remove_tls12_session(&everybody());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        *self.stored.lock().unwrap() += 1;
        self.cache.insert_tls13_ticket(everybody(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.cache.take_tls13_ticket(&everybody())
    }
}
