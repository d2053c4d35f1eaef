//! What might be read in two ways is refused: 400, then the connection closes, and no instance
//! sees any of it.

use std::time::Duration;

use tests::app::App;
use tests::client::Raw;
use tests::edge::Edge;
use tests::instance::Scripted;
use tests::strict::Error;

const CLOSES: Duration = Duration::from_secs(5);

struct Target {
    instance: Scripted,
    edge: Edge,
}

impl Target {
    fn new() -> Self {
        let instance = Scripted::mirror();
        let edge = Edge::with([App::new("hello").instance(instance.address())]);
        Self { instance, edge }
    }

    /// A sound request is served and reaches the instance: without this, nothing here counts.
    #[track_caller]
    fn serves(&self) {
        let before = self.instance.requests().len();
        let mut client = self.edge.connect();
        client.send("POST /sound HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2\r\n\r\nhi");
        assert_eq!(client.response().status, 200);
        assert_eq!(self.instance.requests().len(), before + 1);
    }

    /// Sends `bytes` and then a request that must not be answered: refused, closed, unseen.
    #[track_caller]
    fn refuses(&self, bytes: &[u8], status: u16, code: &str) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
        let before = self.instance.requests().len();
        for mut client in [self.edge.connect(), self.edge.connect_tls("hello.test")] {
            // The edge may close before it has read all of this.
            client.try_send(bytes).unwrap_or_default();
            client
                .try_send("GET /smuggled HTTP/1.1\r\nhost: hello.test\r\n\r\n")
                .unwrap_or_default();
            self.refused(&mut client, &shown, status, code);
        }
        assert_eq!(self.instance.requests().len(), before, "an instance saw {shown:?}");
    }

    #[track_caller]
    fn refused(&self, client: &mut Raw, shown: &str, status: u16, code: &str) {
        let response =
            client.try_response("GET").unwrap_or_else(|error| panic!("{shown:?}: {error}"));
        let got = (response.status, response.error_code());
        assert_eq!(got, (status, Some(code)), "{shown:?}");
        assert!(response.says_close(), "{shown:?}: the answer says that the connection ends");
        assert!(client.closes_within(CLOSES), "{shown:?}: the connection ends");
    }

    #[track_caller]
    fn refuses_all(&self, cases: &[&str], status: u16, code: &str) {
        self.serves();
        for case in cases {
            self.refuses(case.as_bytes(), status, code);
        }
        self.serves();
    }
}

#[test]
fn a_message_with_two_lengths_is_refused() {
    Target::new().refuses_all(
        &[
            // RFC 9112 6.1: ought to be handled as an error, and the connection closed.
            "POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi",
            "POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
            "POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2, 2\r\n\r\nhi",
            "POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: 2\r\nContent-Length: 3\r\n\r\nhi",
        ],
        400,
        "PP02",
    );
}

#[test]
fn a_length_that_is_no_number_is_refused() {
    let cases: Vec<String> = [
        "+2",
        "-2",
        "0x2",
        "2 2",
        "",
        "two",
        "2.0",
        "18446744073709551616",
        "99999999999999999999",
    ]
    .iter()
    .map(|length| {
        format!("POST / HTTP/1.1\r\nhost: hello.test\r\ncontent-length: {length}\r\n\r\nhi")
    })
    .collect();
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    Target::new().refuses_all(&cases, 400, "PP02");
}

