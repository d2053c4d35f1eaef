//! A connection of a client, and strict HTTP/1.1 on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::client::{Client, bounded};
use super::{Loss, Over};
use crate::strict;

/// Bytes of a head that are read before giving up.
const HEAD_MAX: usize = 64 * 1024;

/// A stream of bytes, whatever is below.
pub(super) trait Bytewise: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Bytewise for S {}

/// Makes connections of one kind to one name.
pub(super) struct Dialer {
    address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A connection that speaks HTTP/1.1, or what was agreed to be spoken after it.
pub(super) struct Link {
    pub(super) stream: Box<dyn Bytewise>,
    pub(super) buffer: BytesMut,
}

/// The head of an answer.
pub(super) struct Head {
    pub(super) status: u16,
    fields: Vec<(String, String)>,
}

// === impl Dialer ===

impl Dialer {
    /// For HTTP/1.1 of `host`.
    pub(super) fn http1(client: &Client, over: Over, host: &'static str) -> Self {
        match over {
            Over::Clear => Self { address: client.target.http, tls: None },
            Over::Tls => Self::tls(client, host, b"http/1.1", Resumption::disabled()),
            Over::Resumed => {
                Self::tls(client, host, b"http/1.1", Resumption::in_memory_sessions(16))
            }
        }
    }

    /// For HTTP/2 of `host`.
    pub(super) fn http2(client: &Client, host: &'static str) -> Self {
        Self::tls(client, host, b"h2", Resumption::in_memory_sessions(16))
    }

    /// For raw bytes.
    pub(super) fn raw(client: &Client) -> Self {
        Self { address: client.target.tcp, tls: None }
    }

    fn tls(client: &Client, host: &'static str, alpn: &[u8], resumption: Resumption) -> Self {
        let builder = ClientConfig::builder();
        let mut config =
            builder.with_root_certificates(client.target.roots.clone()).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = resumption;
        let name = ServerName::try_from(host).expect("a DNS name");
        let tls = Some((TlsConnector::from(Arc::new(config)), name));
        Self { address: client.target.https, tls }
    }

    /// Connects, with the handshake.
    pub(super) async fn connect(&self, client: &Client) -> Result<Link, Loss> {
        let connect = async {
            let tcp = TcpStream::connect(self.address).await.map_err(|error| Loss::of(&error))?;
            tcp.set_nodelay(true).map_err(|error| Loss::of(&error))?;
            let Some((connector, name)) = &self.tls else {
                return Ok((Box::new(tcp) as Box<dyn Bytewise>, false));
            };
            let tls = connector.connect(name.clone(), tcp).await;
            let tls = tls.map_err(|error| Loss::of(&error).during("handshake"))?;
            let resumed = tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            Ok((Box::new(tls) as Box<dyn Bytewise>, resumed))
        };
        let (stream, resumed) = bounded(connect).await?;
        let mut tally = client.count();
        tally.connections += 1;
        tally.resumed += u64::from(resumed);
        Ok(Link { stream, buffer: BytesMut::new() })
    }
}

// === impl Link ===

impl Link {
    /// Sends bytes.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Loss> {
        let sent = self.stream.write_all(bytes.as_ref()).await;
        let sent = match sent {
            Ok(()) => self.stream.flush().await,
            Err(error) => Err(error),
        };
        sent.map_err(|error| Loss::of(&error).during("sending"))
    }

    /// Waits for more bytes; how many came, zero at the end.
    ///
    /// # Cancel safety
    /// Safe: nothing that came is lost.
    pub(super) async fn more(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Reads an answer's head, exactly as RFC 9112 has it.
    pub(super) async fn head(&mut self) -> Result<Head, Loss> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(Loss::Failed("a head without end".to_owned()));
            }
            match self.more().await {
                Ok(0) if self.buffer.is_empty() => return Err(Loss::Closed),
                Ok(0) => return Err(Loss::Reset("the end within a head".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(Loss::of(&error).during("waiting for an answer")),
            }
        };
        let head = self.buffer.split_to(end);
        let head = strict::Reader::new(&head[..]).head();
        let (status, fields) = head.map_err(|error| Loss::Failed(error.to_string()))?;
        Ok(Head { status, fields })
    }

    /// Reads exactly `count` bytes.
    pub(super) async fn exactly(&mut self, count: usize) -> Result<BytesMut, Loss> {
        while self.buffer.len() < count {
            match self.more().await {
                Ok(0) => return Err(Loss::Reset("the end in the middle".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(Loss::of(&error).during("reading")),
            }
        }
        Ok(self.buffer.split_to(count))
    }

    /// Reads a whole answer with a `content-length`: its head and its body.
    pub(super) async fn answer(&mut self) -> Result<(Head, BytesMut), Loss> {
        let head = self.head().await?;
        let length = head.length()?;
        let body = self.exactly(length).await?;
        Ok((head, body))
    }
}

// === impl Head ===

impl Head {
    /// The first value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(held, _)| held.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The length of the body.
    pub(super) fn length(&self) -> Result<usize, Loss> {
        let length = self.field("content-length").and_then(|length| length.parse().ok());
        length.ok_or_else(|| Loss::Failed(format!("a {} without content-length", self.status)))
    }

    /// Whether the connection ends with this answer.
    pub(super) fn says_close(&self) -> bool {
        self.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// An answer that is not the wanted one, in words.
    pub(super) fn unexpected(&self) -> Loss {
        let code = self.field("ferrule-error").unwrap_or("no code");
        Loss::Failed(format!("status {} ({code})", self.status))
    }
}
