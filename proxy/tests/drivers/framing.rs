//! HTTP/1 messages however their bytes arrive, and those that are none.

use std::time::Duration;

use crate::harness::Node;
use crate::instance::pattern;

const GET: &str = "GET /echo HTTP/1.1\r\nhost: app.test\r\n\r\n";

/// Two requests with bodies of both kinds.
const TWO: &str = "POST /echo/1 HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\n\r\nfirst\
                   POST /echo/2 HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n\
                   4\r\nseco\r\n2;x=y\r\nnd\r\n0\r\n\r\n";

#[tokio::test]
async fn two_requests_cut_anywhere_are_served_on_one_connection() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for cut in 1..TWO.len() {
        let (before, after) = TWO.as_bytes().split_at(cut);
        client.send(before).await;
        tokio::task::yield_now().await;
        client.send(after).await;
        assert_eq!(client.response().await.text(), "POST /echo/1 first", "cut at {cut}");
        assert_eq!(client.response().await.text(), "POST /echo/2 second", "cut at {cut}");
    }
    node.control().await;
}

/// The second part is sent only once the first has been read.
#[tokio::test]
async fn two_requests_cut_anywhere_with_a_pause_are_served_on_new_connections() {
    let node = Node::start().await;
    let node = &node;
    let cut_at = async |cut: usize| {
        let mut client = node.connect().await;
        let (before, after) = TWO.as_bytes().split_at(cut);
        client.send(before).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.send(after).await;
        assert_eq!(client.response().await.text(), "POST /echo/1 first", "cut at {cut}");
        assert_eq!(client.response().await.text(), "POST /echo/2 second", "cut at {cut}");
        client.send(GET.as_bytes()).await;
        assert_eq!(client.response().await.text(), "GET /echo ", "cut at {cut}");
    };
    futures_util::future::join_all((1..TWO.len()).map(cut_at)).await;
    node.settles().await;
}

#[tokio::test]
async fn bytes_one_by_one_are_served() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for byte in TWO.bytes() {
        client.send(&[byte]).await;
    }
    assert_eq!(client.response().await.text(), "POST /echo/1 first");
    assert_eq!(client.response().await.text(), "POST /echo/2 second");
}

