//! Instances that are none of ours: Debian's nginx and nghttpd, an echo on hyper, a WebSocket echo,
//! and one that sends whatever bytes a test wants.

mod nginx;
mod nghttpd;
mod scripted;
mod echo;
mod websocket;
mod mesh;

pub use echo::{Echo, Seen};
pub use mesh::MeshServer;
pub use nghttpd::Nghttpd;
pub use nginx::Nginx;
pub use scripted::{Conversation, Scripted};
pub use websocket::websocket_echo;
