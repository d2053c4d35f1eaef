//! One TLS handshake with a client: bounded, within its deadline, for the app its SNI names.
//!
//! The ClientHello is read before anything is decided; the caller says what the port offers for
//! that name, and only then a certificate is chosen. Nothing is ever written in the clear but a
//! fatal alert.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use control::snapshot::TlsOptions;
use rustls::server::{Accepted, Acceptor};
use rustls::{AlertDescription, HandshakeKind, ProtocolVersion};
use telemetry::metrics::{Counter, Registry};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::TlsError;
use super::certificates::Certificates;
use super::in_flight::InFlight;
use super::offer::{Offers, PortTls, normal};
use super::tickets::{TicketKeys, Tickets};
use crate::config;
use crate::error::{Code, Failure};
use crate::metrics::catalogue;

/// The node's side of TLS towards clients; one per process, shared by its workers.
pub struct Tls {
    offers: Offers,
    tickets: Tickets,
    in_flight: Arc<InFlight>,
    timeout: std::time::Duration,
    results: Results,
}

/// A client connection after its handshake.
pub struct Secured<S> {
    pub stream: Box<TlsStream<S>>,
    /// Lower case, without a trailing dot.
    pub sni: Option<Arc<str>>,
    pub alpn: Alpn,
    pub version: Version,
}

/// The protocol that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    Http2,
    Http11,
    /// Another one of the port's list.
    Other,
    /// The client or the port named none.
    None,
}

/// The TLS version that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    Tls12,
    Tls13,
}

/// Bytes a client may send before its ClientHello must be complete; rustls alone would take 64 KiB.
/// Hellos with post-quantum key shares are about 1.8 KiB.
const CLIENT_HELLO_BYTES_MAX: usize = 16 * 1024;

// === impl Tls ===

impl Tls {
    pub fn new(
        certificates: Arc<Certificates>,
        limits: &config::Limits,
        timeouts: &config::Timeouts,
        registry: &Registry,
    ) -> Result<Self, TlsError> {
        let in_flight = Arc::new(InFlight::new(limits));
        let counted = in_flight.clone();
        catalogue::TLS_HANDSHAKES_IN_FLIGHT
            .gauge_read_in(registry, &[], move || f64::from(counted.total()));
        let tickets = Tickets::generate()?;
        Ok(Self {
            offers: Offers::new(certificates, &tickets)?,
            tickets,
            in_flight,
            timeout: timeouts.handshake,
            results: Results::new(registry),
        })
    }

    /// The keys of session tickets, for the process that takes over.
    pub fn ticket_keys(&self) -> TicketKeys {
        self.tickets.export()
    }

    /// Goes on with the keys of the process before, and their times. To be called before the first
    /// handshake: tickets that were sealed until then open no more.
    pub fn adopt_ticket_keys(&self, keys: &TicketKeys) {
        self.tickets.import(keys);
    }

    /// What a port with `options` offers; the same value for the same options.
    pub fn port(&self, options: &TlsOptions) -> PortTls {
        self.offers.port(options)
    }

    /// Terminates TLS on `stream`.
    ///
    /// `choose` is asked with the SNI (lower case, no trailing dot) what the port offers for it; its
    /// error refuses the handshake. The future is one box: the state of a handshake must not stay in
    /// the task that serves the connection.
    ///
    /// # Errors
    /// PT01 and PT10 at the limits, PT03 when the client left, PT04 when no agreement was reached,
    /// PT05 without a certificate for the name, PT07 on I/O, PT08 at the deadline.
    pub fn accept<S>(
        &self,
        stream: S,
        client: IpAddr,
        choose: impl FnOnce(Option<&str>) -> Result<PortTls, Failure>,
    ) -> impl Future<Output = Result<Secured<S>, Failure>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let deadline = Instant::now() + self.timeout;
        Box::pin(async move {
            let result = match self.in_flight.enter(client) {
                Ok(_permit) => {
                    let handshake = pin!(self.secure(stream, choose));
                    tokio::time::timeout_at(deadline, handshake)
                        .await
                        .unwrap_or_else(|_| Err(Failure::new(Code::PT08)))
                }
                Err(failure) => Err(failure),
            };
            self.results.count(&result);
            result
        })
    }

    async fn secure<S>(
        &self,
        mut stream: S,
        choose: impl FnOnce(Option<&str>) -> Result<PortTls, Failure>,
    ) -> Result<Secured<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accepted = client_hello(&mut stream).await?;
        let sni: Option<Arc<str>> =
            accepted.client_hello().server_name().map(|name| normal(name).into());
        let config = choose(sni.as_deref()).and_then(|port| {
            self.offers.config(&port, sni.as_deref()).ok_or_else(|| Failure::new(Code::PT05))
        });
        let config = match config {
            Ok(config) => config,
            Err(failure) => {
                refuse(&mut stream, alert_for(failure.code)).await;
                return Err(failure);
            }
        };
        let stream = StartHandshake::from_parts(accepted, stream)
            .into_stream(config)
            .await
            .map_err(failure_of)?;
        let (_, connection) = stream.get_ref();
        let alpn = Alpn::of(connection.alpn_protocol());
        let version = Version::of(connection.protocol_version());
        Ok(Secured { stream: Box::new(stream), sni, alpn, version })
    }
}

