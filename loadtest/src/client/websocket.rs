//! A WebSocket whose frames are echoed.

use std::io::{Read as _, Write as _};

use anyhow::{Result, ensure};

use super::Stream;
use super::http1::Http1;

pub(crate) struct WebSocket {
    stream: Stream,
}

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;

impl WebSocket {
    pub(crate) fn open(stream: Stream, host: &str, path: &str) -> Result<Self> {
        let mut http = Http1::new(stream);
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let response = http.exchange(head.as_bytes())?;
        ensure!(response.status == 101, "{} instead of 101", response.status);
        Ok(Self { stream: http.into_stream() })
    }

    /// Sends a message of at most 125 bytes and reads what comes back.
    pub(crate) fn echo(&mut self, message: &[u8]) -> Result<()> {
        self.send(BINARY, message)?;
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let mut answer = vec![0; usize::from(head[1] & 0x7f)];
        self.stream.read_exact(&mut answer)?;
        ensure!(head[0] == BINARY && answer == message, "another message came back");
        Ok(())
    }

    /// Says that it is over and waits for the same.
    pub(crate) fn close(mut self) -> Result<()> {
        self.send(CLOSE, &1000u16.to_be_bytes())?;
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).ok();
        ensure!(rest.first() == Some(&CLOSE), "no close frame came back");
        Ok(())
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// With a mask of zeros, which changes nothing.
    fn send(&mut self, kind: u8, message: &[u8]) -> Result<()> {
        let mut frame = vec![kind, MASKED | u8::try_from(message.len())?, 0, 0, 0, 0];
        frame.extend(message);
        Ok(self.stream.write_all(&frame)?)
    }
}
