//! gRPC as the wire sees it: streams of messages both ways, which end with trailers. The unit is a
//! stream.

use anyhow::{Result, ensure};

use super::{Target, Worker, host, random, timed};
use crate::client::h2::{DATA, END_STREAM, H2, frame, request};
use crate::client::{PATIENCE, Stream};
use crate::histogram::Histogram;

pub(crate) struct Grpc {
    target: Target,
    connection: Option<(H2, u32)>,
}

/// Streams of one connection.
const EACH: u32 = 100;

const FIELDS: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

impl Grpc {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, connection: None }
    }
}

impl Worker for Grpc {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        let Target { https, http2, .. } = &self.target;
        let (mut connection, before) = match self.connection.take() {
            Some(connection) => connection,
            None => (H2::start(Stream::tls(*https, &host("grpc"), http2)?, &[])?, 0),
        };
        let messages = 1 + random(number) % 4;
        let payload = vec![number as u8; 1 + random(number ^ 7) as usize % 2_000];
        timed(histogram, || {
            let id = connection.open();
            connection.send(&request(
                id,
                "POST",
                &host("grpc"),
                "/say.Echo/Say",
                &FIELDS,
                false,
            ))?;
            for n in 1..=messages {
                let flags = if n == messages { END_STREAM } else { 0 };
                connection.send(&frame(DATA, flags, id, &payload))?;
            }
            let answers = connection.answers(&[id], PATIENCE)?;
            let answer = &answers[&id];
            let expected = payload.len() * messages as usize;
            ensure!(answer.status == 200, "{} instead of 200", answer.status);
            ensure!(answer.reset.is_none(), "reset with {:?}", answer.reset);
            ensure!(answer.bytes == expected, "another length came back");
            Ok(())
        })?;
        let spent = before + 1 >= EACH;
        self.connection = (!spent).then_some((connection, before + 1));
        Ok(())
    }

    fn rest(&mut self) {
        self.connection = None;
    }
}
