//! Clients that say they are somebody else, or mean somebody else's app.

use std::io::Write as _;

use anyhow::Result;

use super::corpus::Case;
use super::{Scene, host};
use crate::client::Stream;
use crate::client::h2::{DATA, END_STREAM, Event, H2, HEADERS, request};
use crate::client::http1::Http1;
use crate::suite::{Part, Table};
use crate::verdict::Check;

pub(super) const ALL: &[Case] = &[
    Case {
        name: "forged-forwarding",
        run: forged,
        about: "Fields that tell an instance who the client is, forged in every spelling, and named in \
         Connection so that the node's own would be removed. The instance may see only the node's.",
    },
    Case {
        name: "host-and-sni",
        run: hosts,
        about: "Names that do not belong to the connection, or are two at once. None may reach another \
         app.",
    },
];

/// No instance may see this.
const FORGED: &str = "198.18.66.66";

fn forged(scene: &Scene, part: &mut Part) -> Result<()> {
    let names = [
        "x-forwarded-for",
        "X-Forwarded-For",
        "x_forwarded_for",
        "forwarded",
        "x-real-ip",
        "x-client-ip",
        "ferrule-client-ip",
        "fly-client-ip",
        "x-forwarded-host",
        "true-client-ip",
        "ferrule-request-id",
    ];
    let mut table =
        Table::new("What the instance saw of forged fields", &["forged", "over", "seen"]);
    let mut leaked = 0;
    let mut missing = 0;
    for name in names {
        let value = if name == "forwarded" { format!("for={FORGED}") } else { FORGED.to_owned() };
        for nominate in [false, true] {
            let connection =
                if nominate { "connection: x-forwarded-for, ferrule-client-ip\r\n" } else { "" };
            let mut stream = scene.clear()?;
            write!(
                stream,
                "GET /head HTTP/1.1\r\nhost: {}\r\n{name}: {value}\r\n{name}: {value}\r\n{connection}\r\n",
                host("web")
            )?;
            let answer = Http1::new(stream).response()?;
            let head = String::from_utf8_lossy(&answer.body).into_owned();
            let seen: Vec<&str> = head.lines().filter(|line| line.contains(FORGED)).collect();
            // What no proxy knows passes as it is, as long as the node does not vouch for it.
            let vouched = !matches!(name, "true-client-ip");
            leaked += usize::from(vouched && !seen.is_empty());
            let told = head.to_ascii_lowercase().contains("x-forwarded-for: 127.0.0.1");
            missing += usize::from(answer.status == 200 && !told);
            let over = if nominate { "HTTP/1.1, nominated" } else { "HTTP/1.1" };
            table.row([name.to_owned(), over.to_owned(), seen.join(" | ")]);
        }
        let lower = name.to_ascii_lowercase();
        let head = over_h2(scene, &[(&lower, &value)])?;
        let seen: Vec<&str> = head.lines().filter(|line| line.contains(FORGED)).collect();
        leaked += usize::from(name != "true-client-ip" && !seen.is_empty());
        table.row([lower, "HTTP/2".to_owned(), seen.join(" | ")]);
    }
    part.check(Check::that("forged words that got through", "0", leaked, leaked == 0));
    part.check(Check::that("requests without the node's own word", "0", missing, missing == 0));
    part.tables.push(table);
    Ok(())
}

/// The head that the instance got, which it sends back.
fn over_h2(scene: &Scene, more: &[(&str, &str)]) -> Result<String> {
    let mut client = H2::start(scene.tls(&["h2"])?, &[])?;
    client.send(&request(1, "GET", &host("web"), "/head", more, true))?;
    let mut body = Vec::new();
    loop {
        let Event::Frame(frame) = client.event(crate::client::PATIENCE)? else {
            anyhow::bail!("no answer")
        };
        if frame.stream == 1 && matches!(frame.kind, DATA | HEADERS) {
            if frame.kind == DATA {
                body.extend(&frame.payload);
            }
            if frame.flags & END_STREAM != 0 {
                return Ok(String::from_utf8_lossy(&body).into_owned());
            }
        }
    }
}

fn hosts(scene: &Scene, part: &mut Part) -> Result<()> {
    let (web, other) = (host("web"), host("other"));
    let mut table = Table::new("Cases", &["case", "answer"]);
    let mut wrong = 0;
    let mut case = |what: &str, answer: String, allowed: &[&str]| {
        wrong += usize::from(!allowed.contains(&answer.as_str()));
        table.row([what.to_owned(), answer]);
    };
    let ask = |stream: Stream, head: String| -> String {
        let run = || Http1::new(stream).exchange(head.as_bytes());
        run().map_or_else(|_| "closed".to_owned(), |answer| answer.status.to_string())
    };
    let get = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    case(
        "control: the name of the connection",
        ask(scene.tls(&["http/1.1"])?, get(&web)),
        &["200"],
    );
    case("another app's name in TLS", ask(scene.tls(&["http/1.1"])?, get(&other)), &["421"]);
    case(
        "nobody's name in TLS",
        ask(scene.tls(&["http/1.1"])?, get("nobody.test")),
        &["421", "404"],
    );
    let absolute = format!("GET http://{web}/ HTTP/1.1\r\nhost: {other}\r\n\r\n");
    case("absolute target against host", ask(scene.clear()?, absolute), &["400"]);
    for names in [
        format!("{web}, {other}"),
        format!("{web} {other}"),
        format!("{other}@{web}"),
        format!("{web}\\{other}"),
        format!("{web}:99999"),
        format!("{web}/x"),
        "[::1".to_owned(),
        String::new(),
    ] {
        case(&format!("host: {names}"), ask(scene.clear()?, get(&names)), &["400"]);
    }
    let two = format!("GET / HTTP/1.1\r\nhost: {web}\r\nhost: {other}\r\n\r\n");
    case("two hosts", ask(scene.clear()?, two), &["400"]);
    case("no host", ask(scene.clear()?, "GET / HTTP/1.1\r\n\r\n".to_owned()), &["400"]);
    for (what, authority, more, allowed) in [
        ("HTTP/2, another app's authority (coalescing)", &other, None, "421"),
        ("HTTP/2, host against authority", &web, Some(("host", other.as_str())), "refused"),
        ("HTTP/2, control", &web, None, "200"),
    ] {
        let mut client = H2::start(scene.tls(&["h2"])?, &[])?;
        let id = client.open();
        client.send(&request(id, "GET", authority, "/", more.as_slice(), true))?;
        let answer = client.answers(&[id], crate::client::PATIENCE);
        let said = match answer.as_ref().map(|all| &all[&id]) {
            Ok(answer) if answer.reset.is_none() => answer.status.to_string(),
            _ => "refused".to_owned(),
        };
        case(what, said, &[allowed, if allowed == "refused" { "400" } else { allowed }]);
    }
    let total = table.rows.len();
    part.check(Check::that(
        "answered as they should be",
        "all",
        format!("{} of {total}", total - wrong),
        wrong == 0,
    ));
    part.tables.push(table);
    Ok(())
}
