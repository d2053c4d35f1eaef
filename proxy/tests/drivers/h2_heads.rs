//! HTTP/2 heads that must not pass, and those that must.

use std::time::Duration;

use crate::h2_client::{
    self as h2c, CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, GET, HEADERS, PROTOCOL_ERROR,
    Raw, block, control, frame, request,
};
use crate::harness::Node;

type Fields<'a> = Vec<(&'a str, &'a str)>;

/// `GET` with some of its fields replaced, and more behind.
fn fields<'a>(replaced: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Fields<'a> {
    let replace = |(name, value): &(&'a str, &'a str)| {
        let found = replaced.iter().find(|(replaced, _)| replaced == name);
        (*name, found.map_or(*value, |(_, value)| *value))
    };
    let named: Fields<'_> = GET.to_vec();
    named.iter().map(replace).chain(more.iter().copied()).collect()
}

#[tokio::test]
async fn malformed_heads_are_refused() {
    let node = Node::start().await;
    control(&node).await;
    let without = |name: &str| -> Fields<'_> {
        GET.iter().copied().filter(|(found, _)| *found != name).collect()
    };
    let cases: Vec<(&str, Fields<'_>)> = vec![
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("two paths", fields(&[], &[(":path", "/")])),
        ("empty path", fields(&[(":path", "")], &[])),
        ("unknown pseudo-header", [&[(":magic", "x")][..], &GET].concat()),
        ("status in a request", [&[(":status", "200")][..], &GET].concat()),
        (
            "late pseudo-header",
            vec![
                (":method", "GET"),
                ("x", "y"),
                (":scheme", "https"),
                (":authority", "app.test"),
                (":path", "/"),
            ],
        ),
        ("upper case", fields(&[], &[("X-Upper", "1")])),
        ("connection", fields(&[], &[("connection", "close")])),
        ("keep-alive", fields(&[], &[("keep-alive", "timeout=5")])),
        ("proxy-connection", fields(&[], &[("proxy-connection", "close")])),
        ("transfer-encoding", fields(&[], &[("transfer-encoding", "chunked")])),
        ("upgrade", fields(&[], &[("upgrade", "h2c")])),
        ("te gzip", fields(&[], &[("te", "gzip")])),
        ("newline in a value", fields(&[], &[("x", "a\nb")])),
        ("return in a value", fields(&[], &[("x", "a\rb")])),
        ("null in a value", fields(&[], &[("x", "a\0b")])),
        ("space in a name", fields(&[], &[("x y", "1")])),
        ("colon in a name", fields(&[], &[("x:y", "1")])),
        ("newline in the path", fields(&[(":path", "/a\r\nx: y")], &[])),
        ("space in the path", fields(&[(":path", "/a HTTP/1.1")], &[])),
        ("newline in the method", fields(&[(":method", "GET\r\n")], &[])),
        (
            "protocol without CONNECT",
            fields(&[], &[]).into_iter().chain([(":protocol", "websocket")]).collect(),
        ),
    ];
    for (what, fields) in cases {
        let mut raw = Raw::connect(&node).await;
        raw.send(&request(1, &fields, true)).await;
        let decided = |outcome: &h2c::Outcome| {
            !outcome.statuses.is_empty() || !outcome.resets.is_empty() || outcome.goaway.is_some()
        };
        let outcome = raw.until(decided).await;
        if let Some(code) = outcome.goaway {
            // h2 takes some of them for an error of the whole connection, as RFC 9113 allows.
            assert_eq!(code, PROTOCOL_ERROR, "{what}");
            continue;
        }
        let found = (outcome.resets.get(&1), outcome.statuses.get(&1));
        assert!(
            matches!(found, (Some(&PROTOCOL_ERROR), _) | (_, Some(400))),
            "{what}: {outcome:?}"
        );
        raw.send(&request(3, &GET, true)).await;
        assert_eq!(raw.outcome_of(3).await, Ok(200), "after {what}");
    }
    control(&node).await;
    node.settles().await;
}

