//! HTTP/2 clients that keep the node busy with nothing.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::h2_client::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GET, HEADERS, Outcome,
    PING, PREFACE, PRIORITY, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, a_moment, block, control,
    frame, get, request,
};
use crate::harness::{Node, PATIENCE};

const SECOND: Duration = Duration::from_secs(1);

/// Sends `part` until the node has enough, reading what it says meanwhile.
async fn flood(raw: &mut Raw, mut part: impl FnMut(u32) -> Vec<u8>) -> Outcome {
    for round in 0..2000 {
        if raw.try_send(&part(round)).await.is_err() {
            break;
        }
        // Whatever it answers must not fill the pipe.
        while let Ok(Some(frame)) = timeout(Duration::ZERO, raw.frame()).await {
            if frame.kind == crate::h2_client::GOAWAY {
                let code = u32::from_be_bytes(frame.payload[4..8].try_into().unwrap());
                return Outcome { goaway: Some(code), ..Outcome::default() };
            }
        }
        tokio::task::yield_now().await;
    }
    timeout(PATIENCE, raw.until_closed()).await.expect("the node closes")
}

#[tokio::test]
async fn floods_of_control_frames_end_the_connection() {
    let node = Node::with(|setup| setup.limits.h2_control_frames_max = 1000).await;
    control(&node).await;
    let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
    let ping = frame(PING, 0, 0, &[0; 8]);
    let pong = frame(PING, ACK, 0, &[0; 8]);
    let priority = frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]);
    let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    let unknown = frame(0xfa, 0, 0, &[0; 20]);
    for (what, part) in [
        ("settings", settings),
        ("ping", ping),
        ("pong", pong),
        ("priority", priority),
        ("window update", update),
        ("unknown", unknown),
    ] {
        let mut raw = Raw::connect(&node).await;
        raw.send(&request(1, &GET, true)).await;
        assert_eq!(raw.outcome_of(1).await, Ok(200));
        // A few of them are nothing.
        raw.send(&part.repeat(50)).await;
        raw.send(&request(3, &GET, true)).await;
        assert_eq!(raw.outcome_of(3).await, Ok(200), "{what}");
        let outcome = flood(&mut raw, |_| part.repeat(50)).await;
        assert_eq!(outcome.goaway, Some(ENHANCE_YOUR_CALM), "{what}: {outcome:?}");
        drop(raw);
        control(&node).await;
    }
    node.settles().await;
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let node = Node::start().await;
    let cancel = 8u32.to_be_bytes();
    let mut raw = Raw::connect(&node).await;
    let mut stream = 1;
    let outcome = flood(&mut raw, |_| {
        let mut bytes = Vec::new();
        for _ in 0..20 {
            bytes.extend(get(stream, "/hang"));
            bytes.extend(frame(RST_STREAM, 0, stream, &cancel));
            stream += 2;
        }
        bytes
    })
    .await;
    assert_eq!(outcome.goaway, Some(ENHANCE_YOUR_CALM), "{outcome:?}");
    assert!(stream < 10_000, "after {stream}");
    drop(raw);
    control(&node).await;
    node.settles().await;
}

/// The client makes the node reset: with an update of zero on every stream it opens.
#[tokio::test]
async fn made_resets_end_the_connection() {
    let node = Node::start().await;
    let mut raw = Raw::connect(&node).await;
    let mut stream = 1;
    let outcome = flood(&mut raw, |_| {
        let mut bytes = Vec::new();
        for _ in 0..20 {
            bytes.extend(get(stream, "/hang"));
            bytes.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
            stream += 2;
        }
        bytes
    })
    .await;
    assert!(outcome.goaway.is_some_and(|code| code != 0), "{outcome:?}");
    assert!(stream < 10_000, "after {stream}");
    drop(raw);
    control(&node).await;
    node.settles().await;
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() {
    let node = Node::start().await;
    let mut raw = Raw::connect(&node).await;
    for index in 0..110 {
        raw.send(&get(2 * index + 1, &format!("/hang/{index}"))).await;
    }
    const REFUSED_STREAM: u32 = 7;
    let outcome = raw.until(|outcome| outcome.resets.len() == 10).await;
    assert!(outcome.resets.values().all(|code| *code == REFUSED_STREAM), "{outcome:?}");
    node.metric_is("ferrule_requests_in_flight", 100.0).await;
    drop(raw);
    node.settles().await;
    control(&node).await;
}

#[tokio::test]
async fn endless_header_blocks_end_the_connection() {
    let node = Node::start().await;
    for part in [
        frame(CONTINUATION, 0, 1, &[]),
        frame(CONTINUATION, 0, 1, &block(&[("x", "y")])),
        frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(10_000))])),
    ] {
        let mut raw = Raw::connect(&node).await;
        raw.send(&frame(HEADERS, END_STREAM, 1, &block(&GET))).await;
        let outcome = flood(&mut raw, |_| part.clone()).await;
        assert!(outcome.goaway.is_some_and(|code| code != 0), "{outcome:?}");
    }
    // One that is finished in time is fine.
    let mut raw = Raw::connect(&node).await;
    raw.send(&frame(HEADERS, END_STREAM, 1, &block(&GET[..2]))).await;
    a_moment().await;
    raw.send(&frame(CONTINUATION, END_HEADERS, 1, &block(&GET[2..]))).await;
    assert_eq!(raw.outcome_of(1).await, Ok(200));
    drop(raw);
    node.settles().await;
}