/// Reads until rustls has a whole ClientHello.
pub(crate) async fn client_hello<S>(stream: &mut S) -> Result<Accepted, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut buffer = [0; 2048];
    let mut total = 0;
    loop {
        let n = stream.read(&mut buffer).await.map_err(failure_of)?;
        if n == 0 {
            return Err(Failure::new(Code::PT03));
        }
        total += n;
        let mut unread = &buffer[..n];
        while !unread.is_empty() {
            acceptor.read_tls(&mut unread).map_err(failure_of)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) if total < CLIENT_HELLO_BYTES_MAX => {}
            Ok(None) => {
                refuse(stream, AlertDescription::DecodeError).await;
                return Err(Failure::new(Code::PT04).because("the ClientHello is too long"));
            }
            Err((error, mut alert)) => {
                let mut bytes = Vec::new(); // one alert record
                if alert.write_all(&mut bytes).is_ok() {
                    send_last(stream, &bytes).await;
                }
                return Err(Failure::new(Code::PT04).because(error));
            }
        }
    }
}

fn alert_for(code: Code) -> AlertDescription {
    match code {
        Code::PT05 | Code::PE01 => AlertDescription::UnrecognisedName,
        // The one alert that blames neither the client nor the protocol.
        _ => AlertDescription::InternalError,
    }
}

/// Sends a fatal alert. Still in the clear, as no key was agreed on.
async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, alert: AlertDescription) {
    // A record of type alert (21), version 3.3, two bytes: fatal (2), and which.
    send_last(stream, &[21, 3, 3, 0, 2, 2, alert.into()]).await;
}

/// Best effort: whoever is refused need not hear it.
async fn send_last<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    if let Err(error) = sent.await {
        tracing::trace!(reason = super::reasons(&error), "alert not delivered");
    }
}

/// The failure behind an error of a handshake's I/O.
pub(super) fn failure_of(error: io::Error) -> Failure {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let protocol = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let code = match (protocol, error.kind()) {
        (Some(rustls::Error::AlertReceived(AlertDescription::UserCanceled)), _) => Code::PT03,
        (Some(_), _) => Code::PT04,
        (None, UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe) => Code::PT03,
        (None, _) => Code::PT07,
    };
    Failure::new(code).because(error)
}

// === impl Alpn, Version ===

impl Alpn {
    fn of(protocol: Option<&[u8]>) -> Self {
        match protocol {
            Some(b"h2") => Self::Http2,
            Some(b"http/1.1") => Self::Http11,
            Some(_) => Self::Other,
            None => Self::None,
        }
    }
}

impl Version {
    fn of(version: Option<ProtocolVersion>) -> Self {
        match version {
            Some(ProtocolVersion::TLSv1_3) => Self::Tls13,
            _ => Self::Tls12, // the only other one that is ever offered
        }
    }
}

// === impl Results ===

/// `ferrule_tls_handshakes_total`, one counter per way a handshake can end.
struct Results {
    full: Counter,
    resumed: Counter,
    prefix_limit: Counter,
    node_limit: Counter,
    client_left: Counter,
    failed: Counter,
    no_certificate: Counter,
    io_error: Counter,
    timeout: Counter,
    refused: Counter,
}

impl Results {
    fn new(registry: &Registry) -> Self {
        let counter = |result| catalogue::TLS_HANDSHAKES.counter_in(registry, &[result]);
        Self {
            full: counter("full"),
            resumed: counter("resumed"),
            prefix_limit: counter("prefix_limit"),
            node_limit: counter("node_limit"),
            client_left: counter("client_left"),
            failed: counter("failed"),
            no_certificate: counter("no_certificate"),
            io_error: counter("io_error"),
            timeout: counter("timeout"),
            refused: counter("refused"),
        }
    }

    fn count<S>(&self, result: &Result<Secured<S>, Failure>) {
        let counter = match result {
            Ok(secured) => match secured.stream.get_ref().1.handshake_kind() {
                Some(HandshakeKind::Resumed) => &self.resumed,
                _ => &self.full,
            },
            Err(failure) => match failure.code {
                Code::PT01 => &self.prefix_limit,
                Code::PT03 => &self.client_left,
                Code::PT04 => &self.failed,
                Code::PT05 => &self.no_certificate,
                Code::PT07 => &self.io_error,
                Code::PT08 => &self.timeout,
                Code::PT10 => &self.node_limit,
                _ => &self.refused, // whatever `choose` said
            },
        };
        counter.increment();
    }
}

#[cfg(test)]
mod tests;
