//! A client that sends whatever bytes a test wants, over TCP or TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::strict::{Error, Reader, Response};
use crate::wait::PATIENCE;

/// One connection.
pub struct Raw {
    reader: Reader<Stream>,
}

/// A TLS client's side of the bargain.
#[derive(Clone)]
pub struct Tls {
    roots: Arc<RootCertStore>,
    sni: String,
    alpn: Vec<Vec<u8>>,
    identity: Option<Arc<(CertificateDer<'static>, PrivateKeyDer<'static>)>>,
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

// === impl Tls ===

impl Tls {
    /// Trusts `roots`, asks for `sni`, offers `http/1.1`.
    pub fn new(roots: Arc<RootCertStore>, sni: &str) -> Self {
        Self { roots, sni: sni.to_owned(), alpn: vec![b"http/1.1".to_vec()], identity: None }
    }

    /// Offers these protocols instead.
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Shows this certificate when asked for one.
    pub fn identity(mut self, pair: &crate::certs::Pair) -> Self {
        self.identity = Some(Arc::new((pair.der(), pair.key_der())));
        self
    }

    /// The configuration for rustls.
    pub fn config(&self) -> ClientConfig {
        let builder = ClientConfig::builder().with_root_certificates(self.roots.clone());
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(vec![identity.0.clone()], identity.1.clone_key())
                .expect("a sound pair"),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config
    }

    /// The name asked for.
    ///
    /// # Panics
    /// When it is none.
    pub fn name(&self) -> ServerName<'static> {
        self.sni.clone().try_into().expect("a DNS name")
    }

    /// Connects and completes the handshake.
    ///
    /// # Errors
    /// When the other side refuses.
    pub fn connect(&self, address: SocketAddr) -> io::Result<Raw> {
        let session = ClientConnection::new(Arc::new(self.config()), self.name())
            .map_err(io::Error::other)?;
        let mut tls = StreamOwned::new(session, tcp(address)?);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Raw { reader: Reader::new(Stream::Tls(Box::new(tls))) })
    }
}

// === impl Raw ===

impl Raw {
    /// Connects over TCP.
    ///
    /// # Panics
    /// When nobody listens.
    #[track_caller]
    pub fn tcp(address: SocketAddr) -> Self {
        Self::try_tcp(address).unwrap_or_else(|error| panic!("cannot connect {address}: {error}"))
    }

    /// Connects over TCP.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn try_tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { reader: Reader::new(Stream::Tcp(tcp(address)?)) })
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// When the connection is gone.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the connection takes bytes");
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let stream = self.reader.stream();
        stream.write_all(bytes.as_ref())?;
        stream.flush()
    }

    /// Reads a response to a GET or POST.
    ///
    /// # Panics
    /// When what comes is not exactly one sound response.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    /// Reads a response to `method`.
    ///
    /// # Panics
    /// When what comes is not exactly one sound response.
    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Response {
        self.try_response(method).unwrap_or_else(|error| panic!("no sound response: {error}"))
    }

    /// Reads a response to `method`.
    ///
    /// # Errors
    /// When what comes is not exactly one sound response.
    pub fn try_response(&mut self, method: &str) -> Result<Response, Error> {
        self.reader.response(method)
    }

    /// `GET path` with nothing but a host.
    ///
    /// # Panics
    /// When there is no sound response.
    #[track_caller]
    pub fn get(&mut self, host: &str, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        self.response()
    }

    /// `GET path` without expectations.
    ///
    /// # Errors
    /// When there is no sound response.
    pub fn try_get(&mut self, path: &str) -> Result<Response, Error> {
        self.try_send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
            .map_err(Error::Io)?;
        self.try_response("GET")
    }

    /// What comes next, to read piece by piece.
    pub fn reader(&mut self) -> &mut Reader<impl Read + use<>> {
        &mut self.reader
    }

    /// Ends this side's half of the connection.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn finish(&mut self) {
        match self.reader.stream() {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write).expect("still connected"),
            Stream::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush().expect("still connected");
            }
        }
    }

    /// Whether the other side ends the connection within `limit`, sending nothing more.
    pub fn closes_within(&mut self, limit: Duration) -> bool {
        self.set_timeout(limit);
        let some = self.reader.some();
        self.set_timeout(PATIENCE);
        match some {
            Ok(bytes) => bytes.is_empty(),
            // A reset, or TLS cut without close_notify: closed all the same.
            Err(error) => !is_timeout(&error),
        }
    }

    /// Whether the connection is still open and silent after `limit`.
    pub fn stays_open_for(&mut self, limit: Duration) -> bool {
        self.set_timeout(limit);
        let some = self.reader.some();
        self.set_timeout(PATIENCE);
        matches!(some, Err(error) if is_timeout(&error))
    }

    /// Longest wait for the next byte.
    pub fn set_timeout(&mut self, limit: Duration) {
        let socket = self.socket();
        socket.set_read_timeout(Some(limit)).expect("a timeout above zero");
    }

    /// Makes closing this connection send RST instead of FIN.
    pub fn reset_on_drop(&mut self) {
        let socket = socket2::SockRef::from(self.socket());
        socket.set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }

    /// The local address.
    pub fn local_address(&mut self) -> SocketAddr {
        self.socket().local_addr().expect("a connected socket")
    }

    /// The protocol chosen by ALPN.
    pub fn alpn(&mut self) -> Option<String> {
        match self.reader.stream() {
            Stream::Tcp(_) => None,
            Stream::Tls(stream) => {
                stream.conn.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned())
            }
        }
    }

    /// The certificate the server showed.
    pub fn certificate(&mut self) -> Option<CertificateDer<'static>> {
        match self.reader.stream() {
            Stream::Tcp(_) => None,
            Stream::Tls(stream) => {
                stream.conn.peer_certificates().map(|chain| chain[0].clone().into_owned())
            }
        }
    }

    fn socket(&mut self) -> &TcpStream {
        match self.reader.stream() {
            Stream::Tcp(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }
}

// === impl Stream ===

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
