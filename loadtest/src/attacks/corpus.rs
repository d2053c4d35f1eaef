//! Requests and answers that two readers would read differently. None of them may be read at all.
//!
//! The judge is the instance: it counts what no strict server would take, and requests without the id
//! that the node gives to each, which are requests that the node never saw as such.

use std::io::Write as _;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Result;

use super::{Scene, host};
use crate::client::Stream;
use crate::client::h2::{
    DATA, END_HEADERS, END_STREAM, Event, GOAWAY, H2, HEADERS, RST_STREAM, fields, frame, request,
};
use crate::client::http1::Http1;
use crate::suite::{Part, Table};
use crate::verdict::Check;

/// A list of cases.
pub(crate) struct Case {
    pub name: &'static str,
    pub about: &'static str,
    pub run: fn(&Scene, &mut Part) -> Result<()>,
}

pub(super) const ALL: &[Case] = &[
    Case {
        name: "smuggling-http1",
        run: smuggling_http1,
        about: "HTTP/1.1 requests whose length or lines are ambiguous, each with another request behind it. \
         Each must be refused with 400 (or 501) and the connection closed.",
    },
    Case {
        name: "smuggling-h2-to-http1",
        run: smuggling_h2,
        about: "HTTP/2 requests that would become two, or another one, when written as HTTP/1.1.",
    },
    Case {
        name: "smuggling-answers",
        run: answers,
        about: "Answers of an instance that are broken, too long, or ambiguous, over HTTP/1.1 and HTTP/2: \
         the client is told 502, or sees a body that visibly ends too early; the next request gets \
         its own answer.",
    },
    Case {
        name: "smuggling-websocket",
        run: websocket,
        about: "Upgrades that an instance declines or that are none, with a request behind them.",
    },
];

/// What the instance thinks of all this, before and after.
struct Judge {
    unmarked: u64,
    malformed: u64,
}

impl Judge {
    pub(super) fn sit(scene: &Scene) -> Self {
        let seen = scene.origin.seen();
        Self { unmarked: seen.unmarked.load(SeqCst), malformed: seen.malformed.load(SeqCst) }
    }

    pub(super) fn rules(&self, scene: &Scene, part: &mut Part) {
        let now = Self::sit(scene);
        let (foreign, broken) = (now.unmarked - self.unmarked, now.malformed - self.malformed);
        part.check(Check::that("requests that the node never saw", "0", foreign, foreign == 0));
        part.check(Check::that("malformed requests at the instance", "0", broken, broken == 0));
    }
}

/// Cases by what should have become of them, and what did.
#[derive(Default)]
struct Verdicts {
    total: usize,
    surprises: Vec<(String, String)>,
}

impl Verdicts {
    fn add(&mut self, case: &str, said: &str, as_expected: bool) {
        self.total += 1;
        if !as_expected {
            self.surprises.push((case.escape_debug().to_string(), said.to_owned()));
        }
    }

    fn show(self, part: &mut Part, name: &str) {
        let Self { total, surprises } = self;
        let measured = format!("{} of {total}", total - surprises.len());
        part.check(Check::that(name, "all", measured, surprises.is_empty() && total > 0));
        if !surprises.is_empty() {
            let mut table = Table::new("Not as they should be", &["case", "what happened"]);
            for (case, said) in surprises {
                table.row([case.chars().take(200).collect(), said]);
            }
            part.tables.push(table);
        }
    }
}

/// Behind each case; whoever answers it was misled.
fn behind() -> String {
    format!("GET /smuggled HTTP/1.1\r\nhost: {}\r\n\r\n", host("web"))
}

fn smuggling_http1(scene: &Scene, part: &mut Part) -> Result<()> {
    let judge = Judge::sit(scene);
    let mut verdicts = Verdicts::default();
    for case in http1_cases() {
        let mut stream = scene.clear()?;
        stream.set_patience(Duration::from_secs(5))?;
        stream.write_all((case.clone() + &behind()).as_bytes())?;
        let mut client = Http1::new(stream);
        let said = match client.response() {
            Ok(answer) if matches!(answer.status, 400 | 501) => match client.response() {
                Err(_) => "refused".to_owned(),
                Ok(second) => {
                    format!("{}, then {} for what was behind", answer.status, second.status)
                }
            },
            Ok(answer) => format!("{} {}", answer.status, answer.code()),
            // A chunk that is none shows when the request is on its way: cut is refused as well.
            Err(_) => "refused".to_owned(),
        };
        verdicts.add(&case, &said, said == "refused");
    }
    verdicts.show(part, "refused, and closed");
    judge.rules(scene, part);
    Ok(())
}

