//! HTTP/2 clients: the h2 crate's for what is well-behaved, raw frames for what is not.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use crate::harness::{HOST, Node, PATIENCE};

/// A well-behaved client.
pub(crate) struct Client {
    send: SendRequest<Bytes>,
    tasks: TaskTracker,
}

impl Client {
    pub(crate) async fn connect(node: &Node) -> Self {
        Self::with(node, &Builder::new()).await
    }

    pub(crate) async fn with(node: &Node, builder: &Builder) -> Self {
        let stream = node.connect_tls(b"h2").await;
        let (send, connection) = builder.handshake(stream).await.unwrap();
        let tasks = TaskTracker::new();
        tasks.spawn(async move {
            // How it ends is what the tests look at from the other side.
            let _ended = connection.await;
        });
        Self { send, tasks }
    }

    pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("https://{HOST}{path}"))
    }

    /// Sends a head; the body follows on the stream unless `end`.
    pub(crate) async fn send(
        &self,
        request: http::request::Builder,
        end: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        self.try_send(request, end).await.unwrap()
    }

    /// As [`Self::send`], for clients whose own library may have given the connection up.
    pub(crate) async fn try_send(
        &self,
        request: http::request::Builder,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut ready = timeout(PATIENCE, self.send.clone().ready()).await.unwrap()?;
        ready.send_request(request.body(()).unwrap(), end)
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Bytes) {
        let (response, _) = self.send(Self::request("GET", path), true).await;
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        let status = response.status().as_u16();
        (status, read(response.into_body()).await.unwrap())
    }

    /// Whether the node still takes streams.
    pub(crate) async fn is_open(&self) -> bool {
        self.send.clone().ready().await.is_ok()
    }

    /// The connection has ended.
    pub(crate) async fn ended(self) {
        drop(self.send);
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait()).await.expect("the connection ends");
    }

    pub(crate) async fn closed_by_node(&self) {
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait()).await.expect("the node closes");
    }
}

/// A whole body.
pub(crate) async fn read(mut body: RecvStream) -> Result<Bytes, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = timeout(PATIENCE, body.data()).await.expect("data in time") {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}

/// Sends `data` as the windows allow.
pub(crate) async fn write(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx));
        let capacity = timeout(PATIENCE, capacity).await.expect("window in time").unwrap().unwrap();
        stream.send_data(data.split_to(capacity.min(data.len())), false).unwrap();
    }
    if end {
        stream.send_data(Bytes::new(), true).unwrap();
    }
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
pub(crate) const PROTOCOL_ERROR: u32 = 1;

/// A client that sends any frame.
pub(crate) struct Raw {
    pub(crate) stream: TlsStream<TcpStream>,
    received: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// What became of the streams and the connection.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Statuses by stream.
    pub(crate) statuses: BTreeMap<u32, u16>,
    pub(crate) resets: BTreeMap<u32, u32>,
    pub(crate) ended: Vec<u32>,
    /// The code of the last GOAWAY.
    pub(crate) goaway: Option<u32>,
}

impl Raw {
    /// A connection with nothing sent on it.
    pub(crate) async fn silent(node: &Node) -> Self {
        Self { stream: node.connect_tls(b"h2").await, received: Vec::new() }
    }

    /// A connection with preface, SETTINGS and their acknowledgement behind it.
    pub(crate) async fn connect(node: &Node) -> Self {
        Self::with_settings(node, &[]).await
    }

