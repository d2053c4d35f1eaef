//! How workers reach other nodes: TCP, then mutual TLS, within one deadline.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

use crate::error::{Code, Failure, Retry};
use crate::nodes::Node;
use crate::tls::MeshTls;
use crate::upstream::MeshConnect;

/// Makes connections to nodes, which prove that they are the ones that were meant.
pub(super) struct Dialer {
    pub(super) mesh: Arc<MeshTls>,
    /// For TCP and TLS together.
    pub(super) timeout: Duration,
}

impl MeshConnect for Dialer {
    fn connect<'a>(
        &'a self,
        node: &'a Node,
    ) -> BoxFuture<'a, Result<TlsStream<TcpStream>, Failure>> {
        Box::pin(async move {
            let deadline = Instant::now() + self.timeout;
            let unreachable = || Failure::new(Code::PU03).retry(Retry::Unsent);
            let stream = timeout_at(deadline, TcpStream::connect(node.address))
                .await
                .map_err(|late| unreachable().because(late))?
                .map_err(|error| unreachable().because(error))?;
            stream.set_nodelay(true).map_err(|error| unreachable().because(error))?;
            self.mesh.connect(stream, &node.id, deadline).await
        })
    }
}