fn http1_cases() -> Vec<String> {
    let host = host("web");
    let post = |fields: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n\r\n{body}")
    };
    let mut cases = Vec::new();
    for fields in [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
        "transfer-encoding: chunked\r\ncontent-length: 0",
        "content-length: 2\r\ncontent-length: 2",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2\r\nContent-Length: 3",
        "content-length: 2, 2",
        "content-length: +2",
        "content-length: -2",
        "content-length: 0x2",
        "content-length: 2 2",
        "content-length: ",
        "content-length: two",
        "content-length: 18446744073709551618",
        "content-length : 2",
        "content-length\t: 2",
        " content-length: 2",
        "content-length:\r\n 2",
        "transfer-encoding: xchunked",
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: ,chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;x=1",
        "transfer-encoding:",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: chunked\r\nTransfer-Encoding: chunked",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding : chunked",
        "transfer-encoding:\r\n chunked",
        "x: y\r\n transfer-encoding: chunked",
        "x: y\rtransfer-encoding: chunked",
        "x: y\ntransfer-encoding: chunked",
        "x: y\0\r\ntransfer-encoding: chunked",
        "no colon\r\ncontent-length: 2",
        ": no name",
        "x(y): z",
    ] {
        cases.push(post(fields, "0\r\n\r\n"));
    }
    for chunk in [
        "2\nhi\r\n0\r\n\r\n",
        "2\r\nhi\n0\r\n\r\n",
        "2\r\nhi!\r\n0\r\n\r\n",
        "2\r\nhi0\r\n\r\n",
        "+2\r\nhi\r\n0\r\n\r\n",
        "-2\r\nhi\r\n0\r\n\r\n",
        " 2\r\nhi\r\n0\r\n\r\n",
        "0x2\r\nhi\r\n0\r\n\r\n",
        "2 2\r\nhi\r\n0\r\n\r\n",
        "\r\nhi\r\n0\r\n\r\n",
        "10000000000000002\r\nhi\r\n0\r\n\r\n",
        "2;a=\nb\r\nhi\r\n0\r\n\r\n",
        "2;a=\rb\r\nhi\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\nx: y\n\r\n",
    ] {
        cases.push(post("transfer-encoding: chunked", chunk));
    }
    for line in [
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "GET /\thttp HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/3.0",
        "GET /",
        " GET / HTTP/1.1",
        "G@T / HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET /\r HTTP/1.1",
        "GET /\0 HTTP/1.1",
    ] {
        cases.push(format!("{line}\r\nhost: {host}\r\n\r\n"));
    }
    cases.push(format!(
        "POST / HTTP/1.0\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ));
    cases.push(format!("GET / HTTP/1.1\nhost: {host}\n\n"));
    cases.push(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\n"));
    cases
}

fn smuggling_h2(scene: &Scene, part: &mut Part) -> Result<()> {
    let judge = Judge::sit(scene);
    let mut verdicts = Verdicts::default();
    for (what, head, body) in h2_cases() {
        let said = h2_case(scene, &head, body)?;
        verdicts.add(&what, &said, said.starts_with("refused"));
    }
    verdicts.show(part, "refused");
    judge.rules(scene, part);
    Ok(())
}

/// What becomes of one stream.
fn h2_case(scene: &Scene, head: &[u8], body: Option<&str>) -> Result<String> {
    let mut client = H2::start(scene.tls(&["h2"])?, &[])?;
    let ends = if body.is_none() { END_STREAM } else { 0 };
    client.send(&frame(HEADERS, END_HEADERS | ends, 1, head))?;
    if let Some(body) = body {
        // Whoever is refused by its head may be closed by now.
        drop(client.send(&frame(DATA, END_STREAM, 1, body.as_bytes())));
    }
    let mut block = Vec::new();
    loop {
        match client.event(Duration::from_secs(5))? {
            Event::Frame(frame) if frame.kind == RST_STREAM => {
                return Ok("refused by a reset".into());
            }
            Event::Frame(frame) if frame.kind == GOAWAY => return Ok("refused by GOAWAY".into()),
            Event::Frame(frame) if frame.kind == HEADERS && block.is_empty() => {
                // 400 has an entry in the static table; 4xx and 501 otherwise are literals.
                block = frame.payload;
                let first = block.iter().find(|byte| *byte & 0xe0 != 0x20).copied();
                if first == Some(0x80 | 12) {
                    return Ok("refused with 400".into());
                }
                if first == Some(0x80 | 8) {
                    return Ok("answered with 200".into());
                }
                return Ok("refused with another status".into());
            }
            Event::Frame(_) => {}
            Event::Silence => return Ok("nothing happened".into()),
            Event::Closed => return Ok("refused by closing".into()),
        }
    }
}

/// Description, header block, and what follows it.
fn h2_cases() -> Vec<(String, Vec<u8>, Option<&'static str>)> {
    let host = host("web");
    let base = |method: &'static str| -> Vec<(String, String)> {
        [(":method", method), (":scheme", "https"), (":authority", &*host), (":path", "/")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    };
    let block = |list: &[(String, String)]| {
        let list: Vec<(&str, &str)> =
            list.iter().map(|(name, value)| (&**name, &**value)).collect();
        fields(&list)
    };
    let mut cases = Vec::new();
    let smuggled = "/ HTTP/1.1\r\nhost: x\r\n\r\nGET /smuggled";
    for (name, value) in [
        (":path", smuggled),
        (":path", "/ x"),
        (":path", "/\0"),
        (":path", "/\n"),
        (":path", ""),
        (":path", "relative"),
        (":method", "GET / HTTP/1.1\r\nx: y\r\n\r\nGET"),
        (":method", "G T"),
        (":method", ""),
        (":scheme", "https\r\nx: y"),
        (":authority", "web.proof.test\r\nx: y"),
        (":authority", "web.proof.test other.proof.test"),
        (":authority", "a@web.proof.test"),
        (":authority", "web.proof.test/x"),
    ] {
        let mut list = base("GET");
        list.iter_mut()
            .filter(|field| field.0 == name)
            .for_each(|field| value.clone_into(&mut field.1));
        cases.push((format!("{name} = {value:?}"), block(&list), None));
    }
    for (name, value) in [
        ("x", "y\r\nz: w"),
        ("x", "y\nz"),
        ("x", "y\rz"),
        ("x", "y\0z"),
        ("x", "y\r\n\r\nGET /smuggled"),
        ("x\r\ny", "z"),
        ("x y", "z"),
        ("x:y", "z"),
        ("X", "y"),
        ("", "y"),
        ("x\"", "y"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("connection", "x"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("upgrade", "websocket"),
        ("te", "chunked"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        (":path", "/two"),
        (":unknown", "x"),
        (":status", "200"),
        ("content-length", "1, 1"),
        ("content-length", "+1"),
        ("content-length", "x"),
        ("host", "other.proof.test"),
    ] {
        let mut list = base("GET");
        list.push((name.to_owned(), value.to_owned()));
        cases.push((format!("{name:?} = {value:?}"), block(&list), None));
    }
    for (length, body) in [("1", "two"), ("10", "two"), ("0", "two")] {
        let mut list = base("POST");
        list.push(("content-length".to_owned(), length.to_owned()));
        cases.push((format!("content-length {length} of {body:?}"), block(&list), Some(body)));
    }
    for missing in [":method", ":path", ":scheme"] {
        let mut list = base("GET");
        list.retain(|field| field.0 != missing);
        cases.push((format!("without {missing}"), block(&list), None));
    }
    let mut late = base("GET");
    late.insert(0, ("x".to_owned(), "y".to_owned()));
    cases.push(("a pseudo-field after another".to_owned(), block(&late), None));
    for method in ["CONNECT", "TRACE"] {
        cases.push((method.to_owned(), block(&base(method)), None));
    }
    cases
}

fn answers(scene: &Scene, part: &mut Part) -> Result<()> {
    let mut verdicts = Verdicts::default();
    for name in [
        "closed",
        "reset",
        "half-head",
        "half-body",
        "half-chunk",
        "garbage",
        "two-lengths",
        "length-and-chunked",
        "unknown-coding",
        "unasked-101",
        "long-head",
        "surplus",
    ] {
        for h2 in [false, true] {
            let said = answer(scene, name, h2);
            let (refused, cut) = (said.starts_with("502"), said == "cut");
            // What is complete before the surplus is an answer; what follows must go nowhere.
            let fine = match name {
                "half-body" | "half-chunk" => cut || refused,
                "surplus" => said == "200" || refused,
                _ => refused || cut,
            };
            verdicts.add(
                &format!("{name} over {}", if h2 { "HTTP/2" } else { "HTTP/1.1" }),
                &said,
                fine,
            );
            // The next answer is the next request's. Three failures in a row put an instance aside,
            // so another app at the same instance asks.
            let next = Http1::new(Stream::clear(scene.node.http())?).get(&host("web"), "/")?;
            let own = next.status == 200 && next.body == b"hello\n";
            verdicts.add(
                &format!("the request after {name}"),
                &format!("{} {:?}", next.status, next.body.len()),
                own,
            );
            for _ in 0..3 {
                let mut client = Http1::new(Stream::clear(scene.node.http())?);
                client.get(&host("odd"), "/")?;
            }
        }
    }
    verdicts.show(part, "told, or visibly cut");
    Ok(())
}

fn answer(scene: &Scene, name: &str, h2: bool) -> String {
    let path = format!("/odd/{name}");
    let run = || -> Result<String> {
        if h2 {
            let stream = scene.tls_to(&host("odd"), &["h2"])?;
            let answer = H2::start(stream, &[])?.get(&host("odd"), &path)?;
            let cut = answer.reset.is_some();
            return Ok(if cut { "cut".to_owned() } else { answer.status.to_string() });
        }
        let answer = Http1::new(scene.clear()?).get(&host("odd"), &path)?;
        Ok(format!("{} {}", answer.status, answer.code()).trim_end().to_owned())
    };
    run().unwrap_or_else(|_| "cut".to_owned())
}

fn websocket(scene: &Scene, part: &mut Part) -> Result<()> {
    let judge = Judge::sit(scene);
    let mut verdicts = Verdicts::default();
    let host = host("web");
    let handshake = "connection: upgrade\r\nupgrade: websocket\r\n";
    let key = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    // The instance answers all but /ws with 200, which declines.
    for (what, path, fields) in [
        ("declined", "/declines", format!("{handshake}{key}")),
        ("a version that nobody speaks", "/declines", format!("{handshake}sec-websocket-version: 777\r\n")),
        ("with a body", "/declines", format!("{handshake}{key}content-length: 5\r\n")),
        ("another protocol", "/declines", "connection: upgrade\r\nupgrade: h2c\r\n".to_owned()),
        ("h2c with settings", "/declines",
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n".to_owned()),
        ("without connection", "/declines", format!("upgrade: websocket\r\n{key}")),
    ] {
        let mut stream = scene.clear()?;
        stream.set_patience(Duration::from_secs(5))?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n");
        stream.write_all((head + &behind()).as_bytes())?;
        let said = match Http1::new(stream).response() {
            Ok(answer) => answer.status.to_string(),
            Err(_) => "closed".to_owned(),
        };
        verdicts.add(what, &said, said != "101");
    }
    verdicts.show(part, "no tunnel");
    // What is behind is the next request on the connection, seen and marked by the node, or nothing.
    judge.rules(scene, part);
    let mut client = H2::start(scene.tls(&["h2"])?, &[])?;
    let id = client.open();
    client.send(&request(id, "GET", &host, "/ws", &[("upgrade", "websocket")], true))?;
    let answers = client.answers(&[id], Duration::from_secs(5));
    let refused = answers.as_ref().map_or(true, |all| all[&id].status != 200);
    part.check(Check::that(
        "an upgrade field on HTTP/2",
        "refused",
        if refused { "refused" } else { "taken" },
        refused,
    ));
    Ok(())
}
