//! An HTTP/1.1 instance.
//!
//! | path | answer |
//! |---|---|
//! | `/bytes/N` | 200 with so many bytes |
//! | `/echo` | 200 with the request's body |
//! | `/head` | 200 with the request's head |
//! | `/wait/MS` | 200 after so long |
//! | `/status/N` | that status, without a body |
//! | `/odd/NAME` | the bytes of [`odd`] |
//! | `/who` | 200 with the address that was asked |
//! | `/ws` | 101, and then an echo of messages |
//! | anything else | 200 with a few bytes |

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::net::sockopt::set_socket_linger;

use super::{Seen, Takes, websocket};

/// The connection ended in the middle of a body.
#[derive(Debug)]
struct Cut;

/// A head and its body, as a strict server reads them.
struct Request {
    head: String,
    body: Vec<u8>,
}

const SMALL: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n\r\nhello\n";

/// An empty message is what a collector sends when it has nothing to complain about.
const TAKEN: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";

pub(super) fn serve(connection: TcpStream, seen: &Seen) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(16 * 1024, connection);
    loop {
        let Some(head) = head(&mut stream)? else { return Ok(()) };
        seen.requests.fetch_add(1, SeqCst);
        // The node's own checks carry no id, and are the only ones that ask for this.
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if !has(&head, "ferrule-request-id") && path != "/health" {
            seen.unmarked.fetch_add(1, SeqCst);
        }
        let path = path.split('?').next().unwrap_or_default();
        // Who does not read a body answers before it came.
        if let Some(name) = path.strip_prefix("/odd/") {
            return odd(stream.get_mut(), name);
        }
        if path == "/ws" {
            stream.get_mut().write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            )?;
            return websocket::echo(&mut stream);
        }
        let request = match body(&mut stream, head) {
            Ok(request) => request,
            // Whoever cuts a request does not make another one of it.
            Err(error) if error.is::<Cut>() || error.is::<std::io::Error>() => return Ok(()),
            Err(_) => {
                seen.malformed.fetch_add(1, SeqCst);
                return Ok(());
            }
        };
        answer(stream.get_mut(), path, &request)?;
    }
}

fn answer(stream: &mut TcpStream, path: &str, request: &Request) -> Result<()> {
    let with = |stream: &mut TcpStream, body: &[u8]| -> Result<()> {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        // One write: two small ones would cost a packet more.
        Ok(stream.write_all(&[head.as_bytes(), body].concat())?)
    };
    let (what, argument) = path.get(1..).and_then(|path| path.split_once('/')).unwrap_or_default();
    match what {
        "bytes" => {
            static CHUNK: [u8; 64 * 1024] = [b'b'; 64 * 1024];
            let mut left: usize = argument.parse()?;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {left}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            while left > 0 {
                let now = left.min(CHUNK.len());
                stream.write_all(&CHUNK[..now])?;
                left -= now;
            }
            Ok(())
        }
        "wait" => {
            thread::sleep(Duration::from_millis(argument.parse()?));
            Ok(stream.write_all(SMALL)?)
        }
        "status" => {
            let head = format!("HTTP/1.1 {argument} So\r\ncontent-length: 0\r\n\r\n");
            Ok(stream.write_all(head.as_bytes())?)
        }
        _ if path == "/who" => with(stream, stream_ip(stream)?.as_bytes()),
        _ if path == "/echo" => with(stream, &request.body),
        _ if path == "/head" => with(stream, request.head.as_bytes()),
        _ => Ok(stream.write_all(SMALL)?),
    }
}

fn stream_ip(stream: &TcpStream) -> Result<String> {
    Ok(stream.local_addr()?.ip().to_string())
}

/// Reads one head, of whatever.
pub(crate) fn skip_head(stream: &mut TcpStream) -> Result<()> {
    head(&mut BufReader::new(stream))?;
    Ok(())
}

/// The same few bytes, after a while.
pub(crate) fn serve_slowly(connection: TcpStream, pause: Duration) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut stream = BufReader::new(connection);
    while head(&mut stream)?.is_some() {
        thread::sleep(pause);
        stream.get_mut().write_all(SMALL)?;
    }
    Ok(())
}

