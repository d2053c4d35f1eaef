//! Wrappers around sockets: what HTTP libraries do not bound or batch themselves.

pub mod stream;
pub mod rewind;
pub mod proxy_protocol;
pub mod cork;
