//! HTTP/2 streams: many at once, windows in both directions, ends of every kind.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use h2::client::Builder;
use tokio::time::{Instant, timeout};

use crate::h2_client::{self as h2c, Client, Raw, control, frame, get, read, write};
use crate::harness::{Node, PATIENCE};
use crate::instance::pattern;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_hundred_streams_at_once_are_served() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    for _ in 0..3 {
        let answers = (0..100).map(|index| {
            let client = &client;
            async move { (index, client.get(&format!("/echo/{index}")).await) }
        });
        for (index, (status, body)) in join_all(answers).await {
            assert_eq!((status, &body[..]), (200, format!("GET /echo/{index} ").as_bytes()));
        }
    }
    client.ended().await;
    node.settles().await;
}

#[tokio::test]
async fn all_streams_of_a_connection_share_its_service() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    let mut streams = Vec::new();
    for index in 0..20 {
        let request = Client::request("GET", &format!("/hang/{index}"));
        streams.push(client.send(request, true).await);
        node.instance.noted(&format!("GET /hang/{index}")).await;
    }
    assert_eq!(node.metric("ferrule_connection_services").await, 1.0);
    drop(streams);
    client.ended().await;
    node.settles().await;
}

#[tokio::test]
async fn large_bodies_pass_through_small_windows_in_both_directions() {
    let node = Node::start().await;
    let client = Client::with(&node, Builder::new().initial_window_size(1000)).await;
    let client = &client;
    let upload = async {
        let (response, mut stream) = client.send(Client::request("POST", "/echo"), false).await;
        let body = Bytes::from(pattern(1 << 20));
        write(&mut stream, body.clone(), true).await;
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let echoed = read(response.into_body()).await.unwrap();
        assert!(echoed[..] == [&b"POST /echo "[..], &body].concat());
    };
    let download = async {
        let (status, body) = client.get("/size/1000000").await;
        assert!(status == 200 && body[..] == pattern(1_000_000));
    };
    tokio::join!(upload, download);
    let client = Client::with(&node, Builder::new().initial_window_size(1)).await;
    let (_, body) = client.get("/size/300").await;
    assert!(body[..] == pattern(300));
    drop(client);
}

#[tokio::test]
async fn a_stalled_stream_is_reset_and_its_siblings_go_on() {
    let node = Node::with(|setup| setup.timeouts.response_write = SECOND).await;
    control(&node).await;
    let mut builder = Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let client = Client::with(&node, &builder).await;
    let (response, _) = client.send(Client::request("GET", "/size/1000000"), true).await;
    let mut stalled = response.await.unwrap().into_body();
    let began = Instant::now();
    let siblings = async {
        while began.elapsed() < 3 * SECOND {
            assert_eq!(client.get("/size/1000").await.0, 200);
            tokio::time::sleep(SECOND / 10).await;
        }
    };
    let reset = async {
        loop {
            match timeout(PATIENCE, stalled.data()).await.expect("an end in time") {
                Some(Ok(_)) => {} // never released
                Some(Err(error)) => return error,
                None => panic!("a truncated body ended like a whole one"),
            }
        }
    };
    let (error, ()) = tokio::join!(reset, siblings);
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    node.metric_is("ferrule_requests_in_flight", 0.0).await;
    assert_eq!(client.get("/echo").await.0, 200);
    drop((client, stalled));
    node.settles().await;
}

