//! Connections that did one request and now wait, held by this process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::peer::{NAME, Peer};
use super::scenario::Scenario;

/// One connection that is kept open.
pub(crate) enum Held {
    Clear(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Opens `count` connections and completes one request on each.
pub(crate) fn open(scenario: Scenario, peer: &Peer, count: usize) -> Result<Vec<Held>> {
    let config = Arc::new(config(scenario, peer)?);
    let one = || -> Result<Held> {
        match scenario {
            Scenario::H1 => {
                let mut stream = connect(peer.http)?;
                http1(&mut stream)?;
                Ok(Held::Clear(stream))
            }
            _ => {
                let name = NAME.try_into()?;
                let session = ClientConnection::new(config.clone(), name)?;
                let mut stream = StreamOwned::new(session, connect(peer.https)?);
                if scenario == Scenario::H2 {
                    http2(&mut stream)?
                } else {
                    http1(&mut stream)?
                }
                Ok(Held::Tls(Box::new(stream)))
            }
        }
    };
    (0..count).map(|n| one().with_context(|| format!("idle connection {n}"))).collect()
}

impl Held {
    /// Whether the other side still holds it too.
    pub(crate) fn is_open(&self) -> bool {
        let stream = match self {
            Self::Clear(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        };
        let waiting = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
        !matches!(waiting, Ok(0))
    }
}

fn config(scenario: Scenario, peer: &Peer) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(peer.certificate.clone())?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = match scenario {
        Scenario::H2 => vec![b"h2".to_vec()],
        _ => vec![b"http/1.1".to_vec()],
    };
    Ok(config)
}

fn connect(address: std::net::SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn http1(stream: &mut (impl Read + Write)) -> Result<()> {
    write!(stream, "GET / HTTP/1.1\r\nhost: {NAME}\r\n\r\n")?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    let complete = |answer: &[u8]| {
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
        head.is_some_and(|head| answer.len() >= head + 4 + 1024)
    };
    while !complete(&answer) {
        let count = stream.read(&mut chunk)?;
        ensure!(count > 0, "closed in the middle of an answer");
        answer.extend_from_slice(&chunk[..count]);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not a 200");
    Ok(())
}

/// The smallest HTTP/2 client: SETTINGS, one GET from HPACK's static table, frames until its end.
fn http2(stream: &mut (impl Read + Write)) -> Result<()> {
    const SETTINGS: u8 = 4;
    const ACK: u8 = 1;
    const END_STREAM: u8 = 1;
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[]));
    let mut fields = vec![0x82, 0x87, 0x84, 0x41, u8::try_from(NAME.len())?];
    fields.extend(NAME.as_bytes());
    request.extend(frame(1, 0x5, 1, &fields)); // HEADERS, END_HEADERS and END_STREAM
    stream.write_all(&request)?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        let (kind, flags, id) = (head[3], head[4], head[8]);
        if kind == SETTINGS && flags & ACK == 0 {
            stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?;
        }
        ensure!(!matches!(kind, 3 | 7), "the stream was refused (frame type {kind})");
        if id == 1 && matches!(kind, 0 | 1) && flags & END_STREAM != 0 {
            return Ok(());
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("small frames only");
    let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    frame.extend(payload);
    frame
}