#[tokio::test]
async fn bodies_pass_whole_in_both_directions() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for size in [0, 1, 100, 8191, 8192, 65_536, 3_000_000] {
        let body = "x".repeat(size);
        let head =
            format!("PUT /echo HTTP/1.1\r\nhost: app.test\r\ncontent-length: {size}\r\n\r\n");
        client.send(head.as_bytes()).await;
        client.send(body.as_bytes()).await;
        let response = client.response().await;
        assert_eq!(response.body.len(), "PUT /echo ".len() + size);
        client
            .send(format!("GET /size/{size} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes())
            .await;
        assert!(client.response().await.body == pattern(size), "{size} bytes");
    }
    client.send(b"GET /chunked/500 HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.body.len(), 5000);
    assert!(response.text().ends_with("chunk 0499"));
    assert_eq!(response.trailers, [""; 0]);
    assert_eq!(response.header("trailer"), None);
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn trailers_reach_clients_that_asked_for_them() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let asks =
        "GET /chunked/2 HTTP/1.1\r\nhost: app.test\r\nte: trailers\r\nconnection: te\r\n\r\n";
    client.send(asks.as_bytes()).await;
    let response = client.response().await;
    assert_eq!(
        (response.text(), &response.trailers[..]),
        ("chunk 0000chunk 0001", &["x-sum: 7".to_owned()][..])
    );
    client.send(b"GET /chunked/2 HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.text(), response.trailers.len()), ("chunk 0000chunk 0001", 0));
    // And those of a request reach the instance.
    let upload = "POST /echo HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\ntrailer: x-up\r\n\r\n2\r\nhi\r\n0\r\nx-up: 9\r\n\r\n";
    client.send(upload.as_bytes()).await;
    assert_eq!(client.response().await.text(), "POST /echo hi");
    client.send(GET.as_bytes()).await;
    assert_eq!(client.response().await.text(), "GET /echo ");
}

#[tokio::test]
async fn empty_lines_before_a_request_are_ignored() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for _ in 0..3 {
        client.send(format!("\r\n{GET}").as_bytes()).await;
        assert_eq!(client.response().await.text(), "GET /echo ");
        client.send(format!("\r\n\r\n{GET}\r\n").as_bytes()).await;
        assert_eq!(client.response().await.text(), "GET /echo ");
    }
    client.send(b"\r").await;
    client.send(format!("\n{GET}").as_bytes()).await;
    assert_eq!(client.response().await.text(), "GET /echo ");
}

#[tokio::test]
async fn a_client_that_wants_to_close_is_told_so_and_closed() {
    let node = Node::start().await;
    for size in [0, 10, 2_000_000] {
        let mut client = node.connect().await;
        let request =
            format!("GET /size/{size} HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n");
        client.send(request.as_bytes()).await;
        let response = client.response().await;
        assert_eq!(response.header("connection"), Some("close"));
        assert_eq!(response.body.len(), size);
        client.ended().await;
    }
    node.settles().await;
}

#[tokio::test]
async fn http_1_0_is_served_and_closed_unless_it_asks_to_be_kept() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(b"GET /echo HTTP/1.0\r\nhost: app.test\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.minor, response.text()), (0, "GET /echo "));
    client.ended().await;

    let mut kept = node.connect().await;
    for _ in 0..3 {
        let client = &mut kept;
        client
            .send(b"GET /echo HTTP/1.0\r\nhost: app.test\r\nconnection: keep-alive\r\n\r\n")
            .await;
        let response = client.response().await;
        assert_eq!(response.header("connection"), Some("keep-alive"));
        assert_eq!(response.text(), "GET /echo ");
    }

    drop(kept);

    // No chunks for those who do not know them.
    let mut client = node.connect().await;
    client.send(b"GET /chunked/2 HTTP/1.0\r\nhost: app.test\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.text(), "chunk 0000chunk 0001");
    node.settles().await;
}

/// The end of the connection is all that ends such a body, so it must not look like one.
#[tokio::test]
async fn a_truncated_body_without_a_length_ends_in_a_reset() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(b"GET /broken-chunk HTTP/1.0\r\nhost: app.test\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.take(5).await, b"hello");
    node.instance.open_gate();
    let (rest, ended) = client.rest().await;
    assert!(rest.is_empty() && ended.is_err(), "{ended:?}");
    // The same for those who see it by the framing.
    for path in ["broken", "broken-chunk"] {
        let mut client = node.connect().await;
        client.send(format!("GET /{path} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes()).await;
        node.instance.open_gate();
        let (rest, _) = client.rest().await;
        let rest = String::from_utf8(rest).unwrap();
        assert!(!rest.contains("\r\n0\r\n"), "{path}: {rest}");
    }
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn head_and_bodiless_statuses_leave_the_connection_in_step() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for _ in 0..3 {
        client.send(b"HEAD /size/1234 HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
        client.send(b"GET /status/204 HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!((head.status, head.header("content-length")), (204, None));
        client.send(b"GET /not-modified HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!((head.status, head.header("etag")), (304, Some("\"a\"")));
        assert_eq!(head.header("transfer-encoding"), None);
        client.send(GET.as_bytes()).await;
        let response = client.response().await;
        assert_eq!(response.text(), "GET /echo ");
        let dates = response.headers.iter().filter(|(name, _)| name == "date").count();
        assert_eq!(dates, 1);
    }
}

#[tokio::test]
async fn early_hints_of_the_instance_do_not_disturb_the_answer() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(b"GET /hints HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    let mut response = client.head().await;
    if response.status == 103 {
        response = client.head().await;
    }
    assert_eq!(response.status, 200);
    assert_eq!(client.take(5).await, b"hints");
}

#[tokio::test]
async fn a_body_is_asked_for_only_when_it_is_wanted() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for _ in 0..3 {
        let head = "POST /echo HTTP/1.1\r\nhost: app.test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
        client.send(head.as_bytes()).await;
        assert_eq!(client.head().await.status, 100);
        client.send(b"body").await;
        assert_eq!(client.response().await.text(), "POST /echo body");
    }
    // Refused: the answer comes at once, and no body is asked for.
    drop(client);
    let mut client = node.connect().await;
    let head =
        "POST / HTTP/1.1\r\nhost: nobody.test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    client.send(head.as_bytes()).await;
    let response = client.response().await;
    assert_eq!((response.status, response.code()), (404, "PE01"));
    assert_eq!(response.header("connection"), Some("close"));
    client.ended().await;
    let mut client = node.connect().await;
    client.send(b"GET /echo HTTP/1.1\r\nhost: app.test\r\nexpect: magic\r\n\r\n").await;
    assert_eq!(client.response().await.status, 417);
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte() {
    let node = Node::start().await;
    for tls in [false, true] {
        let mut client = crate::client::Client::new(node.stream(tls).await);
        let size = 8_000_000;
        client
            .send(format!("GET /size/{size} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes())
            .await;
        assert_eq!(client.head().await.status, 200);
        let expected = pattern(size);
        let mut at = 0;
        while at < size {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let take = 50_000.min(size - at);
            assert!(client.take(take).await == expected[at..at + take], "at {at}");
            at += take;
        }
        client.send(GET.as_bytes()).await;
        assert_eq!(client.response().await.text(), "GET /echo ");
    }
    node.settles().await;
}

/// A large answer, then a small one, then the end: all of it must leave, however late it is read.
#[tokio::test]
async fn what_was_answered_before_the_end_is_not_lost_in_a_full_socket() {
    let node = Node::start().await;
    for tls in [false, true] {
        let mut client = crate::client::Client::new(node.stream(tls).await);
        let size = 6_000_000;
        let requests = format!(
            "GET /size/{size} HTTP/1.1\r\nhost: app.test\r\n\r\n\
             GET /size/{size} HTTP/1.1\r\nhost: app.test\r\nupgrade: h2c\r\nconnection: close\r\n\r\n"
        );
        client.send(requests.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..2 {
            assert!(client.response().await.body == pattern(size));
        }
        client.ended().await;
    }
    node.settles().await;
}

#[tokio::test]
async fn garbage_is_answered_with_400_and_closed() {
    let node = Node::start().await;
    node.control().await;
    for (garbage, status) in [
        ("\u{16}\u{3}\u{1}\r\n\r\n", 400),
        ("GET\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nhost: app.test\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\nhost: app.test\n\n", 400),
        ("GET / HTTP/1.1\r\nhost: app.test\r\nhost: app.test\r\n\r\n", 400),
        ("GET /<x> HTTP/1.1\r\nhost: app.test\r\n\r\n", 400),
        ("GET http://[::1/ HTTP/1.1\r\nhost: app.test\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: 1, 1\r\n\r\nx", 400),
        ("POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: +1\r\n\r\nx", 400),
        ("GET / HTTP/1.1\r\nhost: app.test\r\n x: folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost : app.test\r\n\r\n", 400),
    ] {
        let mut client = node.connect().await;
        client.send(garbage.as_bytes()).await;
        let response = client.response().await;
        assert_eq!((response.status, response.code()), (status, "PP02"), "{garbage:?}");
        assert_eq!(response.header("connection"), Some("close"), "{garbage:?}");
        client.ended().await;
    }
    for (what, code) in
        [("CONNECT app.test:80", "PP05"), ("TRACE /", "PP05"), ("GET nonsense", "PP02")]
    {
        let mut client = node.connect().await;
        client.send(format!("{what} HTTP/1.1\r\nhost: app.test:80\r\n\r\n").as_bytes()).await;
        let response = client.response().await;
        assert_eq!(response.code(), code, "{what}");
    }
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn heads_have_bounds_and_what_is_within_them_passes() {
    let node = Node::start().await;
    let path = "p".repeat(7500);
    let good = [
        format!("GET /echo/{path} HTTP/1.1\r\nhost: app.test\r\n\r\n"),
        format!("GET /echo HTTP/1.1\r\nhost: app.test\r\nx-long: {path}\r\n\r\n"),
        format!("GET /echo HTTP/1.1\r\nhost: app.test\r\n{}\r\n", "x-many: 1\r\n".repeat(90)),
        format!("GET /echo HTTP/1.1\r\nhost: app.test\r\ncookie: {}\r\n\r\n", "c".repeat(16_000)),
        "PROPFIND /echo HTTP/1.1\r\nhost: app.test\r\n\r\n".to_owned(),
        "M-SEARCH /echo HTTP/1.1\r\nhost: app.test\r\n\r\n".to_owned(),
        "GET /echo/%2f..//a;b='c'?q=[1]&x=!$&'()*+,;=:@/? HTTP/1.1\r\nhost: app.test\r\n\r\n"
            .to_owned(),
        "GET http://app.test/echo HTTP/1.1\r\nhost: app.test\r\n\r\n".to_owned(),
        "GET http://APP.test:80/echo HTTP/1.1\r\nhost: app.test:80\r\n\r\n".to_owned(),
    ];
    for request in &good {
        let mut client = node.connect().await;
        client.send(request.as_bytes()).await;
        assert_eq!(client.response().await.status, 200, "{:.80}", request);
    }
    let bad = [
        (format!("GET /{} HTTP/1.1\r\nhost: app.test\r\n\r\n", "p".repeat(17_000)), 414),
        (format!("GET / HTTP/1.1\r\nhost: app.test\r\nx: {}\r\n\r\n", "v".repeat(17_000)), 431),
        (format!("GET / HTTP/1.1\r\nhost: app.test\r\n{}\r\n", "x: 1\r\n".repeat(100)), 431),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: app.test\r\n{}\r\n",
                format!("x: {}\r\n", "v".repeat(8000)).repeat(5)
            ),
            431,
        ),
    ];
    for (request, status) in &bad {
        let mut client = node.connect().await;
        client.send(request.as_bytes()).await;
        let response = client.response().await;
        assert_eq!(response.status, *status, "{:.80}", request);
        assert_ne!(response.code(), "none", "{:.80}", request);
        client.ended().await;
    }
    node.settles().await;
}

/// Heads around the size at which hyper's own buffer is full are answered by us either way.
#[tokio::test]
async fn a_head_at_its_bound_is_answered_once() {
    let node = Node::start().await;
    let start = "GET /echo HTTP/1.1\r\nhost: app.test\r\n";
    let field = format!("a: {}\r\n", "v".repeat(16_000));
    let rest = 32 * 1024 - start.len() - field.len() - "b: \r\n".len();
    for more in (0..8).map(|more| more + rest - 4) {
        let head = format!("{start}{field}b: {}\r\n\r\n", "v".repeat(more));
        let mut client = node.connect().await;
        client.send(head.as_bytes()).await;
        let response = client.response().await;
        match response.status {
            200 => {}
            431 => {
                assert_eq!(response.code(), "PP04", "{}", head.len());
                client.ended().await;
            }
            other => panic!("{other} for {}", head.len()),
        }
    }
}

#[tokio::test]
async fn what_came_before_a_violation_is_answered_first() {
    let node = Node::start().await;
    for bad in [
        "GARBAGE\r\n\r\n",
        "GET / HTTP/1.1\r\nbroken\r\n\r\n",
        // Broken in the body: this one has reached the instance already.
        "POST /echo HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        for count in [1, 2, 5, 20, 40] {
            for path in ["app.test", "nobody.test"] {
                let mut client = node.connect().await;
                let good = format!("GET /echo HTTP/1.1\r\nhost: {path}\r\n\r\n").repeat(count);
                client.send(format!("{good}{bad}").as_bytes()).await;
                for index in 0..count {
                    let expected = if path == "app.test" { 200 } else { 404 };
                    assert_eq!(
                        client.response().await.status,
                        expected,
                        "{index} of {count}: {bad:?}"
                    );
                }
                assert_eq!(client.response().await.status, 400, "after {count}: {bad:?}");
                client.ended().await;
            }
        }
    }
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn an_instance_that_answers_early_is_heard() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let head = "POST /early HTTP/1.1\r\nhost: app.test\r\ncontent-length: 5000000\r\n\r\n";
    client.send(head.as_bytes()).await;
    client.send(&[b'x'; 1000]).await;
    let response = client.response().await;
    assert_eq!((response.status, response.text()), (200, "early"));
    // The rest of the upload can be sent by a client that does not look, without losing the answer.
    let mut client = node.connect().await;
    client.send(head.as_bytes()).await;
    for _ in 0..50 {
        client.send(&[b'x'; 100_000]).await;
    }
    assert_eq!(client.response().await.text(), "early");
    drop(client);
    node.control().await;
    node.settles().await;
}

#[tokio::test]
async fn a_refused_upload_gets_its_answer() {
    let node = Node::start().await;
    let head = "POST / HTTP/1.1\r\nhost: nobody.test\r\ncontent-length: 3000000\r\n\r\n";
    let mut client = node.connect().await;
    client.send(head.as_bytes()).await;
    for _ in 0..30 {
        client.send(&[b'x'; 100_000]).await;
    }
    let response = client.response().await;
    assert_eq!(response.code(), "PE01");
    assert_eq!(response.header("connection"), Some("close"));
    client.ended().await;
    // A small body that is here already does not cost the connection.
    let mut client = node.connect().await;
    client.send(b"POST / HTTP/1.1\r\nhost: nobody.test\r\ncontent-length: 4\r\n\r\nbody").await;
    assert_eq!(client.response().await.code(), "PE01");
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn an_answer_until_the_end_of_the_connection_is_passed_on_in_chunks() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for _ in 0..2 {
        client.send(b"GET /until-close HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!(response.text(), "until close");
        assert_eq!(response.header("connection"), None);
    }
}

/// A client may pipeline for as long as it likes, also when every read ends within a head.
#[tokio::test]
async fn a_slow_answer_is_not_cut_for_the_half_head_behind_it() {
    let node = Node::with(|setup| setup.timeouts.request_head = Duration::from_secs(1)).await;
    let mut client = node.connect().await;
    client.send(b"GET /slow/3500 HTTP/1.1\r\nhost: app.test\r\n\r\nGET /echo HT").await;
    assert_eq!(client.response().await.text(), "slow");
    client.send(b"TP/1.1\r\nhost: app.test\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "GET /echo ");
    drop(client);
    let mut client = node.connect().await;
    client.send(&GET.as_bytes()[..7]).await;
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_millis(3500) {
        client.send(format!("{}{}", &GET[7..], &GET[..7]).as_bytes()).await;
        assert_eq!(client.response().await.text(), "GET /echo ");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