#[test]
fn a_transfer_encoding_other_than_chunked_is_refused() {
    let cases: Vec<String> = [
        "transfer-encoding: xchunked",
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: ,chunked",
        "transfer-encoding: chunked,",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;x=1",
        "transfer-encoding:",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: \x0bchunked",
        "transfer-encoding: ch\u{ad}unked",
    ]
    .iter()
    .map(|field| {
        format!("POST / HTTP/1.1\r\nhost: hello.test\r\n{field}\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    })
    .collect();
    let mut cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    cases.push("POST / HTTP/1.0\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    Target::new().refuses_all(&cases, 400, "PP02");
}

#[test]
fn a_head_with_lines_of_another_kind_is_refused() {
    Target::new().refuses_all(
        &[
            "GET / HTTP/1.1\r\nhost: hello.test\r\nx-a: b\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\n folded: first\r\nhost: hello.test\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\ncontent-length:\r\n 0\r\n\r\n",
            "GET / HTTP/1.1\nhost: hello.test\n\n",
            "GET / HTTP/1.1\r\nhost: hello.test\nx-a: b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\nx-a: b\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\n\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\nx-a: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\nx-a: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\nx-a : b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\ncontent-length : 0\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\n: no name\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: hello.test\r\nx(y): z\r\n\r\n",
        ],
        400,
        "PP02",
    );
}

#[test]
fn a_request_line_that_is_none_is_refused() {
    Target::new().refuses_all(
        &[
            "GET  / HTTP/1.1\r\nhost: hello.test\r\n\r\n",
            "GET / HTTP/1.1 \r\nhost: hello.test\r\n\r\n",
            "GET /a b HTTP/1.1\r\nhost: hello.test\r\n\r\n",
            "GET /\thttp HTTP/1.1\r\nhost: hello.test\r\n\r\n",
            "GET / http/1.1\r\nhost: hello.test\r\n\r\n",
            "GET / HTTP/3.0\r\nhost: hello.test\r\n\r\n",
            "GET /\r\nhost: hello.test\r\n\r\n",
            " GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n",
            "G@T / HTTP/1.1\r\nhost: hello.test\r\n\r\n",
            "GET /\x7f HTTP/1.1\r\nhost: hello.test\r\n\r\n",
        ],
        400,
        "PP02",
    );
}

#[test]
fn a_host_that_is_missing_doubled_or_none_is_refused() {
    let mut cases = vec![
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: hello.test\r\nhost: hello.test\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nhost: hello.test\r\nHost: other.test\r\n\r\n".to_owned(),
    ];
    for host in [
        "hello.test other.test",
        "hello.test, other.test",
        "hello.test/x",
        "hello.test?x",
        "hello.test#x",
        "user@hello.test",
        "hello.test:abc",
        "hello.test:99999",
        "hello.test:-1",
        "hello.test\\x",
        "hello.test\tx",
        "[::1",
        "hello..test",
    ] {
        cases.push(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
    }
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    Target::new().refuses_all(&cases, 400, "PP02");
}

#[test]
fn a_target_that_names_another_host_never_reaches_that_hosts_app() {
    let [one, two] = [Scripted::mirror(), Scripted::mirror()];
    let edge = Edge::with([
        App::new("one").instance(one.address()),
        App::new("two").instance(two.address()),
    ]);
    assert_eq!(edge.get("one.test", "/").status, 200);
    let mut client = edge.connect();
    client.send("GET http://one.test/ HTTP/1.1\r\nhost: two.test\r\n\r\n");
    client.response().assert_error(400, "PP02");
    assert_eq!(edge.get("two.test", "/").status, 200);
    assert_eq!((one.requests().len(), two.requests().len()), (1, 1));
}

/// By now the head was sound and is on its way: the instance must never see a complete body.
#[test]
fn a_chunk_that_is_none_ends_the_connection_and_the_body_is_never_complete() {
    let instance = Scripted::start(|connection| {
        loop {
            let head = connection.request()?;
            if head.to_lowercase().contains("transfer-encoding") {
                let body = connection.to_end()?;
                assert!(!body.ends_with(b"0\r\n\r\n"), "a complete body: {body:?}");
                return Ok(());
            }
            connection.ok("sound")?;
        }
    });
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    assert_eq!(edge.get("hello.test", "/").text(), "sound");
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
        "g\r\nhi\r\n0\r\n\r\n",
        "10000000000000002\r\nhi\r\n0\r\n\r\n",
        "2;a=\nb\r\nhi\r\n0\r\n\r\n",
        "2;a=\rb\r\nhi\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\nx: y\n\r\n",
        "2\r\nhi\r\n0\r\nx y\r\n\r\n",
    ] {
        let mut client = edge.connect();
        client.send("POST / HTTP/1.1\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\n\r\n");
        client.try_send(chunk).unwrap_or_default();
        client.try_send("GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n").unwrap_or_default();
        match client.try_response("POST") {
            Ok(response) => {
                assert_eq!(response.status, 400, "{chunk:?}");
                assert!(client.closes_within(CLOSES), "{chunk:?}");
            }
            Err(Error::Closed | Error::Truncated) => {}
            Err(error) => panic!("{chunk:?}: {error}"),
        }
    }
    assert_eq!(edge.get("hello.test", "/").text(), "sound");
}

#[test]
fn a_request_in_a_body_is_only_a_body() {
    let target = Target::new();
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: hello.test\r\n\r\n";
    let mut client = target.edge.connect();
    client.send(format!(
        "POST /outer HTTP/1.1\r\nhost: hello.test\r\ncontent-length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    ));
    assert!(client.response().text().ends_with(smuggled));
    assert!(client.get("hello.test", "/next").text().starts_with("GET /next"));
    assert_eq!(target.instance.requests().len(), 2);
}

#[test]
fn a_target_that_is_too_long_is_refused_with_414() {
    let target = Target::new();
    target.serves();
    let long = format!("GET /{} HTTP/1.1\r\nhost: hello.test\r\n\r\n", "a".repeat(17_000));
    target.refuses(long.as_bytes(), 414, "PP03");
    target.serves();
}

#[test]
fn a_head_that_is_too_large_is_refused_with_431() {
    let target = Target::new();
    target.serves();
    for fields in [
        format!("x-long: {}\r\n", "a".repeat(17_000)),
        "x-many: 1\r\n".repeat(101),
        format!("x-a: {}\r\n", "a".repeat(15_000)).repeat(3),
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: hello.test\r\n{fields}\r\n");
        target.refuses(request.as_bytes(), 431, "PP04");
    }
    target.serves();
}

#[test]
fn connect_and_trace_are_refused() {
    let target = Target::new();
    target.serves();
    for request in [
        "CONNECT hello.test:443 HTTP/1.1\r\nhost: hello.test:443\r\n\r\n",
        "TRACE / HTTP/1.1\r\nhost: hello.test\r\n\r\n",
    ] {
        let before = target.instance.requests().len();
        let mut client = target.edge.connect();
        client.send(request);
        client.response().assert_error(405, "PP05");
        assert_eq!(target.instance.requests().len(), before);
    }
    target.serves();
}