/// Zero window from the start: not a byte of a body can be sent.
#[tokio::test]
async fn a_window_of_zero_is_waited_for_and_then_given_up() {
    let node = Node::with(|setup| setup.timeouts.response_write = SECOND).await;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut raw = Raw::with_settings(&node, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let streams: Vec<u32> = (0..50).map(|index| 2 * index + 1).collect();
    for stream in &streams {
        raw.send(&get(*stream, "/size/100000")).await;
    }
    let outcome = raw.until(|outcome| outcome.resets.len() == streams.len()).await;
    assert!(outcome.resets.values().all(|code| *code == 8), "{outcome:?}");
    assert_eq!(outcome.statuses.len(), streams.len());
    // One that opens its window in time is served.
    raw.send(&get(1001, "/size/1000")).await;
    raw.send(&frame(h2c::WINDOW_UPDATE, 0, 1001, &1000u32.to_be_bytes())).await;
    raw.until(|outcome| outcome.ended.contains(&1001)).await;
    drop(raw);
    control(&node).await;
    node.settles().await;
}

/// Streams that nobody reads use up what the connection may hold; one that is read goes on, and so do
/// they once they are.
#[tokio::test]
async fn streams_that_are_not_read_do_not_stop_one_that_is() {
    const STALLED: u32 = 99;
    const BODY: usize = 200_000;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let node = Node::with(|setup| setup.limits.h2_connection_send_buffer_bytes = 64 << 10).await;
    let mut raw = Raw::with_settings(&node, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    raw.send(&frame(h2c::WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).await;
    let stalled: Vec<u32> = (0..STALLED).map(|index| 2 * index + 1).collect();
    for stream in &stalled {
        raw.send(&get(*stream, &format!("/size/{BODY}"))).await;
    }
    raw.until(|outcome| outcome.statuses.len() == stalled.len()).await;
    let open = |stream: u32| frame(h2c::WINDOW_UPDATE, 0, stream, &(BODY as u32).to_be_bytes());
    let late = 2 * STALLED + 1;
    raw.send(&[get(late, &format!("/size/{BODY}")), open(late)].concat()).await;
    let outcome = raw.until(|outcome| outcome.ended.contains(&late)).await;
    assert_eq!((outcome.resets.len(), outcome.ended.len()), (0, 1), "{outcome:?}");
    for stream in &stalled {
        raw.send(&open(*stream)).await;
    }
    let outcome = raw.until(|outcome| outcome.ended.len() == stalled.len()).await;
    assert!(outcome.resets.is_empty(), "{outcome:?}");
    drop(raw);
    node.settles().await;
}

#[tokio::test]
async fn bodies_arrive_whole_however_little_the_streams_may_hold_together() {
    let node = Node::with(|setup| setup.limits.h2_connection_send_buffer_bytes = 64 << 10).await;
    let mut builder = Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 24);
    let client = Client::with(&node, &builder).await;
    let bodies = (0..100).map(|index| {
        let (client, size) = (&client, 100_000 + index);
        async move {
            let (status, body) = client.get(&format!("/size/{size}")).await;
            assert!(status == 200 && body[..] == pattern(size), "{size}");
        }
    });
    join_all(bodies).await;
    client.ended().await;
    node.settles().await;
}

#[tokio::test]
async fn an_upload_that_drips_is_reset_and_its_siblings_go_on() {
    let node = Node::with(|setup| setup.timeouts.request_body = 2 * SECOND).await;
    let client = Client::connect(&node).await;
    let (response, mut stream) = client.send(Client::request("POST", "/echo"), false).await;
    let began = Instant::now();
    let drip = async {
        loop {
            tokio::time::sleep(SECOND / 5).await;
            if stream.send_data(Bytes::from_static(b"x"), false).is_err() {
                return;
            }
            if timeout(SECOND / 100, std::future::poll_fn(|cx| stream.poll_reset(cx))).await.is_ok()
            {
                return;
            }
            assert!(began.elapsed() < 8 * SECOND, "dripped for too long");
        }
    };
    let answer = async { timeout(PATIENCE, response).await.expect("an answer") };
    let (answer, ()) = tokio::join!(answer, drip);
    assert_eq!(answer.unwrap().status(), 408);
    drop(stream);
    assert!(began.elapsed() > 2 * SECOND - SECOND / 10);
    assert_eq!(client.get("/echo").await.0, 200);
    // One that moves is served, however long it takes.
    let (response, mut stream) = client.send(Client::request("POST", "/echo"), false).await;
    for _ in 0..10 {
        tokio::time::sleep(SECOND / 2).await;
        write(&mut stream, Bytes::from(vec![b'x'; 2000]), false).await;
    }
    write(&mut stream, Bytes::new(), true).await;
    assert_eq!(response.await.unwrap().status(), 200);
    drop((client, stream));
    node.settles().await;
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    let request = Client::request("GET", "/chunked/2").header("te", "trailers");
    let (response, _) = client.send(request, true).await;
    let mut body = response.await.unwrap().into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap().expect("trailers");
    assert_eq!(trailers["x-sum"], "7");
    assert_eq!(node.instance.count("te trailers"), 1);
    drop(body);
    let (response, mut stream) = client.send(Client::request("POST", "/echo"), false).await;
    write(&mut stream, Bytes::from_static(b"hi"), false).await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-up", "9".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
    assert_eq!(&read(response.await.unwrap().into_body()).await.unwrap()[..], b"POST /echo hi");
    drop((client, stream));
    node.settles().await;
}

#[tokio::test]
async fn a_reset_by_the_client_cancels_its_request_at_once() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    for path in ["/hang", "/stream"] {
        let (response, mut stream) = client.send(Client::request("GET", path), true).await;
        node.instance.noted(&format!("GET {path}")).await;
        let body = if path == "/stream" { Some(response.await.unwrap().into_body()) } else { None };
        let left = Instant::now();
        stream.send_reset(Reason::CANCEL);
        node.instance.noted(&format!("closed {path}")).await;
        assert!(left.elapsed() < 2 * SECOND / 10, "{:?}", left.elapsed());
        drop(body);
    }
    assert_eq!(client.get("/echo").await.0, 200);
    // The end of the connection is the end of all its requests.
    let mut bodies = Vec::new();
    for index in 0..10 {
        let request = Client::request("GET", &format!("/hang/{index}"));
        bodies.push(client.send(request, true).await);
    }
    for index in 0..10 {
        node.instance.noted(&format!("GET /hang/{index}")).await;
    }
    let left = Instant::now();
    drop(bodies);
    client.ended().await;
    for index in 0..10 {
        node.instance.noted(&format!("closed /hang/{index}")).await;
    }
    assert!(left.elapsed() < 3 * SECOND / 10, "{:?}", left.elapsed());
    node.settles().await;
}

#[tokio::test]
async fn a_truncated_answer_ends_in_a_reset() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    for path in ["/broken", "/broken-chunk"] {
        let (response, _) = client.send(Client::request("GET", path), true).await;
        let response = response.await;
        node.instance.open_gate();
        match response {
            Ok(response) if response.status() == 200 => {
                assert!(read(response.into_body()).await.is_err(), "{path}");
            }
            Ok(response) => assert_eq!(response.status(), 502),
            Err(error) => assert!(error.is_reset()),
        }
    }
    assert_eq!(client.get("/echo").await.0, 200);
    drop(client);
    node.settles().await;
}

