//! Clients that leave at any point. The unit is a connection, or a stream of one.

use std::io::{Read as _, Write as _};
use std::thread;

use anyhow::Result;

use super::{PAUSE, Target, Worker, host, random, timed};
use crate::client::h2::{H2, RST_STREAM, frame, request};
use crate::client::{Stream, connect};
use crate::histogram::Histogram;

/// What the node answers is not looked at: what it keeps is.
pub(crate) struct Resets {
    target: Target,
}

const CANCEL: [u8; 4] = 8u32.to_be_bytes();

impl Resets {
    pub(crate) fn new(target: Target) -> Self {
        Self { target }
    }

    /// A head or a body, cut anywhere.
    fn in_a_request(&self, roll: u64) -> Result<()> {
        let mut stream = self.target.stream(roll, &host("web"))?;
        let text = format!(
            "POST /echo HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000\r\n\r\n{}",
            host("web"),
            "x".repeat(1_000)
        );
        let cut = (roll >> 8) as usize % text.len();
        stream.write_all(&text.as_bytes()[..cut])?;
        leave(stream, roll)
    }

    /// Any number of bytes of an answer were read.
    fn in_an_answer(&self, roll: u64) -> Result<()> {
        let mut stream = self.target.stream(roll, &host("web"))?;
        let head = format!("GET /bytes/300000 HTTP/1.1\r\nhost: {}\r\n\r\n", host("web"));
        stream.write_all(head.as_bytes())?;
        let mut left = (roll >> 8) % 300_000;
        let mut chunk = [0; 16 << 10];
        while left > 0 {
            let count = stream.read(&mut chunk)?;
            left = left.saturating_sub(count.max(1) as u64);
        }
        leave(stream, roll)
    }

    /// Some bytes that may begin a ClientHello.
    fn in_a_handshake(&self, roll: u64) -> Result<()> {
        let mut stream = connect(self.target.https)?;
        let hello = [0x16, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
        stream.write_all(&hello[..(roll >> 8) as usize % hello.len()])?;
        leave(Stream::Clear(stream), roll)
    }

    /// A few streams, below what the node counts as a flood, and then the connection.
    fn streams(&self, roll: u64) -> Result<()> {
        let stream = Stream::tls(self.target.https, &host("web"), &self.target.http2)?;
        let mut client = H2::start(stream, &[])?;
        for n in 0..8 {
            let id = client.open();
            client.send(&request(id, "GET", &host("web"), "/bytes/100000", &[], true))?;
            if random(roll ^ n).is_multiple_of(2) {
                thread::sleep(PAUSE);
            }
            client.send(&frame(RST_STREAM, 0, id, &CANCEL))?;
        }
        Ok(())
    }
}

impl Worker for Resets {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        let roll = random(number);
        timed(histogram, || match number % 4 {
            0 => self.in_a_request(roll),
            1 => self.in_an_answer(roll),
            2 => self.in_a_handshake(roll),
            _ => self.streams(roll),
        })
    }

    fn rest(&mut self) {}
}

/// With a reset or without; at once, or after the node has seen what came.
fn leave(stream: Stream, roll: u64) -> Result<()> {
    if roll & 0x10 != 0 {
        thread::sleep(PAUSE);
    }
    if roll & 0x20 != 0 {
        stream.reset()?;
    }
    Ok(())
}
