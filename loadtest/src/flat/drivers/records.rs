//! Requests no two of which have the same path, host or user agent.

use anyhow::{Result, ensure};

use super::{Target, Worker, timed};
use crate::client::Stream;
use crate::client::http1::Http1;
use crate::histogram::Histogram;

/// One connection at a time, and one request at a time on it.
pub(crate) struct Records {
    target: Target,
    /// Requests of a connection, since those too may leave something behind.
    each: u32,
    connection: Option<(Http1, u32)>,
}

/// One of so many requests names a host of nobody, and is refused.
const STRANGERS: u64 = 16;

impl Records {
    pub(crate) fn new(target: Target, each: u32) -> Self {
        Self { target, each, connection: None }
    }
}

impl Worker for Records {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        let (mut connection, before) = match self.connection.take() {
            Some(connection) => connection,
            None => (Http1::new(Stream::clear(self.target.http)?), 0),
        };
        let stranger = number % STRANGERS == 1;
        let host = if stranger { "nobody.test".to_owned() } else { super::host("web") };
        let request = request(number, &host);
        let answer = timed(histogram, || connection.exchange(request.as_bytes()))?;
        let expected = if stranger { 404 } else { 200 };
        ensure!(answer.status == expected, "{} instead of {expected}", answer.status);
        let spent = answer.closes() || before + 1 >= self.each;
        self.connection = (!spent).then_some((connection, before + 1));
        Ok(())
    }

    fn rest(&mut self) {
        self.connection = None;
    }
}

/// With a trace context that nobody continues, and a token that nobody believes.
fn request(number: u64, host: &str) -> String {
    let trace = u128::from(number) + 1;
    format!(
        "GET /{number:x}/of/{number}?n={number} HTTP/1.1\r\n\
         host: h{number}.{host}\r\n\
         user-agent: agent-{number}/1.0\r\n\
         traceparent: 00-{trace:032x}-{:016x}-01\r\n\
         ferrule-trace: token-{number}\r\n\
         x-number: {number}\r\n\r\n",
        number + 1
    )
}
