//! Clients that stop, or nearly stop, at every place where one can.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use rustix::net::sockopt::set_socket_recv_buffer_size;

use super::offender::{Attack, Ends, Offender};
use super::{Deadlines, Scene, host};
use crate::client::h2::{
    DATA, END_STREAM, H2, HEADERS, PREFACE, SETTINGS, WINDOW_SIZE, WINDOW_UPDATE, fields, frame,
    request,
};
use crate::client::{Stream, connect};

const PAUSE: Duration = Duration::from_millis(200);

const LATE: &[&str] = &["code=\"PP06\"", "code=\"PP09\""];

const fn slow(
    name: &'static str,
    about: &'static str,
    unit: &'static str,
    within: fn(&Deadlines) -> u64,
    run: fn(&Scene, &mut Offender) -> Result<()>,
) -> Attack {
    Attack { name, about, unit, ends: Ends::Closed(within), counters: LATE, run, in_short: true }
}

pub(super) const ALL: &[Attack] = &[
    Attack {
        counters: &[],
        ..slow(
            "silent-tcp",
            "A connection that says nothing (timeouts.request_head or h1_idle).",
            "connection",
            |d| d.head.max(d.idle),
            silent,
        )
    },
    Attack {
        counters: &["timeout", "code=\"PT08\""],
        ..slow(
            "half-hello",
            "Half a ClientHello (timeouts.handshake).",
            "connection",
            |d| d.handshake,
            half_hello,
        )
    },
    slow(
        "slowloris",
        "A head of a few bytes five times a second (timeouts.request_head).",
        "line",
        |d| d.head,
        slowloris,
    ),
    slow(
        "slow-body",
        "A body of a byte five times a second (timeouts.request_body).",
        "byte",
        |d| 2 * d.body,
        slow_body,
    ),
    slow(
        "slow-body-h2",
        "The same on a stream of HTTP/2, which is reset; the connection then idles.",
        "frame",
        |d| 2 * d.body + d.idle,
        slow_body_h2,
    ),
    slow(
        "slow-read",
        "An answer of 20 MB that is not read (timeouts.response_write).",
        "connection",
        |d| d.write,
        slow_read,
    ),
    slow(
        "zero-window",
        "A hundred streams whose answers may not be sent: no window.",
        "stream",
        |d| d.write + d.idle + 5,
        zero_window,
    ),
    Attack {
        ends: Ends::Endured,
        counters: &[],
        in_short: false,
        ..slow(
            "dripping-window",
            "Ten streams whose windows open a byte at a time: slow, but going on.",
            "byte",
            |d| d.write,
            dripping_window,
        )
    },
    slow(
        "tcp-stall",
        "A hundred streams of 400 kB each, all windows open, and nothing is read.",
        "stream",
        |d| d.write + d.idle + 5,
        tcp_stall,
    ),
    slow("preface-only", "HTTP/2 that never begins.", "connection", |_| 10, preface_only),
    slow(
        "unacknowledged-settings",
        "SETTINGS of the node that are never acknowledged (10 s).",
        "connection",
        |_| 10,
        unacknowledged,
    ),
    slow(
        "headers-without-end",
        "A header block that stops (10 s).",
        "connection",
        |_| 10,
        endless_headers,
    ),
    Attack {
        counters: &[],
        in_short: false,
        ..slow(
            "idle-h2-with-pings",
            "PINGs once in a while, and never a stream (timeouts.h2_idle).",
            "frame",
            |d| d.idle + 6,
            pings,
        )
    },
    Attack {
        counters: &[],
        in_short: false,
        ..slow(
            "idle-h1",
            "One request, then nothing (timeouts.h1_idle).",
            "connection",
            |d| d.idle,
            idle_h1,
        )
    },
];

fn silent(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.clear()?;
    offender.wait(&mut stream)
}

fn half_hello(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = Stream::Clear(connect(scene.node.https())?);
    stream.write_all(&[0x16, 3, 1, 1, 0, 1, 0, 0, 252])?;
    offender.wait(&mut stream)
}

fn slowloris(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.clear()?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {}\r\n", host("web"))?;
    offender.drip(&mut stream, b"x: y\r\n", PAUSE)
}