#[tokio::test]
async fn ambiguous_heads_are_refused() {
    let node = Node::start().await;
    let host = "app.test";
    let cases: Vec<(&str, Fields<'_>, u16)> = vec![
        ("quote in a name", fields(&[], &[("x\"y", "1")]), 400),
        ("two hosts", fields(&[], &[("host", host), ("host", host)]), 400),
        ("another host", fields(&[], &[("host", "evil.test")]), 400),
        (
            "no authority",
            GET.iter().copied().filter(|(name, _)| *name != ":authority").collect(),
            400,
        ),
        ("two lengths", fields(&[], &[("content-length", "0"), ("content-length", "0")]), 400),
        ("http2-settings", fields(&[], &[("http2-settings", "AAA")]), 400),
        ("user in the authority", fields(&[(":authority", "me@app.test")], &[]), 400),
        ("list in the authority", fields(&[(":authority", "app.test,evil.test")], &[]), 400),
        ("another app's name", fields(&[(":authority", "evil.test")], &[]), 421),
        ("trace", fields(&[(":method", "TRACE")], &[]), 405),
        ("expectation", fields(&[], &[("expect", "magic")]), 417),
    ];
    for (what, fields, status) in cases {
        let mut raw = Raw::connect(&node).await;
        raw.send(&request(1, &fields, true)).await;
        let outcome = raw.outcome_of(1).await;
        let reset = status == 400 && outcome == Err(PROTOCOL_ERROR);
        assert!(reset || outcome == Ok(status), "{what}: {outcome:?}");
        raw.send(&request(3, &GET, true)).await;
        assert_eq!(raw.outcome_of(3).await, Ok(200), "after {what}");
    }
    // What is equal in both is one name.
    let mut raw = Raw::connect(&node).await;
    raw.send(&request(1, &fields(&[], &[("host", host), ("te", "trailers")]), true)).await;
    assert_eq!(raw.outcome_of(1).await, Ok(200));
    drop(raw);
    // CONNECT is nobody's here.
    let mut raw = Raw::connect(&node).await;
    raw.send(&request(1, &[(":method", "CONNECT"), (":authority", "app.test:80")], true)).await;
    assert_eq!(raw.outcome_of(1).await, Ok(405));
    drop(raw);
    node.settles().await;
}

#[tokio::test]
async fn large_heads_are_refused_and_what_is_within_the_bounds_passes() {
    let node = Node::start().await;
    let long = |length: usize| "v".repeat(length);
    let (path, value, cookie) = (format!("/echo/{}", long(7500)), long(7500), long(15_000));
    let many = |count: usize| -> Fields<'_> { vec![("x-many", "1"); count] };
    let good = [
        fields(&[(":path", &path)], &[]),
        fields(&[], &[("x", &value)]),
        fields(&[], &[("cookie", &cookie)]),
        fields(&[], &many(90)),
        fields(&[(":method", "PROPFIND")], &[]),
        fields(&[], &[("x-empty", ""), ("x-tab", "a\tb")]),
    ];
    for fields in good {
        let mut raw = Raw::connect(&node).await;
        raw.send(&heads(1, &fields)).await;
        assert_eq!(raw.outcome_of(1).await, Ok(200), "{:.60?}", fields.last());
    }
    let (path, value) = (format!("/{}", long(17_000)), long(17_000));
    let bad = [
        (fields(&[(":path", &path)], &[]), 414),
        (fields(&[], &[("x", &value)]), 431),
        (fields(&[], &many(101)), 431),
        (fields(&[], &many(450)), 431),
        (fields(&[], &[("x", &value), ("y", &value)]), 431),
    ];
    for (fields, status) in bad {
        let mut raw = Raw::connect(&node).await;
        raw.send(&heads(1, &fields)).await;
        assert_eq!(raw.outcome_of(1).await, Ok(status), "{:.60?}", fields.last());
        raw.send(&request(3, &GET, true)).await;
        assert_eq!(raw.outcome_of(3).await, Ok(200));
    }
    control(&node).await;
    node.settles().await;
}