#[tokio::test]
async fn empty_data_ends_the_connection() {
    let node = Node::start().await;
    let mut raw = Raw::connect(&node).await;
    let post =
        [(":method", "POST"), (":scheme", "https"), (":authority", "app.test"), (":path", "/echo")];
    raw.send(&request(1, &post, false)).await;
    let part = frame(DATA, 0, 1, &[]).repeat(50);
    let outcome = flood(&mut raw, |_| part.clone()).await;
    assert!(outcome.goaway.is_some_and(|code| code != 0), "{outcome:?}");
    drop(raw);
    control(&node).await;
    node.settles().await;
}

#[tokio::test]
async fn a_connection_that_never_begins_ends() {
    let node = Node::with(|setup| setup.timeouts.request_head = SECOND).await;
    for bytes in [&b""[..], &PREFACE[..10]] {
        let mut raw = Raw::silent(&node).await;
        raw.send(bytes).await;
        let began = Instant::now();
        raw.until_closed().await;
        let waited = began.elapsed();
        assert!(waited > SECOND / 2 && waited < 5 * SECOND, "{waited:?}");
    }
    // Garbage instead of a preface ends it at once.
    let mut raw = Raw::silent(&node).await;
    raw.send(b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    raw.until_closed().await;
    control(&node).await;
    node.settles().await;
}

/// 10 s each, which nobody configures.
#[tokio::test]
async fn settings_that_are_not_acknowledged_and_heads_that_do_not_end_run_out_of_time() {
    let node = Node::start().await;
    let unacknowledged = async {
        let mut raw = Raw::silent(&node).await;
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        raw.send(&request(1, &GET, true)).await;
        assert_eq!(raw.outcome_of(1).await, Ok(200));
        let began = Instant::now();
        raw.until_closed().await;
        began.elapsed()
    };
    let preface_only = async {
        let mut raw = Raw::silent(&node).await;
        raw.send(PREFACE).await;
        let began = Instant::now();
        raw.until_closed().await;
        began.elapsed()
    };
    let endless = async {
        let mut raw = Raw::connect(&node).await;
        let began = Instant::now();
        raw.send(&frame(HEADERS, END_STREAM, 1, &block(&GET[..2]))).await;
        raw.until_closed().await;
        began.elapsed()
    };
    let patient = async {
        let mut raw = Raw::connect(&node).await;
        tokio::time::sleep(13 * SECOND).await;
        raw.send(&request(1, &GET, true)).await;
        assert_eq!(raw.outcome_of(1).await, Ok(200));
    };
    let (unacknowledged, preface_only, endless, ()) =
        tokio::join!(unacknowledged, preface_only, endless, patient);
    for waited in [unacknowledged, preface_only, endless] {
        assert!(waited > 9 * SECOND && waited < 14 * SECOND, "{waited:?}");
    }
    node.settles().await;
}

/// A hundred streams of large answers, and a client that reads nothing.
#[tokio::test]
async fn a_client_that_reads_nothing_holds_little_and_not_for_long() {
    let node = Node::with(|setup| {
        setup.timeouts.response_write = 4 * SECOND;
        setup.timeouts.h2_idle = 2 * SECOND;
    })
    .await;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut raw = Raw::with_settings(&node, &[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    raw.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).await;
    for index in 0..100 {
        raw.send(&get(2 * index + 1, "/size/4000000")).await;
    }
    node.metric_is("ferrule_requests_in_flight", 100.0).await;
    node.metric_is("ferrule_requests_in_flight", 0.0).await;
    control(&node).await;
    // Not even the GOAWAY gets through.
    node.metric_is("ferrule_downstream_connections", 0.0).await;
    drop(raw);
    node.settles().await;
}
