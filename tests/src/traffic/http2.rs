//! HTTP/2: a connection with many streams, and clients that heed GOAWAY.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use tokio::task::JoinSet;

use super::Loss;
use super::client::{Client, bounded};
use super::link::Dialer;
use super::stage::WEB;

/// Bytes of all streams together that may wait to be read.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// The connection that new streams go to, made by whoever comes first.
pub(super) struct Connections<'a> {
    client: &'a Client,
    dialer: Dialer,
    current: RefCell<Option<SendRequest<Bytes>>>,
    /// Which connection that is, so that nobody gives up another than the one he tried.
    number: Cell<u64>,
    connecting: tokio::sync::Mutex<()>,
    drivers: RefCell<JoinSet<Result<(), h2::Error>>>,
}

/// How a stream came to nothing.
pub(super) enum Fate {
    /// The server says that it has not looked at it, so it may be sent on another connection.
    Unseen,
    /// It is lost.
    Lost(Loss),
}

/// So many POSTs in flight on one connection, each of which an instance takes some time to answer.
pub(super) async fn streams(client: Client, count: usize, hold: Duration) {
    let connections = Connections::new(&client, WEB);
    join_all((0..count).map(|lane| posts(&client, &connections, lane, hold))).await;
}

/// One after the other.
async fn posts(client: &Client, connections: &Connections<'_>, lane: usize, hold: Duration) {
    // They do not all begin in the same moment.
    client.pause(hold / 100 * u32::try_from(lane % 100).unwrap_or_default()).await;
    while !client.is_stopping() {
        let begun = client.begin();
        let id = Client::id();
        let request = || {
            let uri = format!("https://{WEB}/once/{}", hold.as_millis());
            Request::post(uri).header("x-id", id).body(()).expect("a sound request")
        };
        let one = bounded(connections.retried(async || {
            let (response, mut up) = connections.start(request(), false).await?;
            up.send_data(Bytes::from_static(b"once"), true)?;
            Ok(whole(response.await?).await?)
        }));
        match one.await {
            Ok((200, body)) if body == id.to_string().as_bytes() => client.ok(begun),
            Ok((status, _)) => client.lost(begun, Loss::Failed(format!("status {status}"))).await,
            Err(loss) => client.lost(begun, loss).await,
        }
    }
}

/// Status and body.
async fn whole(response: Response<RecvStream>) -> Result<(u16, BytesMut), h2::Error> {
    let status = response.status().as_u16();
    let mut stream = response.into_body();
    let mut body = BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok((status, body))
}

// === impl Connections ===

impl<'a> Connections<'a> {
    /// None yet.
    pub(super) fn new(client: &'a Client, host: &'static str) -> Self {
        Self {
            client,
            dialer: Dialer::http2(client, host),
            current: RefCell::default(),
            number: Cell::default(),
            connecting: tokio::sync::Mutex::default(),
            drivers: RefCell::default(),
        }
    }

    /// Does `work` again, and counts it, as long as the server says that it has not looked at it.
    pub(super) async fn retried<T>(
        &self,
        work: impl AsyncFn() -> Result<T, Fate>,
    ) -> Result<T, Loss> {
        loop {
            match work().await {
                Ok(done) => return Ok(done),
                Err(Fate::Unseen) => self.client.count().again += 1,
                Err(Fate::Lost(loss)) => return Err(loss),
            }
        }
    }

    /// Sends a head on a connection that takes streams.
    pub(super) async fn start(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Fate> {
        loop {
            let (send, number) = self.current().await.map_err(Fate::Lost)?;
            // A connection that is ending takes nothing more, so nothing was sent on it.
            match send.ready().await {
                Ok(mut send) => match send.send_request(request.clone(), end) {
                    Ok(started) => return Ok(started),
                    Err(error) => self.forget(number, &error),
                },
                Err(error) => self.forget(number, &error),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn current(&self) -> Result<(SendRequest<Bytes>, u64), Loss> {
        let _alone = self.connecting.lock().await;
        if let Some(send) = &*self.current.borrow() {
            return Ok((send.clone(), self.number.get()));
        }
        let link = self.dialer.connect(self.client).await?;
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(CONNECTION_WINDOW);
        let (send, connection) = bounded(async {
            builder.handshake(link.stream).await.map_err(|error| Loss::of_stream(&error))
        })
        .await?;
        let mut drivers = self.drivers.borrow_mut();
        while drivers.try_join_next().is_some() {} // ended ones take no room
        drivers.spawn_local(connection);
        self.number.set(self.number.get() + 1);
        *self.current.borrow_mut() = Some(send.clone());
        Ok((send, self.number.get()))
    }

    /// Sends nothing more there.
    fn forget(&self, number: u64, error: &h2::Error) {
        if self.number.get() == number && self.current.borrow_mut().take().is_some() {
            // Whoever ends a connection says so before.
            let announced = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
            self.client.count().unannounced += u64::from(!announced);
        }
    }
}

impl From<h2::Error> for Fate {
    fn from(error: h2::Error) -> Self {
        let reason = error.reason();
        //= https://www.rfc-editor.org/rfc/rfc9113#section-8.7
        //# The GOAWAY frame indicates the highest stream identifier that might have been
        //# processed.
        // h2 tells a stream of GOAWAY only if it is above that one.
        let above = error.is_go_away() && error.is_remote() && reason == Some(Reason::NO_ERROR);
        let refused = error.is_reset() && reason == Some(Reason::REFUSED_STREAM);
        if above || refused { Self::Unseen } else { Self::Lost(Loss::of_stream(&error)) }
    }
}