/// A header block in as many frames as it needs.
fn heads(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    let block = block(fields);
    let parts: Vec<&[u8]> = block.chunks(16_384).collect();
    let mut bytes = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let (kind, end) = if index == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
        let last = if index + 1 == parts.len() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, end | last, stream, part));
    }
    bytes
}

#[tokio::test]
async fn a_body_that_disagrees_with_its_length_is_reset() {
    let node = Node::start().await;
    for (length, data) in [("5", &b"longer"[..]), ("5", b"shor"), ("0", b"x")] {
        let mut raw = Raw::connect(&node).await;
        let post = fields(&[(":method", "POST")], &[("content-length", length)]);
        raw.send(&request(1, &post, false)).await;
        raw.send(&frame(DATA, END_STREAM, 1, data)).await;
        let outcome = raw.outcome_of(1).await;
        assert!(matches!(outcome, Err(PROTOCOL_ERROR) | Ok(400)), "{length} {data:?}: {outcome:?}");
        raw.send(&request(3, &GET, true)).await;
        assert_eq!(raw.outcome_of(3).await, Ok(200));
    }
    let mut raw = Raw::connect(&node).await;
    let post = fields(&[(":method", "POST")], &[("content-length", "5")]);
    raw.send(&request(1, &post, false)).await;
    raw.send(&frame(DATA, END_STREAM, 1, b"exact")).await;
    assert_eq!(raw.outcome_of(1).await, Ok(200));
    drop(raw);
    node.settles().await;
}

#[tokio::test]
async fn a_websocket_over_http2_gets_a_key_of_ours() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    let connect = |path: &str| {
        Client::request("CONNECT", path)
            .extension(h2::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
    };
    let (response, mut stream) = client.send(connect("/ws"), false).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    for name in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let mut body = response.into_body();
    let mut received = Vec::new();
    let large = crate::instance::pattern(300_000);
    let sending = async {
        h2c::write(&mut stream, large.clone().into(), true).await;
    };
    let receiving = async {
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            received.extend_from_slice(&data);
        }
    };
    tokio::join!(sending, receiving);
    drop((body, stream));
    assert!(received == [&b"hello"[..], &large, b"bye"].concat(), "{}", received.len());
    let key = node.instance.notes().into_iter().find(|note| note.starts_with("key ")).unwrap();
    assert_eq!(key.len(), "key ".len() + 24, "{key}");

    // Refused like any other request.
    let (response, stream) = client.send(connect("/ws-no"), false).await;
    let response = response.await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["x-why"]),
        (403.try_into().unwrap(), &"no".parse::<http::HeaderValue>().unwrap())
    );
    assert_eq!(&h2c::read(response.into_body()).await.unwrap()[..], b"no");
    drop(stream);

    // A reset ends the instance's side too.
    let (response, mut stream) = client.send(connect("/ws"), false).await;
    let body = response.await.unwrap().into_body();
    stream.send_reset(h2::Reason::CANCEL);
    node.instance.noted("reset").await;
    drop((body, client, stream));
    node.settles().await;
}

#[tokio::test]
async fn a_tunnel_on_a_stream_ends_after_its_idle_time() {
    let node = Node::with(|setup| setup.timeouts.websocket_idle = Duration::from_secs(1)).await;
    let client = Client::connect(&node).await;
    let connect =
        Client::request("CONNECT", "/ws").extension(h2::ext::Protocol::from_static("websocket"));
    let (response, stream) = client.send(connect, false).await;
    let mut body = response.await.unwrap().into_body();
    assert_eq!(&body.data().await.unwrap().unwrap()[..], b"hello");
    let ended = tokio::time::timeout(crate::harness::PATIENCE, body.data()).await.unwrap();
    assert!(ended.unwrap().unwrap_err().is_reset());
    assert_eq!(client.get("/echo").await.0, 200);
    drop((client, stream, body));
    node.settles().await;
}
