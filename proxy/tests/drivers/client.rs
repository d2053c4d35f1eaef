//! A client in raw bytes: it sends what it is told, however wrong.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::harness::PATIENCE;

pub(crate) struct Client<S> {
    pub(crate) stream: S,
    received: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) minor: u8,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, received: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("sent in time").unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends what the other side takes of it; it may have closed already.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("sent in time")?;
        self.stream.flush().await
    }

    /// Ends this side.
    pub(crate) async fn shutdown(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The answer to anything but HEAD.
    pub(crate) async fn response(&mut self) -> Response {
        let response = self.head().await;
        self.body_of(response).await
    }

    /// A head, interim ones included; the body is not read.
    pub(crate) async fn head(&mut self) -> Response {
        let (mut response, length) = loop {
            if let Some(parsed) = parse_head(&self.received) {
                break parsed;
            }
            assert!(self.more().await, "the connection ended: {:?}", self.text());
        };
        self.received.drain(..length);
        response.body = Vec::new();
        response
    }

    async fn body_of(&mut self, mut response: Response) -> Response {
        if matches!(response.status, 100..=199 | 204 | 304) {
            return response;
        }
        if response.header("transfer-encoding") == Some("chunked") {
            self.chunks(&mut response).await;
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().unwrap();
            response.body = self.take(length).await;
        } else {
            while self.more().await {}
            response.body = std::mem::take(&mut self.received);
        }
        response
    }

    async fn chunks(&mut self, response: &mut Response) {
        loop {
            let line = self.line().await;
            let size = usize::from_str_radix(&line, 16).unwrap();
            if size == 0 {
                break;
            }
            response.body.extend(self.take(size).await);
            assert_eq!(self.line().await, "");
        }
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return;
            }
            response.trailers.push(line);
        }
    }

    /// One line without its CRLF.
    pub(crate) async fn line(&mut self) -> String {
        let end = loop {
            if let Some(end) = self.received.windows(2).position(|bytes| bytes == b"\r\n") {
                break end;
            }
            assert!(self.more().await, "the connection ended: {:?}", self.text());
        };
        let line = String::from_utf8(self.take(end).await).unwrap();
        self.take(2).await;
        line
    }

    /// Exactly `length` bytes.
    pub(crate) async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() < length {
            assert!(self.more().await, "the connection ended: {:?}", self.text());
        }
        self.received.drain(..length).collect()
    }

    /// Whatever comes until the other side ends, with how it ended.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, io::Result<()>) {
        let ended = loop {
            match self.read().await {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        (std::mem::take(&mut self.received), ended)
    }

    /// The other side ends in order and without another byte.
    pub(crate) async fn ended(&mut self) {
        let (rest, ended) = self.rest().await;
        assert_eq!(String::from_utf8_lossy(&rest), "");
        ended.expect("a clean end");
    }

    async fn more(&mut self) -> bool {
        self.read().await.expect("a clean end") > 0
    }

    async fn read(&mut self) -> io::Result<usize> {
        timeout(PATIENCE, self.stream.read_buf(&mut self.received))
            .await
            .unwrap_or_else(|_| panic!("nothing comes; so far: {:?}", self.text()))
    }

    fn text(&self) -> String {
        let bytes = &self.received[..self.received.len().min(500)];
        String::from_utf8_lossy(bytes).into_owned()
    }
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The code of a failure.
    pub(crate) fn code(&self) -> &str {
        self.header("ferrule-error").unwrap_or("none")
    }
}

fn parse_head(bytes: &[u8]) -> Option<(Response, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(bytes).expect("an HTTP response") else {
        return None;
    };
    let headers = head.headers.iter().map(|field| {
        (field.name.to_ascii_lowercase(), String::from_utf8(field.value.to_vec()).unwrap())
    });
    let response = Response {
        status: head.code.unwrap(),
        minor: head.version.unwrap(),
        headers: headers.collect(),
        body: Vec::new(),
        trailers: Vec::new(),
    };
    Some((response, length))
}
