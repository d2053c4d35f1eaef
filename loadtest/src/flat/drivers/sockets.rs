//! Connections that are no requests: WebSockets and raw TCP. The unit is a message.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use anyhow::{Result, ensure};

use super::{Target, Worker, host, random, timed};
use crate::client::Stream;
use crate::client::websocket::WebSocket;
use crate::histogram::Histogram;

/// Messages of one connection.
const EACH: u32 = 20;

pub(crate) struct WebSockets {
    target: Target,
    socket: Option<(WebSocket, u32)>,
}

pub(crate) struct Tcp {
    target: Target,
    stream: Option<(Stream, u32)>,
}

impl WebSockets {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, socket: None }
    }
}

impl Worker for WebSockets {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        let (mut socket, before) = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let stream = self.target.stream(random(number), &host("web"))?;
                (WebSocket::open(stream, &host("web"), "/ws")?, 0)
            }
        };
        let message = vec![number as u8; 1 + random(number) as usize % 125];
        timed(histogram, || socket.echo(&message))?;
        if before + 1 < EACH {
            self.socket = Some((socket, before + 1));
            return Ok(());
        }
        // With a farewell, without one, and rudely.
        match random(number) % 3 {
            0 => socket.close(),
            1 => Ok(socket.into_stream().reset()?),
            _ => Ok(()),
        }
    }

    fn rest(&mut self) {
        self.socket = None;
    }

    fn holds_permits(&self) -> bool {
        true
    }
}

impl Tcp {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, stream: None }
    }
}

impl Worker for Tcp {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        let (mut stream, before) = match self.stream.take() {
            Some(stream) => stream,
            None => (Stream::clear(self.target.tcp)?, 0),
        };
        let message = vec![number as u8; 1 + random(number) as usize % 4096];
        timed(histogram, || echo(&mut stream, &message))?;
        if before + 1 < EACH {
            self.stream = Some((stream, before + 1));
            return Ok(());
        }
        match random(number) % 3 {
            0 => {
                stream.socket().shutdown(Shutdown::Write)?;
                ensure!(stream.read(&mut [0])? == 0, "bytes after the end");
                Ok(())
            }
            1 => Ok(stream.reset()?),
            _ => Ok(()),
        }
    }

    fn rest(&mut self) {
        self.stream = None;
    }

    fn holds_permits(&self) -> bool {
        true
    }
}

fn echo(stream: &mut Stream, message: &[u8]) -> Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == message, "other bytes came back");
    Ok(())
}
