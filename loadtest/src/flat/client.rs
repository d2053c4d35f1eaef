//! Clients, no two requests of which have the same path, host or user agent.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The domain whose every host is the app's.
pub(super) const DOMAIN: &str = "flat.test";

/// One connection at a time, and one request at a time on it.
pub(super) struct Client {
    address: SocketAddr,
    connection: Option<Connection>,
}

struct Connection {
    stream: BufReader<TcpStream>,
    requests: u32,
}

struct Answer {
    status: u16,
    last: bool,
}

/// A connection is given up after so many requests, since those too may leave something behind.
const REQUESTS_PER_CONNECTION: u32 = 100;

/// One of so many requests names a host of nobody, and is refused.
const STRANGERS: u64 = 16;

/// Sends the requests with these numbers, shared among `clients`; none is in flight afterwards.
pub(super) fn window(clients: &mut [Client], numbers: Range<u64>) -> Result<()> {
    let step = clients.len();
    thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(index, client)| {
                let mut numbers = numbers.clone().skip(index).step_by(step);
                scope.spawn(move || numbers.try_for_each(|number| client.send(number)))
            })
            .collect();
        let mut joined = threads.into_iter().map(|thread| thread.join());
        joined.try_for_each(|ended| ended.expect("clients do not panic"))
    })
}

// === impl Client ===

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    fn send(&mut self, number: u64) -> Result<()> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.address)?,
        };
        let stranger = number % STRANGERS == 1;
        let host = if stranger { "nobody.test" } else { DOMAIN };
        let answer = connection
            .exchange(&request(number, host))
            .with_context(|| format!("request {number}"))?;
        let expected = if stranger { 404 } else { 200 };
        ensure!(answer.status == expected, "request {number} got {}", answer.status);
        let spent = answer.last || connection.requests >= REQUESTS_PER_CONNECTION;
        self.connection = (!spent).then_some(connection);
        Ok(())
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

// === impl Connection ===

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), requests: 0 })
    }

    fn exchange(&mut self, request: &str) -> Result<Answer> {
        self.requests += 1;
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut answer = Answer { status: 0, last: false };
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "closed in the middle of an answer");
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if let Some(status) = text.strip_prefix("HTTP/1.1 ") {
                answer.status = status.get(..3).context("no status")?.parse()?;
            } else if let Some((name, value)) = text.split_once(": ") {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse()?,
                    "connection" => answer.last = value.eq_ignore_ascii_case("close"),
                    _ => {}
                }
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(answer)
    }
}
