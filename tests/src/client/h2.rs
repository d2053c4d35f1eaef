//! An HTTP/2 client on the `h2` crate: one connection, driven by a task that ends with it.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use bytes::{Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::Tls;
use crate::wait::PATIENCE;

/// Where connections live: a thread of their own, so that a test that waits for something else,
/// blocking its runtime, still answers PINGs and still lets go of what it dropped.
static BACKGROUND: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
});

/// Bytes of all streams together that may wait to be read.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// One connection.
pub struct H2 {
    send: SendRequest<Bytes>,
    /// Ends, when the connection does, with why.
    driver: JoinSet<Result<(), h2::Error>>,
}

/// A second handle on a connection, for requests side by side; it must not outlive the first.
pub struct H2Share {
    send: SendRequest<Bytes>,
}

/// A response, complete to its trailers.
#[derive(Debug)]
pub struct H2Response {
    /// The status code.
    pub status: StatusCode,
    /// The fields of its head.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The fields after the body.
    pub trailers: Option<HeaderMap>,
}

impl H2 {
    /// Connects over TLS.
    ///
    /// # Panics
    /// When there is no HTTP/2 to be had.
    pub async fn connect(address: SocketAddr, tls: &Tls) -> Self {
        let connector = TlsConnector::from(Arc::new(tls.clone().alpn(&["h2"]).config()));
        let name = tls.name();
        Self::over(async move {
            let stream = connector.connect(name, connect(address).await).await;
            let stream = stream.expect("the handshake succeeds");
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "h2 is chosen");
            stream
        })
        .await
    }

    /// Connects in cleartext, with prior knowledge.
    ///
    /// # Panics
    /// When the other side does not speak HTTP/2.
    pub async fn clear(address: SocketAddr) -> Self {
        Self::over(connect(address)).await
    }

    async fn over<S>(stream: impl Future<Output = S> + Send + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (tell, told) = oneshot::channel();
        let mut driver = JoinSet::new();
        let drive = async move {
            let mut builder = Builder::new();
            // A stream that is not read fills its own window, not everybody's.
            builder.initial_connection_window_size(CONNECTION_WINDOW);
            let (send, connection) = builder.handshake(stream.await).await?;
            if tell.send(send).is_ok() { connection.await } else { Ok(()) }
        };
        driver.spawn_on(drive, &BACKGROUND);
        let Ok(send) = told.await else {
            panic!("no HTTP/2: {:?}", driver.join_next().await);
        };
        Self { send, driver }
    }

    /// Sends a request's head; the body, unless `end`, goes through the stream.
    ///
    /// # Errors
    /// When the connection is gone or full.
    pub async fn start(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut send = self.send.clone().ready().await?;
        send.send_request(request, end)
    }

    /// Another handle on this connection.
    pub fn share(&self) -> H2Share {
        H2Share { send: self.send.clone() }
    }

    /// Sends a request with a whole body and reads the whole answer.
    ///
    /// # Errors
    /// When the stream or the connection fails, or nothing comes for long.
    pub async fn send(
        &mut self,
        request: Request<()>,
        body: impl Into<Bytes>,
    ) -> Result<H2Response, h2::Error> {
        self.share().send(request, body).await
    }

    /// `GET https://<authority><path>`.
    ///
    /// # Panics
    /// When the stream or the connection fails.
    pub async fn get(&mut self, authority: &str, path: &str) -> H2Response {
        let request = Request::get(format!("https://{authority}{path}")).body(());
        self.send(request.expect("a sound request"), "").await.expect("the stream succeeds")
    }

    /// Whether the server allows extended CONNECT (RFC 8441); known after its SETTINGS came.
    pub fn extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }

    /// Waits until the server has ended the connection.
    ///
    /// # Errors
    /// When it ended it with an error.
    ///
    /// # Panics
    /// When it did not end for long.
    pub async fn ended(&mut self) -> Result<(), h2::Error> {
        let joined = tokio::time::timeout(PATIENCE, self.driver.join_next()).await;
        match joined.expect("the server ends the connection").expect("one task").expect("no panic")
        {
            // It was gone before this side could say goodbye.
            Err(error) if error.is_io() => Ok(()),
            ended => ended,
        }
    }

    /// Whether the server has ended the connection.
    pub fn has_ended(&mut self) -> bool {
        self.driver.try_join_next().is_some()
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).await.expect("somebody listens");
    socket.set_nodelay(true).expect("a TCP socket");
    socket
}

impl H2Share {
    /// As [`H2::send`].
    ///
    /// # Errors
    /// When the stream or the connection fails, or nothing comes for long.
    pub async fn send(
        &mut self,
        request: Request<()>,
        body: impl Into<Bytes>,
    ) -> Result<H2Response, h2::Error> {
        let body = body.into();
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        whole(response).await
    }
}

/// Reads a whole answer.
///
/// # Errors
/// When the stream fails, or with CANCEL when nothing came for long.
pub(super) async fn whole(response: ResponseFuture) -> Result<H2Response, h2::Error> {
    let read = async {
        let (parts, mut stream) = response.await?.into_parts();
        let (status, headers) = (parts.status, parts.headers);
        let body = body(&mut stream).await?;
        let trailers = stream.trailers().await?;
        Ok(H2Response { status, headers, body, trailers })
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(Reason::CANCEL.into()))
}

async fn body(stream: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut body = BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

impl H2Response {
    /// Reads a whole answer to a request that was started with [`H2::start`].
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn read(response: ResponseFuture) -> Result<Self, h2::Error> {
        whole(response).await
    }

    /// The failure code the edge gave, if it gave one.
    pub fn error_code(&self) -> Option<&str> {
        self.header("ferrule-error")
    }

    /// The first value of a field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}
