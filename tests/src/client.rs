//! Clients: raw bytes judged by a strict parser, HTTP/2 by the `h2` crate, and programs that are
//! none of ours.

mod raw;
mod h2;
mod tools;
mod mesh;
pub(crate) mod websocket;

pub use h2::{H2, H2Response, H2Share};
pub use mesh::mesh_greets;
pub use raw::{Raw, Tls};
pub use tools::{Curl, H2load, Oha, Sclient};
pub use websocket::{WebSocket, accept_key, base64};
