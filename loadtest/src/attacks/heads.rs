//! Heads that are too much, and bytes that are no head.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::Result;

use super::offender::{Attack, Ends, Offender};
use super::{Deadlines, Scene, host};
use crate::client::{Stream, connect, is_timeout};

fn at_once(_: &Deadlines) -> u64 {
    10
}

const fn head(
    name: &'static str,
    about: &'static str,
    counters: &'static [&'static str],
    run: fn(&Scene, &mut Offender) -> Result<()>,
) -> Attack {
    let (unit, ends) = ("connection", Ends::Closed(at_once));
    Attack { name, about, unit, ends, counters, run, in_short: true }
}

pub(super) const ALL: &[Attack] = &[
    head("many-fields", "A head of 20,000 fields.", &["PP04"], |scene, offender| {
        send(scene, offender, &"x: y\r\n".repeat(20_000))
    }),
    head("large-field", "A field of 2 MB.", &["PP04"], |scene, offender| {
        send(scene, offender, &format!("x: {}\r\n", "y".repeat(2_000_000)))
    }),
    head("long-target", "A target of 1 MB.", &["PP03"], long_target),
    Attack {
        ends: Ends::Endured,
        counters: &[],
        ..head(
            "pipeline",
            "Ten thousand requests at once on each connection, whose answers are not read.",
            &[],
            pipeline,
        )
    },
    head(
        "bad-handshakes",
        "Bytes that are no TLS, each on a connection of its own, for five seconds.",
        &["failed", "client_left", "io_error", "PT04"],
        bad_handshakes,
    ),
    head(
        "proxy-header-http",
        "A PROXY header from a stranger, in cleartext.",
        &["PP02"],
        |scene, offender| {
            stranger(scene.clear()?, offender, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        },
    ),
    head(
        "proxy-header-tls",
        "A PROXY header (version 2) from a stranger, before TLS.",
        &["failed", "PT04", "PT03"],
        |scene, offender| {
            let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x01\0\x02";
            stranger(Stream::Clear(connect(scene.node.https())?), offender, v2)
        },
    ),
];

/// Until it is closed: whoever refuses a head need not read it.
fn send(scene: &Scene, offender: &mut Offender, fields: &str) -> Result<()> {
    let mut stream = scene.clear()?;
    let head = format!("GET / HTTP/1.1\r\nhost: {}\r\n{fields}\r\n", host("web"));
    stranger_sends(&mut stream, offender, head.as_bytes())
}

fn long_target(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.clear()?;
    let head = format!("GET /{} HTTP/1.1\r\nhost: {}\r\n\r\n", "p".repeat(1_000_000), host("web"));
    stranger_sends(&mut stream, offender, head.as_bytes())
}

fn stranger(mut stream: Stream, offender: &mut Offender, first: &[u8]) -> Result<()> {
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("web"));
    stranger_sends(&mut stream, offender, &[first, request.as_bytes()].concat())
}

fn stranger_sends(stream: &mut Stream, offender: &mut Offender, bytes: &[u8]) -> Result<()> {
    offender.sent += 1;
    stream.set_patience(Duration::from_secs(2))?;
    for part in bytes.chunks(16 << 10) {
        // What it said before it closed can still be read, unless that was lost with a reset.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    offender.wait(stream)
}

fn pipeline(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.clear()?;
    let request = format!("GET /bytes/10000 HTTP/1.1\r\nhost: {}\r\n\r\n", host("web")).repeat(100);
    stream.set_patience(Duration::from_millis(500))?;
    for _ in 0..100 {
        match stream.write_all(request.as_bytes()) {
            Ok(()) => offender.sent += 100,
            Err(_) => break,
        }
    }
    offender.ignore(scene, &stream)
}

/// Paced, so that all offenders together make about a thousand a second.
fn bad_handshakes(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while std::time::Instant::now() < end && offender.has_time() {
        let mut stream = connect(scene.node.https())?;
        // A record that begins like a ClientHello and is none.
        if stream.write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00").is_ok() {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            match stream.read(&mut [0; 64]) {
                Err(error) if is_timeout(&error) => return Ok(()),
                _ => offender.sent += 1,
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    offender.say(format!("{} handshakes failed", offender.sent));
    offender.closed();
    Ok(())
}