#[tokio::test]
async fn an_instance_that_answers_early_is_heard_on_a_stream() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    for _ in 0..5 {
        let (response, mut stream) = client.send(Client::request("POST", "/early"), false).await;
        stream.send_data(Bytes::from(vec![b'x'; 1000]), false).unwrap();
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(&read(response.into_body()).await.unwrap()[..], b"early");
    }
    for _ in 0..200 {
        // Refused before its body: neither the window nor the connection suffers.
        let request = Client::request("POST", "/").header("expect", "magic");
        let (response, mut stream) = client.send(request, false).await;
        // It may be reset by now.
        let _late = stream.send_data(Bytes::from(vec![b'x'; 10_000]), false);
        assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 417);
    }
    let (response, mut stream) = client.send(Client::request("POST", "/echo"), false).await;
    write(&mut stream, Bytes::from(vec![b'x'; 2_000_000]), true).await;
    assert_eq!(response.await.unwrap().status(), 200);
    drop((client, stream));
    node.settles().await;
}

#[tokio::test]
async fn a_drain_says_goaway_and_running_streams_finish() {
    let mut node = Node::with(|setup| setup.timeouts.drain = 10 * SECOND).await;
    let idle = Client::connect(&node).await;
    assert_eq!(idle.get("/echo").await.0, 200);
    let client = Client::connect(&node).await;
    let (running, _) = client.send(Client::request("GET", "/gate"), true).await;
    node.instance.noted("GET /gate").await;
    let drained = Instant::now();
    node.drain();
    idle.closed_by_node().await;
    assert!(drained.elapsed() < 2 * SECOND, "{:?}", drained.elapsed());
    let closing = async {
        while client.is_open().await {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    timeout(PATIENCE, closing).await.expect("no new streams");
    node.instance.open_gate();
    let response = timeout(PATIENCE, running).await.unwrap().unwrap();
    assert_eq!(&read(response.into_body()).await.unwrap()[..], b"gate");
    client.closed_by_node().await;
    node.ended().await;
    assert!(drained.elapsed() < 8 * SECOND);
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go_and_pings_do_not_help() {
    let node = Node::with(|setup| setup.timeouts.h2_idle = 2 * SECOND).await;
    let mut raw = Raw::connect(&node).await;
    raw.send(&get(1, "/echo")).await;
    raw.until(|outcome| outcome.ended.contains(&1)).await;
    let began = Instant::now();
    let mut outcome = None;
    while outcome.is_none() {
        assert!(began.elapsed() < 12 * SECOND, "pinged for too long");
        if raw.try_send(&frame(h2c::PING, 0, 0, &[0; 8])).await.is_err() {
            break;
        }
        outcome = timeout(SECOND / 3, raw.until(|outcome| outcome.goaway.is_some())).await.ok();
    }
    assert_eq!(outcome.expect("a GOAWAY").goaway, Some(0));
    assert!(began.elapsed() >= 2 * SECOND - SECOND / 10, "{:?}", began.elapsed());
    // Told to go, and does not.
    raw.until_closed().await;
    drop(raw);
    node.settles().await;
}

/// Many small answers leave together: the records that a client sees are few.
#[tokio::test]
async fn small_answers_leave_in_few_writes() {
    let node = Node::start().await;
    let mut raw = Raw::connect(&node).await;
    raw.send(&get(1, "/echo")).await;
    raw.until(|outcome| outcome.ended.contains(&1)).await;
    // Answered by the node itself, so all are ready in one turn.
    let unknown =
        [(":method", "TRACE"), (":scheme", "https"), (":authority", "app.test"), (":path", "/")];
    let requests: Vec<u8> =
        (1..=50).flat_map(|index| h2c::request(2 * index + 1, &unknown, true)).collect();
    raw.send(&requests).await;
    let mut reads = 0;
    let mut ended = 0;
    let mut bytes = vec![0; 1 << 20];
    let mut rest = Vec::new();
    while ended < 50 {
        use tokio::io::AsyncReadExt as _;
        let read = timeout(PATIENCE, raw.stream.read(&mut bytes)).await.unwrap().unwrap();
        assert!(read > 0);
        reads += 1;
        rest.extend_from_slice(&bytes[..read]);
        while rest.len() >= 9 {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            if rest.len() < 9 + length {
                break;
            }
            if rest[3] <= 1 && rest[4] & h2c::END_STREAM != 0 {
                ended += 1;
            }
            rest.drain(..9 + length);
        }
    }
    assert!(reads <= 10, "{reads} records for 50 answers");
}

#[tokio::test]
async fn head_and_bodiless_statuses_have_no_body() {
    let node = Node::start().await;
    let client = Client::connect(&node).await;
    for (method, path, status, length) in [
        ("HEAD", "/size/1234", 200, Some("1234")),
        ("GET", "/status/204", 204, None),
        ("GET", "/not-modified", 304, Some("1234")),
    ] {
        let (response, _) = client.send(Client::request(method, path), true).await;
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), status);
        let found = response.headers().get("content-length").map(|value| value.to_str().unwrap());
        if length.is_some() && method == "HEAD" {
            assert_eq!(found, length, "{path}");
        }
        assert!(!response.headers().contains_key("connection"));
        assert!(response.headers().contains_key("date"), "{path}");
        assert!(read(response.into_body()).await.unwrap().is_empty());
    }
    // Our own answer to a HEAD has none either.
    let request = Client::request("HEAD", "/").header("expect", "magic");
    let (response, _) = client.send(request, true).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), 417);
    assert!(read(response.into_body()).await.unwrap().is_empty());
    drop(client);
    node.settles().await;
}
