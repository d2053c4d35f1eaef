//! The instances of the demo: small servers that say who they are.

mod http;
mod grpc;
mod websocket;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::plan::{APPS, Instance, Kind};

/// Who answers.
#[derive(Debug)]
struct About {
    id: String,
    region: &'static str,
}

/// An instance has no socket.
#[derive(Debug, thiserror::Error)]
#[error("an instance cannot listen on {address}")]
pub(super) struct InstanceError {
    address: SocketAddr,
    source: io::Error,
}

/// Connections of one instance; only the demo's own nodes connect.
const CONNECTIONS_MAX: usize = 256;

const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Starts every instance; they run in `tasks` until `stop`.
pub(super) async fn start(
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), InstanceError> {
    for app in &APPS {
        for Instance { id, place, address } in app.instances() {
            let listener = TcpListener::bind(address).await;
            let listener = listener.map_err(|source| InstanceError { address, source })?;
            let about = Arc::new(About { id, region: place.region });
            tasks.spawn(serve(listener, app.kind, about, tasks.clone(), stop.clone()));
        }
    }
    Ok(())
}

async fn serve(
    listener: TcpListener,
    kind: Kind,
    about: Arc<About>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async || {
        let permit = Arc::clone(&room).acquire_owned().await.expect("nobody closes the semaphore");
        listener.accept().await.map(|(stream, _)| (stream, permit))
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept() => accepted,
        };
        let Ok((stream, permit)) = accepted else {
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        let connection = connection(stream, kind, Arc::clone(&about), tasks.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
    }
}

/// Serves to the end, whatever it is: a connection that breaks was the node's to end.
async fn connection(stream: TcpStream, kind: Kind, about: Arc<About>, tasks: TaskTracker) {
    match kind {
        Kind::Http => http::serve(stream, &about).await,
        Kind::Grpc => grpc::serve(stream, about, tasks).await,
        Kind::WebSocket => websocket::serve(stream, &about).await,
        Kind::Tcp => tcp::serve(stream, &about).await,
    }
}

// === impl About ===

impl About {
    /// The line it introduces itself with.
    fn line(&self) -> String {
        format!("{} in {} answers\n", self.id, self.region)
    }

    /// The same where there is no room for a line: the value of a header `instance`.
    fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.id).expect("our own ids are letters and dashes")
    }
}

#[cfg(test)]
impl About {
    fn example() -> Self {
        Self { id: "hello-ams".to_owned(), region: "ams" }
    }
}
