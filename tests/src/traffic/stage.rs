//! The instances and apps that traffic of every class needs.

use super::origin::{Origin, Speaks};
use crate::app::App;
use crate::instance::{Scripted, websocket_echo};

/// Who answers `/hello`, `/once`, downloads and uploads, over HTTP/1.1.
pub(super) const WEB: &str = "web.test";

/// Who answers calls, over HTTP/2.
pub(super) const GRPC: &str = "grpc.test";

/// Who repeats messages.
pub(super) const CHAT: &str = "chat.test";

/// Instances of every kind, on one node.
pub struct Stage {
    node: String,
    hard_limit: u32,
    web: Origin,
    grpc: Origin,
    chat: Scripted,
    raw: Origin,
}

// === impl Stage ===

impl Stage {
    /// Instances on node `a`.
    pub fn new() -> Self {
        Self::on("a")
    }

    /// Instances on this node.
    pub fn on(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            hard_limit: 1_000,
            web: Origin::start(Speaks::Http1),
            grpc: Origin::start(Speaks::H2c),
            chat: websocket_echo(),
            raw: Origin::start(Speaks::Bytes),
        }
    }

    /// At most so many requests at one of them.
    pub fn hard_limit(mut self, limit: u32) -> Self {
        self.hard_limit = limit;
        self
    }

    /// The apps that lead to them.
    pub fn apps(&self) -> [App; 4] {
        let limit = |app: App| app.limits(self.hard_limit, self.hard_limit);
        [
            limit(App::new("web")).instance_on(&self.node, self.web.address()),
            limit(App::new("grpc")).h2_backend().instance_on(&self.node, self.grpc.address()),
            limit(App::new("chat")).instance_on(&self.node, self.chat.address()),
            limit(App::raw("raw", "[]")).instance_on(&self.node, self.raw.address()),
        ]
    }

    /// Who answers HTTP/1.1, and counts what must come once.
    pub fn web(&self) -> &Origin {
        &self.web
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}