fn slow_body(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.clear()?;
    write!(
        stream,
        "POST /echo HTTP/1.1\r\nhost: {}\r\ncontent-length: 100000\r\n\r\n",
        host("web")
    )?;
    offender.drip(&mut stream, b"x", PAUSE)
}

fn slow_body_h2(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = H2::start(scene.tls(&["h2"])?, &[])?;
    client.send(&request(1, "POST", &host("web"), "/echo", &[], false))?;
    while offender.has_time() {
        if client.send(&frame(DATA, 0, 1, b"x")).is_err() {
            break;
        }
        offender.sent += 1;
        let crate::client::h2::Event::Frame(frame) = client.event(PAUSE)? else { continue };
        if matches!(frame.kind, HEADERS | crate::client::h2::RST_STREAM) && frame.stream == 1 {
            offender.say("the stream was ended");
            break;
        }
    }
    offender.listen(&mut client)
}

fn slow_read(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.clear()?;
    set_socket_recv_buffer_size(stream.socket(), 4 << 10)?;
    write!(stream, "GET /bytes/20000000 HTTP/1.1\r\nhost: {}\r\n\r\n", host("web"))?;
    offender.ignore(scene, &stream)
}

fn zero_window(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = H2::start(scene.tls(&["h2"])?, &[(WINDOW_SIZE, 0)])?;
    open(&mut client, offender, 100, "/bytes/400000")?;
    offender.listen(&mut client)
}

fn dripping_window(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = H2::start(scene.tls(&["h2"])?, &[(WINDOW_SIZE, 0)])?;
    open(&mut client, offender, 10, "/bytes/400000")?;
    while offender.has_time() {
        let more = |n: u32| frame(WINDOW_UPDATE, 0, 2 * n + 1, &1u32.to_be_bytes());
        if client.send(&(0..10).flat_map(more).collect::<Vec<u8>>()).is_err() {
            break;
        }
        offender.sent += 10;
        client.event(PAUSE)?;
    }
    Ok(())
}

fn tcp_stall(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let stream = scene.tls(&["h2"])?;
    set_socket_recv_buffer_size(stream.socket(), 4 << 10)?;
    let mut client = H2::start(stream, &[(WINDOW_SIZE, 1 << 30)])?;
    client.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes()))?;
    open(&mut client, offender, 100, "/bytes/400000")?;
    offender.ignore(scene, client.raw())
}

fn open(client: &mut H2, offender: &mut Offender, count: usize, path: &str) -> Result<()> {
    let host = host("web");
    for _ in 0..count {
        let id = client.open();
        client.send(&request(id, "GET", &host, path, &[], true))?;
        offender.sent += 1;
    }
    Ok(())
}

fn preface_only(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.tls(&["h2"])?;
    stream.write_all(PREFACE)?;
    offender.wait(&mut stream)
}

fn unacknowledged(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.tls(&["h2"])?;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())?;
    stream.write_all(&request(1, "GET", &host("web"), "/", &[], true))?;
    offender.wait(&mut stream)
}

fn endless_headers(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = H2::start(scene.tls(&["h2"])?, &[])?;
    // A complete exchange first: an acknowledgement amid a header block would end it too soon.
    client.get(&host("web"), "/")?;
    let id = client.open();
    client.send(&frame(HEADERS, END_STREAM, id, &fields(&[(":method", "GET")])))?;
    offender.sent = 1;
    // Nothing is acknowledged from here on, for the same reason.
    offender.wait(client.raw())
}

fn pings(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = H2::start(scene.tls(&["h2"])?, &[])?;
    client.get(&host("web"), "/")?;
    while offender.has_time() && offender.closed_after.is_none() {
        if client.send(&frame(crate::client::h2::PING, 0, 0, &[0; 8])).is_err() {
            offender.closed();
            break;
        }
        offender.sent += 1;
        let until = std::time::Instant::now() + Duration::from_millis(500);
        while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
            if let crate::client::h2::Event::Closed = client.event(left)? {
                offender.closed();
                break;
            }
        }
    }
    Ok(())
}

fn idle_h1(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut stream = scene.tls(&["http/1.1"])?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("web"))?;
    offender.wait(&mut stream)
}
