//! Bodies that do not fit into any buffer, and clients that take their time with them.

use std::io::Read as _;
use std::io::Write as _;
use std::thread;

use anyhow::{Result, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::{PAUSE, Target, Worker, host, random, timed};
use crate::client::h2::{DATA, END_STREAM, H2, frame, request};
use crate::client::http1::Http1;
use crate::client::{PATIENCE, Stream};
use crate::histogram::Histogram;

/// Down and up, over HTTP/1.1 in cleartext and in TLS, and over HTTP/2. The unit is a body.
pub(crate) struct Bodies {
    target: Target,
}

/// Reads an answer in pieces, from a socket that holds little. The unit is an answer.
pub(crate) struct SlowReader {
    target: Target,
}

const LARGE: usize = 2 << 20;

impl Bodies {
    pub(crate) fn new(target: Target) -> Self {
        Self { target }
    }

    fn http1(&self, number: u64) -> Result<()> {
        let host = host("web");
        let mut client = Http1::new(self.target.stream(number / 4, &host)?);
        if number.is_multiple_of(4) {
            let answer = client.get(&host, &format!("/bytes/{LARGE}"))?;
            ensure!(answer.status == 200 && answer.body.len() == LARGE, "another answer");
            return Ok(());
        }
        let body = vec![number as u8; LARGE / 4];
        let head = format!(
            "POST /echo HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answer = client.exchange(&[head.as_bytes(), &body].concat())?;
        ensure!(answer.status == 200 && answer.body == body, "another body came back");
        Ok(())
    }

    fn http2(&self, number: u64) -> Result<()> {
        let host = host("web");
        let stream = Stream::tls(self.target.https, &host, &self.target.http2)?;
        let mut client = H2::start(stream, &[])?;
        if number % 4 == 1 {
            let answer = client.get(&host, &format!("/bytes/{LARGE}"))?;
            ensure!(answer.status == 200 && answer.bytes == LARGE, "another answer");
            return Ok(());
        }
        // Within the window that a stream has from the start, so that nothing needs to be waited for.
        const UP: usize = 48 << 10;
        let id = client.open();
        client.send(&request(id, "POST", &host, "/echo", &[], false))?;
        for part in vec![number as u8; UP].chunks(16 << 10) {
            client.send(&frame(DATA, 0, id, part))?;
        }
        client.send(&frame(DATA, END_STREAM, id, &[]))?;
        let answer = &client.answers(&[id], PATIENCE)?[&id];
        ensure!(answer.status == 200 && answer.bytes == UP, "another body came back");
        Ok(())
    }
}

impl Worker for Bodies {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        timed(histogram, || match number % 4 {
            0 | 2 => self.http1(number),
            _ => self.http2(number),
        })
    }

    fn rest(&mut self) {}
}

impl SlowReader {
    pub(crate) fn new(target: Target) -> Self {
        Self { target }
    }
}

impl Worker for SlowReader {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        const BYTES: usize = 256 << 10;
        let host = host("web");
        timed(histogram, || {
            let mut stream = self.target.stream(random(number), &host)?;
            set_socket_recv_buffer_size(stream.socket(), 8 << 10)?;
            let head =
                format!("GET /bytes/{BYTES} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            let mut chunk = [0; 4 << 10];
            let mut taken = 0;
            loop {
                let count = stream.read(&mut chunk)?;
                if count == 0 {
                    break;
                }
                taken += count;
                if random(taken as u64).is_multiple_of(4) {
                    thread::sleep(PAUSE);
                }
            }
            ensure!(taken > BYTES, "closed after {taken} bytes");
            Ok(())
        })
    }

    fn rest(&mut self) {}
}
