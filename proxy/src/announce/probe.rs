//! What a client sees: one TLS connection and one request through each anycast address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use telemetry::error::chain;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::tls::{TlsError, client};

/// What is asked, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Anycast addresses, each asked at every look.
    pub addresses: Vec<SocketAddr>,
    /// The name asked for, in the handshake and in the request.
    pub server_name: String,
    /// Default: `/`.
    pub path: String,
    /// The status that says that all is well. Default: 200.
    pub status: StatusCode,
    /// Authorities that the certificate is verified by. Default: it is not, only the handshake is.
    pub ca: Option<PathBuf>,
    /// For the whole of one request. Default: 1 s.
    pub timeout: Duration,
}

/// Asks the same thing again and again.
pub(super) struct Prober {
    config: Config,
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// How one request went.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) address: SocketAddr,
    pub(super) took: Duration,
    pub(super) result: Result<(), ProbeError>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    #[error("no TLS")]
    Handshake(#[source] std::io::Error),
    #[error("no answer")]
    Exchange(#[source] hyper::Error),
    #[error("the answer is {found}, not {wanted}")]
    Status { found: u16, wanted: u16 },
    #[error("no answer within {0} ms")]
    Late(u128),
}

// === impl Prober ===

impl Prober {
    /// # Errors
    /// When the authorities cannot be read.
    pub(super) fn new(config: Config) -> Result<Self, TlsError> {
        let connector = client(config.ca.as_deref().map(Path::new))?;
        let name = ServerName::try_from(config.server_name.clone());
        let name = name.expect("checked with the configuration");
        Ok(Self { config, connector: TlsConnector::from(Arc::new(connector)), name })
    }

    /// Asks through every address at once.
    pub(super) async fn ask(&self) -> Vec<Outcome> {
        join_all(self.config.addresses.iter().map(|address| self.ask_one(*address))).await
    }

    async fn ask_one(&self, address: SocketAddr) -> Outcome {
        let began = Instant::now();
        let after = self.config.timeout;
        let late = |_| ProbeError::Late(after.as_millis());
        let result = timeout(after, self.request(address)).await.map_err(late);
        Outcome { address, took: began.elapsed(), result: result.and_then(|result| result) }
    }

    async fn request(&self, address: SocketAddr) -> Result<(), ProbeError> {
        let Self { config, connector, name } = self;
        let stream = TcpStream::connect(address).await.map_err(ProbeError::Connect)?;
        let stream = connector.connect(name.clone(), stream).await;
        let stream = TokioIo::new(stream.map_err(ProbeError::Handshake)?);
        let (mut sender, connection) =
            http1::handshake(stream).await.map_err(ProbeError::Exchange)?;
        let request = Request::get(&config.path)
            .header(header::HOST, &config.server_name)
            .header(header::USER_AGENT, "ferrule-announce")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .expect("checked with the configuration");
        let (mut answer, mut connection) = (pin!(sender.send_request(request)), pin!(connection));
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            // A server that closes behind its answer; or one that closes instead, which the answer
            // says just as well.
            _ = &mut connection => answer.await,
        };
        let response = answered.map_err(ProbeError::Exchange)?;
        // The head is the answer; whatever body there is goes with the connection.
        let (found, wanted) = (response.status(), config.status);
        if found == wanted {
            return Ok(());
        }
        Err(ProbeError::Status { found: found.as_u16(), wanted: wanted.as_u16() })
    }
}

// === impl Outcome ===

impl Outcome {
    /// What went wrong, with its causes.
    pub(super) fn error(&self) -> Option<String> {
        self.result.as_ref().err().map(|error| chain(error))
    }
}
