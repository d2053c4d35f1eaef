//! Asking the node how it is, over its admin socket; and, when it does not say, its peers.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::sight::Said;

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the admin socket cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the admin socket broke off")]
    Broken(#[source] hyper::Error),
    #[error("the answer cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the admin socket answers {0}")]
    Refused(StatusCode),
    #[error("the answer is not a status")]
    Shape(#[source] serde_json::Error),
    #[error("the admin socket did not answer within {0} ms")]
    Late(u128),
}

/// Bytes of a status: ten thousand peers and what was refused.
const STATUS_BYTES_MAX: usize = 4 << 20;

/// Peers that are asked at a time; whoever has more needs no more of them to serve.
const PEERS_MAX: usize = 64;

/// What the node says of itself.
pub(super) async fn ask(socket: &Path, after: Duration) -> Result<Said, AskError> {
    let late = |_| AskError::Late(after.as_millis());
    let body = timeout(after, status(socket)).await.map_err(late)??;
    serde_json::from_slice(&body).map_err(AskError::Shape)
}

async fn status(socket: &Path) -> Result<Bytes, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(AskError::Connect)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(AskError::Broken)?;
    let request = Request::get("/status")
        .header(header::HOST, "ferrule")
        .body(Empty::<Bytes>::new())
        .expect("a constant");
    let answer = async {
        let response = sender.send_request(request).await.map_err(AskError::Broken)?;
        if response.status() != StatusCode::OK {
            return Err(AskError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), STATUS_BYTES_MAX).collect().await;
        Ok(body.map_err(AskError::Body)?.to_bytes())
    };
    // The answer tells how the connection ended, too.
    tokio::join!(answer, connection).0
}

/// How many of these take a connection, for when the node cannot say which of its peers serve.
pub(super) async fn reachable(addresses: &[SocketAddr], after: Duration) -> usize {
    let addresses = addresses.iter().take(PEERS_MAX);
    let connects = addresses.map(|address| timeout(after, TcpStream::connect(*address)));
    let connected = join_all(connects).await;
    connected.iter().filter(|connect| matches!(connect, Ok(Ok(_)))).count()
}