    pub(crate) async fn with_settings(node: &Node, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::silent(node).await;
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, &payload)).await;
        raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let send = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(PATIENCE, send).await.expect("sent in time")
    }

    /// The next frame, or `None` at the end of the connection.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(length) = self.whole_frame() {
                let bytes: Vec<u8> = self.received.drain(..9 + length).collect();
                let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                return Some(Frame {
                    kind: bytes[3],
                    flags: bytes[4],
                    stream,
                    payload: bytes[9..].to_vec(),
                });
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.received));
            match read.await.expect("a frame in time") {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    fn whole_frame(&self) -> Option<usize> {
        let header = self.received.get(..9)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        (self.received.len() >= 9 + length).then_some(length)
    }

    /// Reads until the connection ends.
    pub(crate) async fn until_closed(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(frame) = self.frame().await {
            outcome.note(&frame);
        }
        outcome
    }

    /// Reads until `enough`.
    pub(crate) async fn until(&mut self, enough: impl Fn(&Outcome) -> bool) -> Outcome {
        let mut outcome = Outcome::default();
        while !enough(&outcome) {
            let frame = self.frame().await;
            let frame = frame.unwrap_or_else(|| panic!("the connection ended: {outcome:?}"));
            outcome.note(&frame);
        }
        outcome
    }

    /// What came of one request: its status or the code of its reset.
    pub(crate) async fn outcome_of(&mut self, stream: u32) -> Result<u16, u32> {
        let outcome = self
            .until(|outcome| {
                outcome.statuses.contains_key(&stream) || outcome.resets.contains_key(&stream)
            })
            .await;
        match outcome.statuses.get(&stream) {
            Some(status) => Ok(*status),
            None => Err(outcome.resets[&stream]),
        }
    }
}

impl Outcome {
    fn note(&mut self, frame: &Frame) {
        let code = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
        match frame.kind {
            HEADERS => {
                if let Some(status) = status(&frame.payload) {
                    self.statuses.insert(frame.stream, status);
                }
            }
            RST_STREAM => drop(self.resets.insert(frame.stream, code(0))),
            GOAWAY => self.goaway = Some(code(4)),
            _ => {}
        }
        if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
            self.ended.push(frame.stream);
        }
    }
}

/// The status, which h2 writes first: indexed, or with an indexed name and the digits in Huffman or
/// plain text.
fn status(block: &[u8]) -> Option<u16> {
    // A change of the table's size may come before.
    let block = if block.first()? & 0xe0 == 0x20 { &block[1..] } else { block };
    let indexed =
        [(0x88, 200), (0x89, 204), (0x8a, 206), (0x8b, 304), (0x8c, 400), (0x8d, 404), (0x8e, 500)];
    if let Some((_, status)) = indexed.iter().find(|(byte, _)| *byte == block[0]) {
        return Some(*status);
    }
    if block[0] & 0x80 != 0 {
        return Some(0); // from the dynamic table: some status that came before
    }
    let length = usize::from(block[1] & 0x7f);
    let value = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(value).ok()?.parse().ok();
    }
    Some(digits(value))
}

/// Digits in Huffman code: 0, 1, 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> u16 {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | u16::from(bits.next().unwrap());
        }
        let digit = if code < 3 {
            code
        } else {
            (code << 1 | u16::from(bits.next().unwrap())) - 0b01_1001 + 3
        };
        number = number * 10 + digit;
    }
    number
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals that are not indexed, without Huffman.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(&mut bytes, text.len());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// An integer with a prefix of seven bits.
fn integer(bytes: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        return bytes.push(value as u8);
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push((value % 128 + 128) as u8);
        value /= 128;
    }
    bytes.push(value as u8);
}

pub(crate) const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", "/echo")];

/// A request in one HEADERS frame.
pub(crate) fn request(stream: u32, fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    let flags = END_HEADERS | if end { END_STREAM } else { 0 };
    frame(HEADERS, flags, stream, &block(fields))
}

pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", path)];
    request(stream, &fields, true)
}

/// The positive control: an ordinary request on a new connection.
pub(crate) async fn control(node: &Node) {
    let client = Client::connect(node).await;
    let (status, body) = client.get("/echo").await;
    assert_eq!((status, &body[..]), (200, &b"GET /echo "[..]));
    client.ended().await;
}

/// A short while, where nothing can be waited for.
pub(crate) async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}