/// Answers that no instance should give; after each the connection ends.
pub(crate) fn odd(stream: &mut TcpStream, name: &str) -> Result<()> {
    let bytes: &[u8] = match name {
        "never" => {
            // Until the node gives up.
            stream.read_to_end(&mut Vec::new())?;
            return Ok(());
        }
        "reset" => {
            set_socket_linger(&*stream, Some(Duration::ZERO))?;
            return Ok(());
        }
        "closed" => b"",
        "half-head" => b"HTTP/1.1 200 OK\r\ncontent-len",
        "half-body" => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly this",
        "half-chunk" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n400\r\nonly this",
        "garbage" => b"\x00\x01\x02 this is no HTTP at all\r\n\r\n",
        "two-lengths" => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello\n",
        "length-and-chunked" => {
            b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        }
        "unknown-coding" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "surplus" => {
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nforeign"
        }
        "unasked-101" => b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        "long-head" => {
            let field = format!("x-long: {}\r\n", "y".repeat(1_000));
            let head = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", field.repeat(1_000));
            stream.write_all(head.as_bytes())?;
            return Ok(());
        }
        other => anyhow::bail!("no odd answer is called {other}"),
    };
    Ok(stream.write_all(bytes)?)
}

/// An OTLP collector, which reads what it is sent.
pub(super) fn collect(connection: TcpStream, mode: &AtomicU8) -> Result<()> {
    const NOTHING: u8 = Takes::Nothing as u8;
    const BUSY_NOW: u8 = Takes::Busy as u8;
    const CLOSED: u8 = Takes::Closed as u8;
    const TRICKLE: u8 = Takes::Trickle as u8;
    connection.set_nodelay(true)?;
    let mut stream = BufReader::new(connection);
    while let Some(head) = head(&mut stream)? {
        body(&mut stream, head)?;
        match mode.load(SeqCst) {
            NOTHING => {}
            BUSY_NOW => stream.get_mut().write_all(BUSY)?,
            CLOSED => return Ok(()),
            TRICKLE => {
                for byte in TAKEN {
                    stream.get_mut().write_all(&[*byte])?;
                    thread::sleep(Duration::from_secs(1));
                }
            }
            _ => stream.get_mut().write_all(TAKEN)?,
        }
    }
    Ok(())
}

/// `None` when the connection ends before one begins.
fn head(stream: &mut impl std::io::BufRead) -> Result<Option<String>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        if stream.read_until(b'\n', &mut head)? == 0 {
            return Ok(None);
        }
        if matches!(&head[before..], b"\r\n" | b"\n") && before > 0 {
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
    }
}

fn body(stream: &mut BufReader<TcpStream>, head: String) -> Result<Request> {
    let mut body = Vec::new();
    let lengths: Vec<&str> = values(&head, "content-length").collect();
    let codings: Vec<&str> = values(&head, "transfer-encoding").collect();
    match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => {}
        ([length], []) => take(stream, length.parse()?, &mut body)?,
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => chunks(stream, &mut body)?,
        _ => anyhow::bail!("no one length"),
    }
    Ok(Request { head, body })
}

fn chunks(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let size = u64::from_str_radix(&line(stream)?, 16)?;
        take(stream, size, body)?;
        let mut end = line(stream)?;
        if size == 0 {
            while !end.is_empty() {
                end = line(stream)?; // trailers
            }
            return Ok(());
        }
        ensure!(end.is_empty(), "a chunk without an end");
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    ensure!(line.ends_with('\n'), Cut);
    Ok(line.strip_suffix("\r\n").context("a line without its end")?.to_owned())
}

fn take(stream: &mut BufReader<TcpStream>, length: u64, body: &mut Vec<u8>) -> Result<()> {
    let taken = stream.take(length).read_to_end(body)?;
    ensure!(taken as u64 == length, Cut);
    Ok(())
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut in the middle of a body")
    }
}

impl std::error::Error for Cut {}

fn has(head: &str, name: &str) -> bool {
    values(head, name).next().is_some()
}

fn values<'h>(head: &'h str, name: &str) -> impl Iterator<Item = &'h str> {
    head.lines().skip(1).filter_map(move |line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
